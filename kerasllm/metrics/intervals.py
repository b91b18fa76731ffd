"""How far a measure may be from that of other texts of its kind: the bootstrap."""

import numpy as np

from kerasllm.arguments import check_function, check_positive, check_seed, shown

CHUNK = 2**24  # numbers that are drawn at a time


def bootstrap_interval(measure, rows, resamples=1000, seed=0, counts=None):
    """The 95 % interval of a measure over rows, by the percentile bootstrap (Efron 1979; Koehn 2004).

    N rows are drawn anew from the N that there are, `resamples` times, and the measure is computed from their sums.

    Args:
        measure: function (R, K) -> (R,) or a dict of such: of the sums of the rows' numbers.
        rows: (N, K), or (N,) for K = 1, the numbers of each row, such as how many words it has and how many are right.
        resamples: number of draws R.
        seed: of the draws; the same seed gives the same interval.
        counts: (N,) whole numbers, how many rows there are of each kind, where `rows` are different kinds of rows.
            Default: one of each.

    Returns:
        `(low, high)`, two floats, or a dict of such: the 2.5th and the 97.5th percentile.

    Example:
        >>> is_right = [True, False, True, True]
        >>> bootstrap_interval(lambda sums: sums[:, 0] / len(is_right), is_right)
        (0.25, 1.0)
    """
    check_function("measure", measure)
    check_positive("resamples", resamples)
    check_seed("seed", seed)
    try:
        rows = np.asarray(rows, "float64")
    except (TypeError, ValueError, OverflowError):
        rows = np.zeros(0)
    if rows.ndim not in (1, 2) or not len(rows) or not np.isfinite(rows).all():
        raise ValueError(f"rows ({shown(rows)}) must be finite numbers (N, K), one row at least.")
    counts = np.ones(len(rows), "int64") if counts is None else np.asarray(counts)
    if counts.shape != (len(rows),) or counts.dtype.kind not in "iu" or counts.min() < 0 or counts.sum() == 0:
        raise ValueError(f"counts ({shown(counts)}) must be {len(rows)} whole numbers, as many as rows, not all 0.")
    generator, sums = np.random.default_rng(seed), []
    rows, total = rows.reshape(len(rows), -1), int(counts.sum())
    step = max(1, CHUNK // len(rows))
    for start in range(0, resamples, step):
        num_draws = min(step, resamples - start)
        drawn = generator.multinomial(total, counts / total, num_draws)  # (R, N)
        sums.append(drawn @ rows)
    return percentiles(measure(np.concatenate(sums)))


def percentiles(values):
    """The 2.5th and the 97.5th percentile of (R,), or a dict of those of a dict's."""
    if isinstance(values, dict):
        return {name: percentiles(x) for name, x in values.items()}
    return tuple(np.percentile(np.asarray(values, "float64"), [2.5, 97.5]).tolist())
