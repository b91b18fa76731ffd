"""The options of generation."""

import dataclasses
import math
from numbers import Real

from kerasllm.arguments import LARGEST, MOST, SMALLEST, is_number, is_whole, plain, shown

SAMPLING = ("temperature", "top_k", "top_p", "min_p", "typical_p", "epsilon_cutoff", "eta_cutoff")
BEAMS = ("num_beams", "length_penalty", "early_stopping")
LENGTHS = [("max_length", "max_new_tokens"), ("min_length", "min_new_tokens")]
MOST_SEQUENCES = 2**20


@dataclasses.dataclass(frozen=True, kw_only=True)
class GenerationConfig:
    """How long to generate, how many sequences, how to choose each token and where to stop.

    Any of `temperature`, the filters (`top_k` to `eta_cutoff`), or `num_return_sequences > 1` without beams, means
    sampling; otherwise, and with `temperature=0`, the most probable token is taken. `seed` alone does not change that.
    `num_beams > 1` searches for the most probable sequence instead.

    Example:
        >>> config = GenerationConfig(max_new_tokens=50, temperature=0.7, top_p=0.9, seed=1)
        >>> longer = GenerationConfig.merged(config, max_new_tokens=200)

    Args:
        max_length: tokens of the prompt and the completion together, for each prompt on its own.
        max_new_tokens: tokens of the completion. At most one of `max_length` and this is given.
        min_length: before the prompt and the completion together have so many tokens no end token is chosen.
        min_new_tokens: before so many tokens no end token is chosen, and no stop string ends the text. At most one of
            `min_length` and this is given.
        num_return_sequences: samples for each prompt, or the best so many of its beams.
        temperature: divides the logits; below 1 sharpens the distribution, above 1 flattens it.
        top_k: keep the k most probable tokens, and those equal to the k-th.
        top_p: keep the smallest set of most probable tokens whose probability reaches p (Holtzman et al. 2019).
        min_p: keep the tokens at least p times as probable as the most probable one (Nguyen et al. 2024).
        typical_p: keep the tokens whose surprise is nearest to the expected one until their probability reaches p,
            below 1 (Meister et al. 2022).
        epsilon_cutoff: keep the tokens at least so probable, below 1 (this and the next: Hewitt et al. 2022).
        eta_cutoff: keep the tokens at least as probable as the smaller of it and sqrt(it) * exp(-entropy), below 1.
        repetition_penalty: divides positive logits of tokens that stand in prompt or completion, multiplies negative
            ones (Keskar et al. 2019). Above 1 discourages repetition.
        presence_penalty: is subtracted from the logits of tokens that stand in the completion.
        frequency_penalty: is subtracted as often as the token stands there (both: OpenAI's API reference).
        no_repeat_ngram_size: no n tokens in a row stand twice in prompt and completion.
        logit_bias: dict token id -> number that is added to its logit; minus infinity rules the token out.
        bad_words: strings or lists of ids that are not generated. A string is ruled out with and without a space
            before it, as the tokenizer writes it at once.
        suppress_tokens: ids that are not generated, end tokens among them.
        begin_suppress_tokens: ids that a completion does not begin with.
        exponential_decay_length_penalty: (n, factor): after n tokens of a completion each further one adds to the logit
            of an end token, |logit| * (factor ** (how many further ones) - 1).
        stop: a token id or a string, or a list of such. A completion ends with the first; the text ends before it.
        forced_bos_token_id: what follows a prompt of one token, the start token of a translator (BART).
        forced_eos_token_id: the last token of a sequence that reaches its length.
        num_beams: hypotheses that beam search follows; 1 is no beam search.
        length_penalty: a hypothesis scores log-probability / length ** length_penalty.
        early_stopping: when beam search ends. True: when there are `num_beams` finished hypotheses; False: when the
            best running one would not be better at its present length; "never": when it cannot become better.
        renormalize_logits: whether the probabilities that beam search compares sum to one again after bans and
            penalties (Marian). It changes nothing without beams.
        seed: integer in [0, 2**32). The same seed gives the same tokens on every backend. `None` draws one
            from numpy's global generator, which `keras.utils.set_random_seed` sets.
        strip_prompt: whether to return the completion without the prompt.
        unsupported: dict, what a preset's generation_config.json asks for by transformers' names and kerasllm does not
            do. Generating with any of it is an error; `unsupported=None` leaves it out.

    Raises:
        ValueError: if a value is out of its range, or two contradict each other.
    """

    max_length: int | None = None
    max_new_tokens: int | None = None
    min_length: int | None = None
    min_new_tokens: int | None = None
    num_return_sequences: int = 1
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    typical_p: float | None = None
    epsilon_cutoff: float | None = None
    eta_cutoff: float | None = None
    repetition_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    no_repeat_ngram_size: int | None = None
    logit_bias: dict | None = None
    bad_words: tuple = ()
    suppress_tokens: tuple | None = None
    begin_suppress_tokens: tuple | None = None
    exponential_decay_length_penalty: tuple | None = None
    stop: tuple = ()
    forced_bos_token_id: int | None = None
    forced_eos_token_id: int | None = None
    num_beams: int = 1
    length_penalty: float = 1.0
    early_stopping: bool | str = False
    renormalize_logits: bool = False
    seed: int | None = None
    strip_prompt: bool = False
    unsupported: dict | None = None

    def __post_init__(self):
        for field in dataclasses.fields(self):
            object.__setattr__(self, field.name, plain(getattr(self, field.name)))
        self._check_integer("max_length", 1)
        self._check_integer("max_new_tokens", 1)
        self._check_integer("min_length", 0)
        self._check_integer("min_new_tokens", 0)
        self._check_integer("forced_bos_token_id", 0)
        self._check_integer("forced_eos_token_id", 0)
        self._check_integer("num_return_sequences", 1, MOST_SEQUENCES, optional=False)
        self._check_integer("top_k", 1)
        self._check_integer("no_repeat_ngram_size", 1)
        self._check_integer("num_beams", 1, optional=False)
        self._check_integer("seed", 0, 2**32)
        self._check_real("temperature", lambda t: 0 <= t <= LARGEST, "a finite number >= 0")
        self._check_real("top_p", lambda p: 0 < p <= 1, "a number in (0, 1]")
        self._check_real("min_p", lambda p: 0 < p <= 1, "a number in (0, 1]")
        for name in ("typical_p", "epsilon_cutoff", "eta_cutoff"):
            self._check_real(name, lambda p: 0 < p < 1, "a number in (0, 1)")
        self._check_real("repetition_penalty", lambda x: SMALLEST < x <= LARGEST, "a finite number > 0")
        for name in ("presence_penalty", "frequency_penalty", "length_penalty"):
            is_optional = name != "length_penalty"
            self._check_real(name, lambda x: abs(x) <= LARGEST, "a finite number", is_optional)
        self._check(
            "early_stopping",
            lambda x: isinstance(x, bool) or isinstance(x, str) and x == "never",
            "False, True or 'never'",
        )
        for name in ("renormalize_logits", "strip_prompt"):
            self._check(name, lambda value: isinstance(value, bool), "True or False")
        self._check("logit_bias", _is_bias, "a dict of token ids >= 0 and numbers below infinity", optional=True)
        if self.logit_bias is not None:
            bias = {plain(token_id): plain(number) for token_id, number in self.logit_bias.items()}
            object.__setattr__(self, "logit_bias", bias)
        self._freeze("bad_words", _is_word, "a list of non-empty strings or non-empty lists of token ids")
        for name in ("suppress_tokens", "begin_suppress_tokens"):
            if getattr(self, name) is not None:
                self._freeze(name, _is_id, "a list of token ids")
        self._check("exponential_decay_length_penalty", _is_decay, "a pair of an integer >= 0 and a number > 0", True)
        if self.exponential_decay_length_penalty is not None:
            object.__setattr__(
                self, "exponential_decay_length_penalty", tuple(map(plain, self.exponential_decay_length_penalty))
            )
        self._check("unsupported", lambda value: isinstance(value, dict), "a dict", optional=True)
        single = isinstance(self.stop, str) or _is_id(self.stop)
        self._freeze("stop", _is_stop, "a token id, a non-empty string, or a list of such", single)
        self._check_contradictions()

    @property
    def sampling(self):
        """Whether tokens are drawn at random."""
        if self.temperature == 0 or self.num_beams > 1:
            return False
        return self.num_return_sequences > 1 or any(getattr(self, name) is not None for name in SAMPLING)

    @classmethod
    def merged(cls, config=None, /, *, defaults=None, **overrides):
        """Return `defaults`, with the values of `config` in place of its own, and `overrides` in place of both.

        One length replaces whichever length was there, one least length the other; beams given replace sampling in
        `defaults`, and sampling given replaces beams. What is given is no more `unsupported`.

        Args:
            config: a `GenerationConfig`. Its values that are those of `GenerationConfig()` leave the choice to
                `defaults`. Default: all do.
            defaults: a `GenerationConfig`, for instance that of a preset. Default: `GenerationConfig()`.
            **overrides: fields.

        Raises:
            ValueError: if an override is no field, or the result is not valid.
        """
        for name, value in (("config", config), ("defaults", defaults)):
            if not isinstance(value, cls | None):
                raise ValueError(f"{name} ({shown(value)}) must be a {cls.__name__} or None.")
        accepted = [field.name for field in dataclasses.fields(cls)]
        unknown = sorted(set(overrides) - set(accepted))
        if unknown:
            raise ValueError(f"Unknown generation arguments: {', '.join(unknown)}. Accepted: {', '.join(accepted)}.")
        given = _replaced(config.given() if config else {}, overrides)
        values = _replaced(defaults.given() if defaults else {}, given)
        beams = given.get("num_beams", 1)
        if is_whole(beams) and beams > 1:
            dropped = SAMPLING
        elif "num_beams" in given or any(given.get(name) is not None for name in SAMPLING):
            dropped = BEAMS
        else:
            dropped = ()
        values = {name: value for name, value in values.items() if name in given or name not in dropped}
        return cls(**values)

    def given(self):
        """The values that are not those of `GenerationConfig()`, a dict."""
        fields = dataclasses.fields(self)
        return {f.name: getattr(self, f.name) for f in fields if getattr(self, f.name) != f.default}

    def limited(self, longest, limit=None, usual=None):
        """The same with a length, checked against what a model can hold.

        Args:
            longest: the tokens of the longest prompt.
            limit: the model's `max_sequence_length`, or None.
            usual: `max_length` where neither the config nor the model says one.

        Raises:
            ValueError: the prompt, or what is wanted after it, exceeds `limit`, or is too long for `length_penalty`.
        """
        if limit and longest > limit:
            raise ValueError(f"prompts: one of {longest} tokens is longer than max_sequence_length ({limit}).")
        if self.max_length is None and self.max_new_tokens is None:
            return dataclasses.replace(self, max_length=limit or usual).limited(longest, limit)
        name = "max_new_tokens" if self.max_length is None else "max_length"
        length = self.max_length or self.max_new_tokens + longest
        if limit and length > limit:
            raise ValueError(
                f"{name} ({getattr(self, name)}) after a prompt of {longest} tokens exceeds the model's "
                f"max_sequence_length ({limit})."
            )
        if abs(self.length_penalty) * math.log2(length) > 120:
            raise ValueError(
                f"length_penalty ({self.length_penalty}) must be nearer to 0: {length} ** length_penalty is no float32."
            )
        return self

    def _check_contradictions(self):
        for whole, new in LENGTHS:
            if getattr(self, whole) is not None and getattr(self, new) is not None:
                raise ValueError(
                    f"{whole} ({getattr(self, whole)}) and {new} ({getattr(self, new)}) exclude each other: give one "
                    "of them."
                )
        for name in ("max_length", "max_new_tokens"):
            longest = getattr(self, name)
            if longest is not None and (self.min_new_tokens or 0) > longest:
                raise ValueError(f"min_new_tokens ({self.min_new_tokens}) must be at most {name} ({longest}).")
        if self.max_length is not None and (self.min_length or 0) > self.max_length:
            raise ValueError(f"min_length ({self.min_length}) must be at most max_length ({self.max_length}).")
        if self.num_beams > 1:
            filters = [f"{name} ({getattr(self, name)})" for name in SAMPLING if getattr(self, name) is not None]
            if filters:
                raise ValueError(f"num_beams ({self.num_beams}) excludes sampling: leave {', '.join(filters)} out.")
            if self.num_return_sequences > self.num_beams:
                raise ValueError(
                    f"num_return_sequences ({self.num_return_sequences}) must be at most num_beams ({self.num_beams})."
                )
            strings = [stop for stop in self.stop if isinstance(stop, str)]
            if strings:
                raise ValueError(f"stop ({shown(strings)}) must be token ids with num_beams ({self.num_beams}).")
        elif self.length_penalty != 1 or self.early_stopping is not False:
            raise ValueError(
                f"length_penalty ({self.length_penalty}) and early_stopping ({shown(self.early_stopping)}) need beams: "
                f"num_beams ({self.num_beams}) must be greater than 1."
            )
        elif self.num_return_sequences > 1 and not self.sampling:
            raise ValueError(
                f"num_return_sequences ({self.num_return_sequences}) must be 1 with temperature=0, "
                "which gives the same tokens every time."
            )

    def _check_integer(self, name, low, high=MOST, optional=True):
        accepted = f"an integer >= {low} and < {high}"
        self._check(name, lambda value: is_whole(value) and low <= value < high, accepted, optional)

    def _check_real(self, name, in_range, accepted, optional=True):
        self._check(name, lambda value: is_number(value) and in_range(value), accepted, optional)

    def _check(self, name, is_valid, accepted, optional=False):
        value = getattr(self, name)
        if not (optional and value is None) and not is_valid(value):
            raise ValueError(f"{name} ({shown(value)}) must be {accepted}{' or None' if optional else ''}.")

    def _freeze(self, name, is_valid, accepted, single=False):
        """Make a field a tuple of what its list holds, or of the one thing it is."""
        value = getattr(self, name)
        items = (value,) if single else () if value is None else value
        self._check(name, lambda _: isinstance(items, list | tuple) and all(map(is_valid, items)), accepted)
        items = tuple(plain(item) if isinstance(item, str) or _is_id(item) else tuple(map(int, item)) for item in items)
        object.__setattr__(self, name, items)


def _replaced(values, replacements):
    """`values` with `replacements` in place; one length replaces the other, and what is given what is unsupported."""
    left = values.get("unsupported")
    values = {**values, **replacements}
    for pair in LENGTHS:
        for given, replaced in (pair, pair[::-1]):
            if replacements.get(given) is not None and replacements.get(replaced) is None:
                values[replaced] = None
    if left and "unsupported" not in replacements:
        answered = set(replacements) | ({"stop_strings"} if "stop" in replacements else set())
        beams = replacements.get("num_beams", 1)
        if any(replacements.get(name) is not None for name in SAMPLING) or (is_whole(beams) and beams > 1):
            answered |= {"do_sample", *SAMPLING}
        values["unsupported"] = {name: value for name, value in left.items() if name not in answered} or None
    return values


def _is_id(value):
    return is_whole(value) and 0 <= value < MOST


def _is_word(value):
    if isinstance(value, str):
        return value != ""
    return isinstance(value, list | tuple) and len(value) > 0 and all(map(_is_id, value))


def _is_stop(value):
    return _is_id(value) or (isinstance(value, str) and value != "")


def _is_decay(value):
    if not isinstance(value, list | tuple) or len(value) != 2:
        return False
    return _is_id(value[0]) and is_number(value[1]) and SMALLEST < value[1] <= LARGEST


def _is_bias(value):
    def fits(x):
        return is_number(x) and abs(x) <= LARGEST or isinstance(x, Real) and x == -math.inf

    return isinstance(value, dict) and all(_is_id(i) and fits(x) for i, x in value.items())
