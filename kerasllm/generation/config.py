"""The options of generation."""

import dataclasses
import math

from kerasllm.arguments import is_whole, plain, shown
from kerasllm.generation import file_kinds, kinds
from kerasllm.generation.options import documented, one_of, option

MOST_SEQUENCES = 2**20
LENGTHS = [("max_length", "max_new_tokens"), ("min_length", "min_new_tokens")]


@documented
@dataclasses.dataclass(frozen=True, kw_only=True)
class GenerationConfig:
    """How long to generate, how many sequences, how to choose each token and where to stop.

    Any of `temperature`, the filters (`top_k` to `eta_cutoff`), or `num_return_sequences > 1` without beams, means
    sampling; otherwise, and with `temperature=0`, the most probable token is taken. `seed` alone does not change that.
    `num_beams > 1` searches for the most probable sequence instead.

    Example:
        >>> config = GenerationConfig(max_new_tokens=50, temperature=0.7, top_p=0.9, seed=1)
        >>> longer = GenerationConfig.merged(config, max_new_tokens=200)

    Raises:
        ValueError: if a value is out of its range, or two contradict each other.
    """

    max_length: int | None = option(
        None,
        kinds.whole(1),
        "tokens of the prompt and the completion together, for each prompt on its own.",
        in_file=file_kinds.up_to(1, 2**24),
        with_draft=True,
        exported="any",
    )
    max_new_tokens: int | None = option(
        None,
        kinds.whole(1),
        "tokens of the completion. At most one of `max_length` and this is given.",
        in_file=file_kinds.up_to(1, 2**24),
        with_draft=True,
        exported="any",
    )
    min_length: int | None = option(
        None,
        kinds.whole(0),
        "before the prompt and the completion together have so many tokens no end token is chosen.",
        in_file=file_kinds.COUNT,
        off=one_of(0),
    )
    min_new_tokens: int | None = option(
        None,
        kinds.whole(0),
        "before so many tokens no end token is chosen, and no stop string ends the text. At most one of `min_length` "
        "and this is given.",
        in_file=file_kinds.COUNT,
        off=one_of(0),
    )
    num_return_sequences: int = option(
        1,
        kinds.whole(1, MOST_SEQUENCES),
        "samples for each prompt, or the best so many of its beams.",
        in_file=file_kinds.up_to(1, 2**10),
        exported="text",
    )
    temperature: float | None = option(
        None,
        kinds.WARMTH,
        "divides the logits; below 1 sharpens the distribution, above 1 flattens it.",
        in_file=file_kinds.FROM_ZERO,
        use="sampling",
        with_draft=True,
        exported="choice",
    )
    top_k: int | None = option(
        None,
        kinds.whole(1),
        "keep the k most probable tokens, and those equal to the k-th.",
        in_file=file_kinds.COUNT,
        use="sampling",
        off=one_of(0),
        exported="choice",
    )
    top_p: float | None = option(
        None,
        kinds.PART,
        "keep the smallest set of most probable tokens whose probability reaches p (Holtzman et al. 2019).",
        in_file=kinds.PART,
        use="sampling",
        off=one_of(1),
        exported="choice",
    )
    min_p: float | None = option(
        None,
        kinds.PART,
        "keep the tokens at least p times as probable as the most probable one (Nguyen et al. 2024).",
        in_file=file_kinds.SHARE,
        use="sampling",
        off=one_of(0),
    )
    typical_p: float | None = option(
        None,
        kinds.FRACTION,
        "keep the tokens whose surprise is nearest to the expected one until their probability reaches p, below 1 "
        "(Meister et al. 2022).",
        in_file=file_kinds.POSITIVE,
        use="sampling",
        off=lambda p: p >= 1,
    )
    epsilon_cutoff: float | None = option(
        None,
        kinds.FRACTION,
        "keep the tokens at least so probable, below 1 (this and the next: Hewitt et al. 2022).",
        in_file=file_kinds.SHARE,
        use="sampling",
        off=one_of(0, 1),
    )
    eta_cutoff: float | None = option(
        None,
        kinds.FRACTION,
        "keep the tokens at least as probable as the smaller of it and sqrt(it) * exp(-entropy), below 1.",
        in_file=file_kinds.SHARE,
        use="sampling",
        off=one_of(0, 1),
    )
    repetition_penalty: float | None = option(
        None,
        kinds.FACTOR,
        "divides positive logits of tokens that stand in prompt or completion, multiplies negative ones (Keskar et "
        "al. 2019). Above 1 discourages repetition.",
        in_file=file_kinds.POSITIVE,
        off=one_of(1),
        exported="choice",
    )
    presence_penalty: float | None = option(
        None,
        kinds.FINITE,
        "is subtracted from the logits of tokens that stand in the completion.",
        in_file=file_kinds.NUMBER,
    )
    frequency_penalty: float | None = option(
        None,
        kinds.FINITE,
        "is subtracted as often as the token stands there (both: OpenAI's API reference).",
        in_file=file_kinds.NUMBER,
    )
    no_repeat_ngram_size: int | None = option(
        None,
        kinds.whole(1),
        "no n tokens in a row stand twice in prompt and completion.",
        in_file=file_kinds.COUNT,
        off=one_of(0),
    )
    logit_bias: dict | None = option(
        None,
        kinds.BIAS,
        "dict token id -> number that is added to its logit; minus infinity rules the token out.",
        in_file=file_kinds.BIASES,
        theirs="sequence_bias",
        holds_ids=True,
    )
    bad_words: tuple = option(
        (),
        kinds.WORDS,
        "strings or lists of ids that are not generated. A string is ruled out with and without a space before it, as"
        " the tokenizer writes it at once.",
        in_file=file_kinds.WORDS,
        theirs="bad_words_ids",
        holds_ids=True,
    )
    suppress_tokens: tuple | None = option(
        None,
        kinds.IDS,
        "ids that are not generated, end tokens among them.",
        in_file=file_kinds.IDS,
        holds_ids=True,
    )
    begin_suppress_tokens: tuple | None = option(
        None,
        kinds.IDS,
        "ids that a completion does not begin with.",
        in_file=file_kinds.IDS,
        holds_ids=True,
    )
    exponential_decay_length_penalty: tuple | None = option(
        None,
        kinds.DECAY,
        "(n, factor): after n tokens of a completion each further one adds to the logit of an end token, |logit| * "
        "(factor ** (how many further ones) - 1).",
        in_file=file_kinds.DECAY,
    )
    stop: tuple = option(
        (),
        kinds.STOPS,
        "a token id or a string, or a list of such. A completion ends with the first; the text ends before it.",
        in_file=file_kinds.STRINGS,
        theirs="stop_strings",
        with_draft=True,
        exported="text",
    )
    forced_bos_token_id: int | None = option(
        None,
        kinds.whole(0),
        "what follows a prompt of one token, the start token of a translator (BART).",
        in_file=file_kinds.ID,
        holds_ids=True,
    )
    forced_eos_token_id: int | None = option(
        None,
        kinds.whole(0),
        "the last token of a sequence that reaches its length.",
        in_file=file_kinds.ID_OR_IDS,
        holds_ids=True,
    )
    num_beams: int = option(
        1,
        kinds.whole(1),
        "hypotheses that beam search follows; 1 is no beam search.",
        in_file=file_kinds.up_to(1, 2**10),
        use="beams",
        exported="target",
    )
    length_penalty: float = option(
        1.0,
        kinds.FINITE,
        "a hypothesis scores log-probability / length ** length_penalty.",
        in_file=file_kinds.NUMBER,
        use="beams",
        exported="target",
    )
    early_stopping: bool | str = option(
        False,
        kinds.EARLY,
        "when beam search ends. True: when there are `num_beams` finished hypotheses; False: when the best running "
        'one would not be better at its present length; "never": when it cannot become better.',
        in_file=file_kinds.EARLY,
        use="beams",
    )
    renormalize_logits: bool = option(
        False,
        kinds.BOOLEAN,
        "whether the probabilities that beam search compares sum to one again after bans and penalties (Marian). It "
        "changes nothing without beams.",
        in_file=file_kinds.TRUTH,
        off=one_of(False),
    )
    seed: int | None = option(
        None,
        kinds.whole(0, 2**32),
        "integer in [0, 2**32). The same seed gives the same tokens on every backend. `None` draws one from numpy's "
        "global generator, which `keras.utils.set_random_seed` sets.",
        in_file=file_kinds.up_to(0, 2**32 - 1),
        with_draft=True,
        exported="choice",
    )
    strip_prompt: bool = option(
        False,
        kinds.BOOLEAN,
        "whether to return the completion without the prompt.",
        in_file=file_kinds.TRUTH,
        off=one_of(False),
        with_draft=True,
        exported="any",
    )
    unsupported: dict | None = option(
        None,
        kinds.DICT,
        "dict, what a preset's generation_config.json asks for by transformers' names and kerasllm does not do. "
        "Generating with any of it is an error; `unsupported=None` leaves it out.",
    )

    def __post_init__(self):
        for name, its in OPTIONS.items():
            value, default = plain(getattr(self, name)), getattr(GenerationConfig, name)
            if value is not None or default is not None:
                if not its.kind.accepts(value):
                    or_none = " or None" if default is None else ""
                    raise ValueError(f"{name} ({shown(value)}) must be {its.kind.accepted}{or_none}.")
                value = its.kind.hold(value)
            object.__setattr__(self, name, value)
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
        unknown = sorted(set(overrides) - set(OPTIONS))
        if unknown:
            raise ValueError(f"Unknown generation arguments: {', '.join(unknown)}. Accepted: {', '.join(OPTIONS)}.")
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
        for both, new in LENGTHS:
            if getattr(self, both) is not None and getattr(self, new) is not None:
                raise ValueError(
                    f"{both} ({getattr(self, both)}) and {new} ({getattr(self, new)}) exclude each other: give one "
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


OPTIONS = {field.name: field.metadata["option"] for field in dataclasses.fields(GenerationConfig)}
"""What the options are: dict name -> `kerasllm.generation.options.Option`."""


def named(fact, *values):
    """The names of the options of which an attribute of `Option` has one of these values."""
    return tuple(name for name, option in OPTIONS.items() if getattr(option, fact) in values)


SAMPLING, BEAMS = named("use", "sampling"), named("use", "beams")


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
