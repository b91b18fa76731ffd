"""The values that options of generation take in a generation_config.json, where transformers has them."""

from kerasllm.arguments import LARGEST, is_whole
from kerasllm.generation import kinds
from kerasllm.generation.kinds import Kind, real


def up_to(least, most):
    """The `Kind` of whole numbers in a range that ends with `most`: more costs memory and time, and a call says so."""
    return Kind(f"a whole number from {least} to {most}", lambda value: is_whole(value) and least <= value <= most)


def _is_word(value):
    return isinstance(value, list) and value != [] and all(map(is_whole, value))


def _is_pair(value, is_first, is_second):
    return isinstance(value, list) and len(value) == 2 and is_first(value[0]) and is_second(value[1])


def _list_of(accepted, is_item):
    return Kind(accepted, lambda value: isinstance(value, list) and all(map(is_item, value)))


COUNT = Kind("a whole number >= 0", kinds.is_id)
NUMBER = real("a number", lambda x: abs(x) <= LARGEST)
POSITIVE = real("a positive number", lambda x: 0 < x <= LARGEST)
FROM_ZERO = real("a number >= 0", lambda x: 0 <= x <= LARGEST)
SHARE = real("a number in [0, 1]", lambda x: 0 <= x <= 1)
TRUTH = Kind("true or false", kinds.BOOLEAN.accepts)
EARLY = Kind("true, false or 'never'", kinds.EARLY.accepts)
ID = Kind("a token id", is_whole)
IDS = _list_of("a list of token ids", is_whole)
ID_OR_IDS = Kind("a token id or a list of token ids", lambda value: is_whole(value) or IDS.accepts(value))
WORDS = _list_of("a list of non-empty lists of token ids", _is_word)
BIASES = _list_of("a list of [[id, ...], number]", lambda pair: _is_pair(pair, _is_word, NUMBER.accepts))
DECAY = Kind(
    "a list of a whole number >= 0 and a number > 0", lambda pair: _is_pair(pair, COUNT.accepts, POSITIVE.accepts)
)
STRINGS = Kind(
    "a string or a list of non-empty strings",
    lambda value: isinstance(value, str) or isinstance(value, list) and all(isinstance(x, str) and x for x in value),
)
