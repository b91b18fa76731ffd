"""GGUF files as bytes: the header read without trust, the tensors mapped and dequantised when asked for.

Source of the format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md.
"""

import math
import mmap
import struct
from functools import partial

import numpy as np

from kerasllm.arguments import shown
from kerasllm.checkpoints.weight_map import LazyArray

SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
STRING, ARRAY = 8, 9
VERSIONS = (2, 3)
MOST_DIMENSIONS = 4
# Of what takes time for each. The largest vocabularies have 2^18 tokens, and twice as many merges.
MOST_HEADER_BYTES = 2**28
MOST_FIELDS, MOST_TENSORS = 2**12, 2**16
MOST_STRINGS, MOST_NUMBERS = 2**20, 2**22
CHUNK = 2**18  # values dequantised at a time: what a processor's cache holds


def read(path, block_sizes, dequantize):
    """Read a GGUF file.

    Args:
        path: of the file.
        block_sizes: dict kind of tensor -> (values, bytes) of one of its blocks.
        dequantize: function (uint8 array of rows of whole blocks, kind) -> float array.

    Returns:
        Its metadata, dict name -> number, string or list of such; its tensors, dict name -> `LazyArray` of float32.

    Raises:
        ValueError: the file is cut off, or its header contradicts itself.
    """
    with open(path, "rb") as file:
        try:
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except ValueError:
            raise ValueError("it is empty.") from None
    header = _Header(data)
    if header.bytes(4) != b"GGUF":
        raise ValueError("it does not begin with 'GGUF'.")
    version = header.number("I")
    if version not in VERSIONS:
        raise ValueError(f"its version ({version}) must be one of {', '.join(map(str, VERSIONS))}.")
    num_tensors, num_fields = header.number("Q"), header.number("Q")
    for name, number, most in (("fields", num_fields, MOST_FIELDS), ("tensors", num_tensors, MOST_TENSORS)):
        if number > most:
            raise ValueError(f"it has {number} {name}, more than {most}, or is cut off.")
    metadata = {}
    for _ in range(num_fields):
        _add(metadata, header.string(), header.value(header.number("I")))
    entries = {}
    for _ in range(num_tensors):
        _add(entries, header.string(), _entry(header, block_sizes))
    alignment = metadata.get("general.alignment", 32)
    if type(alignment) is not int or alignment < 1 or alignment & (alignment - 1):
        raise ValueError(f"general.alignment ({shown(alignment)}) must be a power of two.")
    start = -(-header.place // alignment) * alignment
    _check_places(entries, len(data) - start, alignment)
    for kind in {entry[0] for entry in entries.values()}:
        dequantize(np.zeros((1, block_sizes[kind][1]), np.uint8), kind)  # or it says now that it cannot
    raw = np.frombuffer(data, np.uint8)
    tensors = {}
    for name, (kind, shape, offset, size) in entries.items():
        blocks = raw[start + offset : start + offset + size].reshape(-1, block_sizes[kind][1])
        compute = partial(_dequantised, blocks, shape, block_sizes[kind][0], partial(dequantize, kind=kind))
        tensors[name] = LazyArray(shape, np.dtype("float32"), compute)
    return metadata, tensors


class _Header:
    """The bytes from the start of a file, read in their order and never beyond its end."""

    def __init__(self, data):
        self.data, self.place, self.end = data, 0, min(len(data), MOST_HEADER_BYTES)
        self.num_strings = self.num_numbers = 0

    def bytes(self, count):
        if count > self.end - self.place:
            raise ValueError(f"it is cut off: {count} bytes are missing from byte {self.place} on.")
        self.place += count
        return self.data[self.place - count : self.place]

    def numbers(self, letter, count):
        form = struct.Struct(f"<{letter}")
        return [value for (value,) in form.iter_unpack(self.bytes(count * form.size))]

    def number(self, letter):
        return self.numbers(letter, 1)[0]

    def string(self):
        return self.bytes(int.from_bytes(self.bytes(8), "little")).decode("utf-8")

    def value(self, kind):
        if kind == STRING:
            return self.string()
        if kind != ARRAY:
            return self.number(_letter(kind))
        kind, count = self.number("I"), self.number("Q")
        if kind != STRING:
            self.num_numbers += count
            if self.num_numbers > MOST_NUMBERS:
                raise ValueError(f"its arrays have more than {MOST_NUMBERS} numbers, or it is cut off.")
            return self.numbers(_letter(kind), count)
        self.num_strings += count
        if self.num_strings > MOST_STRINGS:
            raise ValueError(f"its arrays have more than {MOST_STRINGS} strings, or it is cut off.")
        return [self.string() for _ in range(count)]


def _letter(kind):
    if kind not in SCALARS:
        raise ValueError(f"a value of the kind {kind} is unknown.")
    return SCALARS[kind]


def _add(values, name, value):
    if name in values:
        raise ValueError(f"{name!r} is there twice.")
    values[name] = value


def _entry(header, block_sizes):
    """Kind, shape, place and number of bytes of one tensor."""
    num_dimensions = header.number("I")
    if not 1 <= num_dimensions <= MOST_DIMENSIONS:
        raise ValueError(f"a tensor of {num_dimensions} dimensions; it must have 1 to {MOST_DIMENSIONS}.")
    shape = tuple(reversed(header.numbers("Q", num_dimensions)))
    kind, offset = header.number("I"), header.number("Q")
    if kind not in block_sizes:
        raise ValueError(f"a tensor of the kind {kind}, which gguf does not know.")
    values, size = block_sizes[kind]
    if 0 in shape or shape[-1] % values:
        raise ValueError(f"a tensor of shape {shape}, whose rows must be whole blocks of {values} values.")
    return kind, shape, offset, math.prod(shape) // values * size


def _check_places(entries, num_bytes, alignment):
    end = 0
    for name, (_, shape, offset, size) in sorted(entries.items(), key=lambda item: item[1][2]):
        if offset % alignment or not end <= offset <= num_bytes - size:
            raise ValueError(f"{name} {shape} lies at {offset}: beyond the file's end, or over another tensor.")
        end = offset + size


def _dequantised(blocks, shape, values, dequantize):
    result = np.empty((len(blocks), values), np.float32)
    step = max(CHUNK // values, 1)
    for i in range(0, len(blocks), step):
        # As one row, since the library goes by small groups of rows.
        result[i : i + step] = dequantize(blocks[i : i + step].reshape(1, -1)).reshape(-1, values)
    return result.reshape(shape)
