"""What is said of an option of generation, once, where `GenerationConfig` has it as a field.

    top_k: int | None = option(None, whole(1), "keep the k most probable tokens ...", in_file=COUNT, use="sampling")

From there come the checks and the docstring of `GenerationConfig`, its command line, what a preset's
generation_config.json may say, and what may be chosen beside a draft and in an exported file.
"""

import dataclasses
from collections.abc import Callable

from kerasllm.constructors import entries
from kerasllm.generation.kinds import Kind


def one_of(*values):
    """The function that says whether a value is among those."""
    return lambda value: value in values


@dataclasses.dataclass(frozen=True)
class Option:
    """What an option of generation is.

    Args:
        kind: the `Kind` of what a call may say.
        text: what it does, for the docstring.
        in_file: the `Kind` of what a generation_config.json may say; None where it has no such field.
        use: "sampling" if a value means that tokens are drawn, "beams" if it is for beam search alone.
        theirs: the name of its field in the file, where that is another.
        off: value -> whether it does nothing, in transformers too.
        holds_ids: whether the file's values are lists of token ids.
        with_draft: whether speculative decoding, which is greedy, can do with it.
        exported: who may choose it in an exported file: "any" call that writes text; those of a language model, "text";
            the same, and it is an input of the file's functions, "choice"; those of a translator, "target". Otherwise
            the value at export is a part of the file.
    """

    kind: Kind
    text: str
    in_file: Kind | None = None
    use: str = ""
    theirs: str | None = None
    off: Callable = one_of()
    holds_ids: bool = False
    with_draft: bool = False
    exported: str = ""

    def is_off(self, value):
        """Whether a value says nothing or does nothing."""
        return value is None or value in ((), [], {}, "") or self.off(value)


def option(default, kind, text, **more):
    """A field of a dataclass: its default, and the arguments of `Option`."""
    return dataclasses.field(default=default, metadata={"option": Option(kind, text, **more)})


def documented(cls):
    """A dataclass of options, with their texts in its docstring, before what it raises."""
    texts = entries({x.name: x.metadata["option"].text for x in dataclasses.fields(cls)})
    before, raises, after = (cls.__doc__ or "").partition("    Raises:")  # python -OO leaves none
    cls.__doc__ = "\n".join([f"{before}    Args:", texts, f"\n{raises}{after}"])
    return cls
