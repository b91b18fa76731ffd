"""What a model's inputs may hold, checked on the host: backends make an error, NaN or another row of a wrong id."""

import dataclasses

import numpy as np

from kerasllm.arguments import shown

ANYWHERE = ("rotary", "relative", "alibi", None)  # positions that count distances only: padding may stand on the left


@dataclasses.dataclass(frozen=True)
class InputLimits:
    """What the inputs of a model may hold.

    A row may be padding only, as those are that fill up a batch: it has numbers, of no meaning.

    Attributes:
        ids: dict name -> (name of the argument that limits it, number of ids).
        max_length: the most tokens of a row, or None.
        right: names of the masks whose padding stands on the right. In encoders it may stand anywhere: every token sees
            all others, from the position where it stands.
    """

    ids: dict
    max_length: int | None
    right: tuple

    @classmethod
    def of(cls, arguments):
        """Those of a model with these constructor arguments."""
        ids = {}
        for name, sizes in {
            "token_ids": ("vocabulary_size",),
            "source_token_ids": ("source_vocabulary_size", "vocabulary_size"),
            "target_token_ids": ("target_vocabulary_size", "vocabulary_size"),
            "segment_ids": ("num_segments",),
        }.items():
            size = next((size for size in sizes if arguments.get(size) is not None), None)
            if size:
                ids[name] = size, arguments[size]
        # A position is an id of its own, wherever the model takes any.
        longest = arguments.get("max_sequence_length")
        ids["position_ids"] = ("max_sequence_length", longest) if longest else ("int32", 2**31)
        right = ("target_padding_mask",)
        is_encoder = "num_segments" in arguments
        if not is_encoder and "cell" not in arguments and arguments.get("positions", "learned") not in ANYWHERE:
            right += ("padding_mask",)
        return cls(ids, arguments.get("max_sequence_length"), right)

    def check(self, inputs, examples=None):
        """Raise `ValueError` where arrays hold what the model cannot read.

        Args:
            inputs: dict input name -> array, (B, T) each; those of other names are not looked at.
            examples: (B,) ints that errors name in place of the rows.
        """
        arrays = {n: as_array(n, x) for n, x in inputs.items() if n in self.ids or n.endswith(("_mask", "_positions"))}
        for name, array in arrays.items():
            if array.ndim != 2 or not array.size:
                axes = "(B, P)" if name == "masked_positions" else "(B, T)"
                raise ValueError(f"{name} {array.shape} must be of shape {axes}, with one row and one token at least.")
            if name in self.ids:
                check_indices(name, array, self.ids[name][1], f"{self.ids[name][0]} ({self.ids[name][1]})", examples)
            elif name.endswith("_mask"):
                self._check_mask(name, array, examples)
        for name, array in arrays.items():
            tokens = f"{name.partition('_')[0]}_token_ids" if name.startswith(("source_", "target_")) else "token_ids"
            if tokens in arrays and name != "masked_positions" and array.shape != arrays[tokens].shape:
                raise ValueError(f"{name} {array.shape} must be of the shape of {tokens}, {arrays[tokens].shape}.")
            first = next(iter(arrays))
            if len(array) != len(arrays[first]):
                raise ValueError(f"{name} {array.shape} must have as many rows as {first}, {arrays[first].shape}.")
            if name in self.ids and self.max_length is not None and array.shape[1] > self.max_length:
                raise ValueError(
                    f"{name} {array.shape}: sequence length ({array.shape[1]}) must be at most max_sequence_length "
                    f"({self.max_length})."
                )
        if {"masked_positions", "token_ids"} <= set(arrays):
            self._check_positions(arrays["masked_positions"], arrays["token_ids"], arrays.get("padding_mask"), examples)

    def _check_mask(self, name, mask, examples):
        if mask.dtype.kind != "b":
            check_indices(name, mask, 2, "True or 1 where a token is real", examples)
            mask = mask.astype("bool")
        if name in self.right and (mask[:, 1:] > mask[:, :-1]).any():
            row = int((mask[:, 1:] > mask[:, :-1]).any(axis=1).argmax())
            raise ValueError(
                f"{name}{place(examples, row)} ({mask[row].astype(int).tolist()!s:.40}) must have its padding on the "
                "right: True, ..., True, False, ..., False."
            )

    def _check_positions(self, positions, token_ids, mask, examples):
        check_indices("masked_positions", positions, token_ids.shape[1], f"of {token_ids.shape[1]} tokens", examples)
        if mask is not None and mask.shape == token_ids.shape:
            mask = mask.astype("bool")
            real = np.take_along_axis(mask, positions.astype("int64"), axis=1) | ~mask.any(axis=1, keepdims=True)
            for row, column in np.argwhere(~real)[:1]:
                raise ValueError(
                    f"masked_positions{place(examples, row, column)} ({positions[row, column]}) must not be padding."
                )


def as_array(name, x):
    """What `numpy.asarray` makes of lists and arrays, or a `ValueError` where rows differ in length."""
    try:
        return np.asarray(x)
    except ValueError as error:
        raise ValueError(f"{name} ({shown(x)}) must be an array, its rows of one length.") from error


def check_indices(name, array, count, reason, examples=None, others=()):
    """Raise `ValueError` unless an array (B, ...) holds whole numbers, 0 to `count` - 1, or one of `others`.

    Args:
        name: of the array, for errors, as is `reason`.
        array: of ints, or of floats that are whole.
        examples: (B,) ints that errors name in place of the rows.
    """
    if array.dtype.kind not in "iuf" or not array.dtype.isnative:
        raise ValueError(f"{name} ({array.dtype}) must hold whole numbers, in the machine's own byte order.")
    if not array.size:
        return
    with np.errstate(invalid="ignore"):
        is_whole = array.dtype.kind != "f" or bool((np.floor(array) == array).all())
        if is_whole and array.min() >= (-1 if -1 in others else 0) and array.max() < count:
            return  # the usual case: two passes
        wrong = ~((array >= 0) & (array < count) & (np.floor(array) == array))
    for other in others:
        wrong &= array != other
    for where in np.argwhere(wrong)[:1]:
        accepted = f"0 to {count - 1}" + "".join(f", or {other} to ignore it" for other in others)
        raise ValueError(
            f"{name}{place(examples, *where)} ({array[tuple(where)]}) must be a whole number, {accepted}: {reason}."
        )


def check_finite(name, array, examples=None):
    """Raise `ValueError` unless an array holds numbers, no NaN and no infinity."""
    if array.dtype.kind not in "iufb":
        raise ValueError(f"{name} ({array.dtype}) must hold numbers.")
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        where = np.argwhere(~np.isfinite(array))[0]
        raise ValueError(f"{name}{place(examples, *where)} ({array[tuple(where)]}) must be a finite number.")


def place(examples, row, *others):
    """How an error names an entry of an array: "[row, column]", the row as the example it is."""
    row = int(row if examples is None else examples[row])
    return f"[{', '.join(str(int(i)) for i in (row, *others))}]"
