"""What layers compute on their way, handed out to who asks: hidden states, attention weights, states.

Nothing is collected unless a block asks for it, and then what the same layers compute in a call is the same.
"""

import contextlib
import contextvars

_collected = contextvars.ContextVar("collected", default=None)


@contextlib.contextmanager
def collecting():
    """A context in which layers hand out what they compute: a dict (id of a layer, name) -> a list, one of each call.

    Example:
        >>> with collecting() as found:
        ...     y = attention(x)
        >>> [weights] = found[id(attention), "attentions"]
    """
    found = {}
    token = _collected.set(found)
    try:
        yield found
    finally:
        _collected.reset(token)


def is_collecting():
    """Whether someone asks."""
    return _collected.get() is not None


def collect(layer, name, values):
    """Hand out what a layer has computed, if someone asks."""
    found = _collected.get()
    if found is not None:
        found.setdefault((id(layer), name), []).append(values)
