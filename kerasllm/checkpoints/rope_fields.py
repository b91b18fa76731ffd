"""What a config says of rotary positions, read once for all families, whatever the age of transformers that wrote it.

A family of rotary positions has the rows of `FIELDS` in its table, or others for the same arguments.
"""

from kerasllm.checkpoints.config_map import Kind, number, positive
from kerasllm.stack import ROPE_PARAMETERS

# All parameters that transformers knows: those that a kind does not read say nothing.
NAMES = frozenset(
    """
    rope_type factor original_max_position_embeddings attention_factor beta_fast beta_slow short_factor long_factor
    low_freq_factor high_freq_factor mscale mscale_all_dim truncate mrope_section
    """.split()
)
# Parameters that may stand beside the others, as fields of their own, and go before those among them.
LENGTH, FIRST_LENGTH = "max_position_embeddings", "original_max_position_embeddings"


def names_of(kind):
    """The names that a kind of scaling must hold, and those that it may; None for a `rope_type` that we do not know."""
    return {"default": ((), ()), **ROPE_PARAMETERS}.get(kind) if isinstance(kind, str) else None


def _is_scaling(value):
    names = names_of(value.get("rope_type")) if isinstance(value, dict) else None
    if names is None or value["rope_type"] == "default":
        return value is None
    required, optional = names
    parameters = {name: x for name, x in value.items() if name != "rope_type" and not (x is None and name in optional)}
    is_complete = set(required) - {LENGTH} <= set(parameters) <= {*required, *optional}
    return is_complete and all(map(_is_parameter, parameters.values()))


def _is_parameter(value):
    """Whether it is a number, a list of them, or a switch: what each parameter must be, `RotaryPositions` checks."""
    numbers = value if isinstance(value, list) and value else [value]
    return isinstance(value, bool) or all(number.accepts(x) and x >= 0 for x in numbers)


scaling = Kind(
    "null or an object of rope_type 'default', "
    + " or ".join(f"{kind!r} with {', '.join(required)}" for kind, (required, _) in ROPE_PARAMETERS.items()),
    _is_scaling,
    # The length that a model reads now is said by its own field, which `plain` reads.
    to_foreign=lambda value: {k: x for k, x in value.items() if k != LENGTH} if isinstance(value, dict) else value,
)
SCALING = ("rope_scaling", "rope_scaling", scaling, None)
FIELDS = [("rope_theta", "rope_base", positive, 10000.0), SCALING]


def plain(config, fields):
    """The config with `rope_theta`, `partial_rotary_factor` and `rope_scaling`, of which each says all there is.

    As in transformers 5, `rope_scaling` replaces all of `rope_parameters`; in either of them `rope_type` goes before
    the older `type`, and what stands there before fields of the config.

    Args:
        config: dict, the content of config.json.
        fields: the family's table, which tells the length. Without a row for `rope_scaling` the config stays as it is.
    """
    rows = {row[1]: row for row in fields}
    if "rope_scaling" not in rows:
        return config
    config = dict(config)
    parameters, first_length = config.pop("rope_parameters", None), config.pop(FIRST_LENGTH, None)
    value = parameters if config.get("rope_scaling") in (None, {}) else config["rope_scaling"]
    config["rope_scaling"] = None if value == {} else value
    if isinstance(value, dict) and value:
        value = {"type": "default"} | value
        value.setdefault("rope_type", value.pop("type"))
        config |= {name: value.pop(name) for name in ("rope_theta", "partial_rotary_factor") if name in value}
        field, _, _, default = rows["max_sequence_length"]
        config["rope_scaling"] = _what_is_read(value, config.get(field, default), first_length)
    return config


def _what_is_read(value, length, first_length):
    """Of parameters those that their kind reads, with the lengths that stand beside them; None where there are none."""
    names = names_of(value["rope_type"])
    if names is None:
        return value
    known = {name for part in names for name in part}
    read = {name: x for name, x in value.items() if name in ("rope_type", *known) or name not in NAMES}
    # Lengths may say by how much they grow, where no factor does.
    if LENGTH in names[0] or LENGTH in known and read.get("factor") is None:
        read[LENGTH] = length
    if FIRST_LENGTH in known:
        read[FIRST_LENGTH] = read.get(FIRST_LENGTH, length) if first_length is None else first_length
    return None if read == {"rope_type": "default"} else read
