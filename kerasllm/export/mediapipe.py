"""MediaPipe: a classifier as one TFLite file, whose texts MediaPipe's TextClassifier takes, on phones and the web.

Vocabulary and labels are packed into the file, and MediaPipe cuts the texts by itself: as an uncased BERT does where
they are printable ASCII, tabs and ends of lines. Others it reads in its own way. It lowers the case of ASCII letters
alone and strips no accents, so that "café" and "CAFÉ" are two words, neither of them BERT's "cafe"; it knows no spaces
beyond ASCII, and keeps control characters. Of a special token in a text, such as [MASK], it makes three words. What is
longer than the file's `max_length` it cuts without a word.
(https://github.com/google-ai-edge/mediapipe: bert_preprocessor_calculator.cc and bert_tokenizer.h)
"""

import dataclasses
import re
import zipfile

from tokenizers import models

from kerasllm.arguments import shown
from kerasllm.export import heads, litert
from kerasllm.export.contents import Signature
from kerasllm.models.classifier import BERTClassifier

PACKAGES = litert.PACKAGES
STATIC = True
QUANTIZATIONS = litert.QUANTIZATIONS
check_path, assets_folder, load = litert.check_path, litert.assets_folder, litert.load

PUNCTUATION = r"!-/:-@\[-`{-~"
LONGEST_WORD = 100
SPECIAL_TOKENS = {"cls": "[CLS]", "sep": "[SEP]", "unk": "[UNK]"}

# Numbers of metadata_schema.fbs, which a file of version M001 follows.
AXIS_LABELS, VOCABULARY, BERT_TOKENIZER = 2, 5, 4


def contents_of(model, options):
    """What a MediaPipe file of a model holds.

    Raises:
        ValueError: the model is no classifier, or MediaPipe cannot read texts as its tokenizer does.
    """
    if not isinstance(model, BERTClassifier):
        raise ValueError(f"format ('mediapipe') holds a BERTClassifier, not a {type(model).__name__}.")
    return TextClassifierContents(model, options)


class TextClassifierContents(heads.ClassifierContents):
    """The one function of a MediaPipe classifier: `ids`, `mask`, `segment_ids` (1, T) int32 to `scores` (1, L)."""

    def __init__(self, model, options):
        limit = model.arguments["max_sequence_length"]
        self.max_length = limit if options.max_length is None else options.max_length
        if not 2 <= self.max_length <= limit:
            raise ValueError(f"max_length ({self.max_length}) must lie in 2 to max_sequence_length ({limit}).")
        if options.batch_size != 1 or options.inputs is not None:
            raise ValueError("batch_size must be 1 and input_signature None: MediaPipe reads a text at a time.")
        check_tokenizer(model.required_tokenizer())
        labels = [label for label in model.arguments["labels"] if len(label.splitlines()) != 1]
        if labels:
            raise ValueError(f"labels ({shown(labels[0])}) must be of one line each.")
        super().__init__(model, dataclasses.replace(options, max_length=None))

    def available(self):
        """`classify`."""
        inputs = dict.fromkeys(("ids", "mask", "segment_ids"), ((1, self.max_length), "int32"))
        return {"classify": Signature(inputs, self.call, proof=self.prove_task)}

    def forward_inputs(self):
        """The model's own inputs, of one text."""
        return {name: ((1, self.max_length), dtype) for name, (_, dtype) in super().forward_inputs().items()}

    def call(self, ids, mask, segment_ids):
        """The labels' scores."""
        inputs = {"token_ids": ids, "padding_mask": mask > 0, "segment_ids": segment_ids}
        return super().call(**{name: inputs[name] for name in self.model.input})

    def prove_task(self):
        """Random ids."""
        checks = super().prove_task()
        for check in checks:
            [(_, inputs)] = check.calls
            segment_ids = inputs.get("segment_ids", 0 * inputs["token_ids"])
            mask = inputs["padding_mask"].astype("int32")
            check.calls[:] = [("classify", {"ids": inputs["token_ids"], "mask": mask, "segment_ids": segment_ids})]
        return checks

    def settings(self):
        """The length at which texts are cut."""
        return {**super().settings(), "max_length": self.max_length}


def write(contents, path):
    """Write a file as `litert.write` does, with MediaPipe's metadata, vocab.txt and labels.txt."""
    from ai_edge_litert import schema_py_generated as schema
    from ai_edge_litert.tools import flatbuffer_utils

    described = litert.write(contents, path)
    model = flatbuffer_utils.read_model(path)
    [signature], [graph] = model.signatureDefs, model.subgraphs
    names = {tensor.tensorIndex: tensor.name.decode() for tensor in signature.inputs}
    content = metadata(contents.model.name, [names[i] for i in graph.inputs])
    entry, buffer = schema.MetadataT(), schema.BufferT()
    entry.name, entry.buffer, buffer.data = b"TFLITE_METADATA", len(model.buffers), list(content)
    model.metadata = [*(model.metadata or []), entry]
    model.buffers.append(buffer)
    flatbuffer_utils.write_model(model, path)
    tokenizer = contents.model.tokenizer
    vocabulary = [tokenizer.id_to_token(i) for i in range(tokenizer.vocabulary_size)]
    with zipfile.ZipFile(path, "a") as file:
        file.writestr("vocab.txt", "\n".join(vocabulary) + "\n")
        file.writestr("labels.txt", "\n".join(contents.model.arguments["labels"]) + "\n")
    return described


def metadata(name, inputs):
    """The metadata of a classifier with a BERT tokenizer, by the numbers of the schema's fields.

    Args:
        name: of the model.
        inputs: names of the input tensors, in the file's order.

    Returns:
        Bytes, a ModelMetadata table.
    """
    import flatbuffers

    labels, vocabulary = {0: "labels.txt", 2: AXIS_LABELS}, {0: "vocab.txt", 2: VOCABULARY}
    graph = {
        2: [{0: name} for name in inputs],  # input_tensor_metadata
        3: [{0: "scores", 6: [labels]}],  # output_tensor_metadata
        5: [{0: BERT_TOKENIZER, 1: {0: [vocabulary]}}],  # input_process_units
    }
    builder = flatbuffers.Builder(1024)
    builder.Finish(_written(builder, {0: name, 3: [graph], 7: "1.1.0"}), file_identifier=b"M001")
    return bytes(builder.Output())


def _written(builder, value):
    """The offset of a string, of a vector (list), or of a table: dict number of a field -> value, ints of a byte."""
    if isinstance(value, str):
        return builder.CreateString(value)
    if isinstance(value, list):
        offsets = [_written(builder, item) for item in value]
        builder.StartVector(4, len(offsets), 4)
        for offset in reversed(offsets):
            builder.PrependUOffsetTRelative(offset)
        return builder.EndVector()
    offsets = {field: _written(builder, item) for field, item in value.items() if not isinstance(item, int)}
    builder.StartObject(max(value) + 1)
    for field, item in value.items():
        if field in offsets:
            builder.PrependUOffsetTRelativeSlot(field, offsets[field], 0)
        else:
            builder.PrependUint8Slot(field, item, 0)
    return builder.EndObject()


def check_tokenizer(tokenizer):
    """Raise `ValueError` unless MediaPipe cuts texts in ASCII as a tokenizer does."""
    kind = type(tokenizer.backend.model).__name__
    if not isinstance(tokenizer.backend.model, models.WordPiece):
        raise ValueError(f"tokenizer ({kind}) must be an uncased WordPiece, as BERT's: MediaPipe has no other.")
    for role, token in SPECIAL_TOKENS.items():
        if tokenizer.roles.get(role) != token:
            raise ValueError(f"tokenizer's {role} ({tokenizer.roles.get(role)!r}) must be {token!r} for MediaPipe.")
    vocabulary = {tokenizer.id_to_token(i): i for i in range(tokenizer.vocabulary_size)}
    if None in vocabulary or any(len(token.splitlines()) != 1 for token in vocabulary):
        raise ValueError("tokenizer must have a token of one line for each id, for MediaPipe.")
    for text in ascii_texts(vocabulary):
        ids = [vocabulary[piece] for piece in ["[CLS]", *pieces(text, vocabulary), "[SEP]"]]
        expected, segment_ids = tokenizer.encode_with_segments(text)
        if ids != expected or any(segment_ids):
            raise ValueError(
                f"tokenizer must read texts as MediaPipe does, in lower case: {shown(text, 60)} has the ids "
                f"{expected[:12]}, in MediaPipe {ids[:12]}."
            )


def ascii_texts(vocabulary):
    """Texts of printable ASCII that a tokenizer might read in its own way."""
    printable = "".join(map(chr, range(32, 127)))
    words = [token for token in vocabulary if token.isascii() and token.isalnum()][:2000]
    return [
        "The quick brown fox JUMPS over the lazy dog, doesn't it?",
        f"  {printable}\t{printable[::-1]}\r\n{' '.join(printable)} ",
        " ".join(words + [word.title() + "s" for word in words]),
        " ".join(first + second for first, second in zip(words, words[1:], strict=False)),
        f"{'a' * LONGEST_WORD} {'a' * (LONGEST_WORD + 1)}",
    ]


def pieces(text, vocabulary):
    """The tokens that MediaPipe makes of a text in ASCII."""
    found = []
    for word in re.findall(f"[{PUNCTUATION}]|[^\\s{PUNCTUATION}]+", text.lower(), re.ASCII):
        found += _longest_pieces(word, vocabulary) if len(word) <= LONGEST_WORD else ["[UNK]"]
    return found


def _longest_pieces(word, vocabulary):
    found, start = [], 0
    while start < len(word):
        ends = range(len(word), start, -1)
        fitting = (("##" if start else "") + word[start:end] for end in ends)
        piece = next((piece for piece in fitting if piece in vocabulary), None)
        if piece is None:
            return ["[UNK]"]
        found.append(piece)
        start += len(piece) - (2 if start else 0)
    return found
