"""The mean of the weights of several checkpoints."""

import numpy as np

from kerasllm.arguments import read_path, read_sequence, shown


def average_weights(model, files):
    """Give a model the mean of the weights in files, as translators are given that of their last 5 to 20 checkpoints.

    The mean of checkpoints that lie some hundred steps apart is often better than each of them (Vaswani et al. 2017,
    "Attention is all you need", arXiv:1706.03762, 6.1). The checkpoints of a `ResumableTraining` are averaged by its
    `load(model, "average")`.

    Args:
        model: a `keras.Model` with weights of these shapes.
        files: paths of what `model.save_weights` or `keras.callbacks.ModelCheckpoint(..., save_weights_only=True)` has
            written.

    Raises:
        ValueError: there are none, or one is no such file or of another model, of which the error is Keras's; then the
            model has the weights it had.

    Example:
        >>> keep = keras.callbacks.ModelCheckpoint("run/{epoch:02d}.weights.h5", save_weights_only=True)
        >>> model.fit(dataset, epochs=10, callbacks=[keep])
        >>> average_weights(model, sorted(glob.glob("run/*.weights.h5"))[-5:])
    """
    files = [read_path(f"files[{i}]", file) for i, file in enumerate(read_sequence("files", files))]
    if not files:
        raise ValueError(f"files ({shown(files)}) must name one file at least.")
    before = model.get_weights()

    def weights():
        for file in files:
            model.load_weights(file)
            yield model.get_weights()

    try:
        mean = mean_of(weights())
    except BaseException:
        model.set_weights(before)
        raise
    model.set_weights(mean)


def mean_of(lists):
    """The means of arrays over several lists of them; those of whole numbers are the last list's."""
    sums, count = None, 0
    for arrays in lists:
        arrays, count = [np.asarray(array) for array in arrays], count + 1
        floats = [array.astype("float64") if _is_float(array) else array for array in arrays]
        sums = floats if sums is None else [a + b if _is_float(a) else b for a, b in zip(sums, floats, strict=True)]
    return [(a / count).astype(b.dtype) if _is_float(a) else a for a, b in zip(sums, arrays, strict=True)]


def _is_float(array):
    return array.dtype.kind == "f" or array.dtype.name == "bfloat16"
