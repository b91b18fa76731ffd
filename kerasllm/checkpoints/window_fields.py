"""What a config says of sliding windows: of all blocks, `sliding_window`; of each, `layer_types`.

A family whose blocks differ has the row `FIELD`, and `read` and `written` as parts of its `prepare` and `finish`.
"""

from kerasllm.arguments import shown
from kerasllm.checkpoints.config_map import Kind, size
from kerasllm.stack import by_block

KINDS = {"sliding_attention": True, "full_attention": False}
MOST_BLOCKS = 2**10  # of which each is asked


def _are_windows(value):
    values = value if isinstance(value, list) else [value]
    return all(one is None or size.accepts(one) for one in values) and len(set(values) - {None}) < 2


FIELD = ("sliding_window", "sliding_window", Kind("null or a positive whole number", _are_windows), None)


def read(config, slides):
    """The config without `layer_types`, whose `sliding_window` is that of the blocks in turn, or of all.

    Args:
        config: dict with `num_hidden_layers` and `sliding_window`.
        slides: function (number of a block) -> whether it has a window where there are no `layer_types`.

    Raises:
        ValueError: `layer_types` do not say of each block whether it slides, or one slides without a window; or there
            are more than `MOST_BLOCKS`.
    """
    config = dict(config)
    types, count, window = config.pop("layer_types", None), config["num_hidden_layers"], config["sliding_window"]
    if types is not None and not (
        isinstance(types, list) and len(types) == count and all(isinstance(t, str) and t in KINDS for t in types)
    ):
        raise ValueError(
            f"config.json: layer_types ({shown(types)}) must be a list of {' or '.join(map(repr, KINDS))} for each of "
            f"num_hidden_layers ({shown(count)})."
        )
    if isinstance(window, list) or not size.accepts(count):
        return config | {"sliding_window": "a list" if isinstance(window, list) else window}  # the table refuses it
    if count > MOST_BLOCKS:
        raise ValueError(f"config.json: num_hidden_layers ({shown(count)}) must be at most {MOST_BLOCKS} here.")
    if window is None and types is not None and any(KINDS[t] for t in types):
        raise ValueError(f"config.json: layer_types ({shown(types)}) need a sliding_window, which is null.")
    sliding = [slides(i) for i in range(count)] if types is None else [KINDS[t] for t in types]
    return config | {"sliding_window": _shortest([window if slide else None for slide in sliding])}


def written(config):
    """The config with `layer_types`, and with `sliding_window` as one number."""
    windows = by_block("sliding_window", config["sliding_window"], config["num_hidden_layers"])
    slide, full = KINDS
    types = [full if window is None else slide for window in windows]
    return config | {"sliding_window": next(filter(None, windows), None), "layer_types": types}


def _shortest(values):
    """The shortest list that `by_block` repeats to these values, or the one value of them all."""
    period = next(n for n in range(1, len(values) + 1) if all(x == values[i % n] for i, x in enumerate(values)))
    return values[0] if period == 1 else values[:period]
