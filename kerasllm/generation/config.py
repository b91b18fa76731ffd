"""The options of generation."""

import dataclasses
import math
import numbers


@dataclasses.dataclass(frozen=True, kw_only=True)
class GenerationConfig:
    """How long to generate, how many sequences, and how to choose each token.

    Any of `temperature`, `top_k`, `top_p`, or `num_return_sequences > 1`, means sampling; otherwise, and
    with `temperature=0`, the most probable token is taken. `seed` alone does not change that.

    Example:
        config = GenerationConfig(max_new_tokens=50, temperature=0.7, top_p=0.9, seed=1)
        longer = GenerationConfig.merged(config, max_new_tokens=200)

    Args:
        max_length: tokens of the prompt and the completion together, for each prompt on its own.
        max_new_tokens: tokens of the completion. At most one of the two lengths is given.
        num_return_sequences: independent samples for each prompt.
        temperature: divides the logits; below 1 sharpens the distribution, above 1 flattens it.
        top_k: keep the k most probable tokens, and those equal to the k-th.
        top_p: keep the smallest set of most probable tokens whose probability reaches p.
        seed: integer in [0, 2**32). The same seed gives the same tokens on every backend. `None` draws one
            from numpy's global generator, which `keras.utils.set_random_seed` sets.

    Raises:
        ValueError: if a value is out of its range, or two contradict each other.
    """

    max_length: int | None = None
    max_new_tokens: int | None = None
    num_return_sequences: int = 1
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    seed: int | None = None

    def __post_init__(self):
        self._check_integer("max_length", 1)
        self._check_integer("max_new_tokens", 1)
        self._check_integer("num_return_sequences", 1, optional=False)
        self._check_integer("top_k", 1)
        self._check_integer("seed", 0, 2**32)
        self._check("temperature", _is_real, lambda t: 0 <= t < math.inf, "a finite number >= 0")
        self._check("top_p", _is_real, lambda p: 0 < p <= 1, "a number in (0, 1]")
        if self.max_length is not None and self.max_new_tokens is not None:
            raise ValueError(
                f"max_length ({self.max_length}) and max_new_tokens ({self.max_new_tokens}) "
                "exclude each other: give one of them."
            )
        if self.num_return_sequences > 1 and not self.sampling:
            raise ValueError(
                f"num_return_sequences ({self.num_return_sequences}) must be 1 with temperature=0, "
                "which gives the same tokens every time."
            )

    @property
    def sampling(self):
        """Whether tokens are drawn at random."""
        if self.temperature == 0:
            return False
        filters = (self.temperature, self.top_k, self.top_p)
        return self.num_return_sequences > 1 or any(value is not None for value in filters)

    @classmethod
    def merged(cls, config=None, **overrides):
        """Return `config` (`None`: the defaults) with `overrides` in place of its values.

        One length given as an override replaces whichever length `config` holds.

        Raises:
            ValueError: if an override is no field, or the result is not valid.
        """
        if not isinstance(config, cls | None):
            raise ValueError(f"config ({config!r}) must be a {cls.__name__} or None.")
        accepted = [field.name for field in dataclasses.fields(cls)]
        unknown = sorted(set(overrides) - set(accepted))
        if unknown:
            raise ValueError(f"Unknown generation arguments: {', '.join(unknown)}. Accepted: {', '.join(accepted)}.")
        for given, replaced in [("max_length", "max_new_tokens"), ("max_new_tokens", "max_length")]:
            if overrides.get(given) is not None:
                overrides.setdefault(replaced, None)
        return dataclasses.replace(config or cls(), **overrides)

    def _check_integer(self, name, low, high=math.inf, optional=True):
        accepted = f"an integer >= {low}" if high == math.inf else f"an integer in [{low}, {high})"
        self._check(name, _is_integer, lambda value: low <= value < high, accepted, optional)

    def _check(self, name, is_type, in_range, accepted, optional=True):
        value = getattr(self, name)
        if optional and value is None:
            return
        if not (is_type(value) and in_range(value)):
            raise ValueError(f"{name} ({value!r}) must be {accepted}{' or None' if optional else ''}.")


def _is_integer(value):
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def _is_real(value):
    return isinstance(value, numbers.Real) and not isinstance(value, bool)
