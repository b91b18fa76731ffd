"""Models of another vocabulary, other positions or labels or fewer blocks, with the weights of the one they come from.

A vocabulary's size is an argument of a model, so each function gives a new model; the old one stays as it is.
"""

import re
from collections.abc import Mapping
from functools import partial

import keras
import numpy as np
from keras import ops

# A package, whose files are imported when first used: `import kerasllm` brings in no tokenizers.
from kerasllm import text
from kerasllm.arguments import check_choice, check_positive, is_whole, read_sequence, read_strings, shown
from kerasllm.backend.variables import built_with
from kerasllm.checkpoints.weight_map import LazyArray
from kerasllm.generation.config import OPTIONS, GenerationConfig
from kerasllm.layers import parts
from kerasllm.models.base import Model
from kerasllm.stack import by_block

BY_BLOCK = ("rope_base", "rope_scaling", "sliding_window")  # arguments that may differ from block to block
BLOCK = re.compile(r"^(encoder|decoder)/(?:.*/)?block_(\d+)(?=/|$)")
POSITIONS = ("interpolate", "repeat")
# What a model knows beside its config: the ids of files, and what a generation takes for granted.
KEPT = ("named_token_ids", "_file_token_ids", "_end_token_ids", "_start_token_id", "_generation_defaults")


def add_tokens(model, tokens, beginnings="mean", special=True, multiple=1):
    """A model that knows further tokens, such as those of tools or of a trade.

    Args:
        model: a model of kerasllm with a tokenizer, or a translator with one for both sides; it stays as it is.
        tokens: list of strings, none of which the tokenizer has; they get the next ids.
        beginnings: what a new token's embedding begins with: "mean", the mean of all others (Hewitt 2021), with which
            the model's likeliest tokens stay so; or for each token a text whose tokens' mean it is, a dict.
        special: whether `decode` leaves the tokens out, as it leaves out "</s>".
        multiple: the number of embeddings is made a multiple of it.

    Returns:
        The new model, of the same class; it is not compiled.

    Raises:
        ValueError: a token is there already; `beginnings` lacks one; the model is quantised.

    Example:
        >>> model = add_tokens(model, ["<tool>", "</tool>"], {"<tool>": "call a tool", "</tool>": "end"})
    """
    tokenizer, sizes = _one_tokenizer(model)
    tokens = read_strings("tokens", tokens)
    check_positive("multiple", multiple)
    larger = text.vocabularies.with_tokens(tokenizer, tokens, special)
    sources = _sources(tokenizer, tokens, beginnings)
    size = max(larger.vocabulary_size, model.arguments[sizes[0]])
    size = -(-size // multiple) * multiple
    new_ids = [larger.token_to_id(token) for token in tokens]

    def grown(rows):
        mean = rows[: tokenizer.vocabulary_size].mean(axis=0, dtype="float64")
        table = np.empty((size, *rows.shape[1:]), rows.dtype)
        table[: len(rows)], table[len(rows) :] = rows, mean
        for i, source in zip(new_ids, sources, strict=True):
            table[i] = mean if source is None else rows[source].mean(axis=0, dtype="float64")
        return table

    old = model.arguments[sizes[0]]
    return rebuilt(model, dict.fromkeys(sizes, size), dict.fromkeys(sizes, old + 1), grown, larger)


def prune_vocabulary(model, texts):
    """A model without the tokens that texts have no use for: what it makes of them is the same, in fewer bytes.

    Special tokens stay, and single characters, of which other texts are made. Two thirds of a small encoder are its
    table.

    Args:
        model: as for `add_tokens`.
        texts: iterable of strings, all that is to be read alike.

    Returns:
        The new model, of the same class; it is not compiled.

    Raises:
        ValueError: the tokenizer is none of WordPiece, BPE and Unigram; the model is quantised.
    """
    tokenizer, sizes = _one_tokenizer(model)
    smaller = text.vocabularies.pruned(tokenizer, texts)
    numbers = {int(old): i for i, old in enumerate(smaller.ids)}
    size = model.arguments[sizes[0]]
    arguments, larger = dict.fromkeys(sizes, len(smaller.ids)), dict.fromkeys(sizes, size + 1)
    new = rebuilt(model, arguments, larger, lambda rows: rows[smaller.ids], smaller.tokenizer)
    for name in KEPT[:4]:
        if name in vars(new):
            object.__setattr__(new, name, _renumbered(vars(new)[name], numbers))
    if hasattr(new, "generation_defaults"):
        new.generation_defaults = _renumbered_defaults(new.generation_defaults, numbers)
    return new


def with_positions(model, max_sequence_length, beginnings="interpolate"):
    """A model that reads longer texts, or shorter ones alone, by a table of learned positions of another length.

    Args:
        model: a model of kerasllm with learned positions; it stays as it is.
        max_sequence_length: the new length.
        beginnings: of a longer table: "interpolate" lays the positions that were farther apart (Dosovitskiy et al.
            2020, arXiv:2010.11929); "repeat" keeps them, and begins anew behind them (Longformer, Beltagy et al. 2020,
            arXiv:2004.05150). Both want training.

    Returns:
        The new model, of the same class; it is not compiled.

    Raises:
        ValueError: the model has no learned positions, or is quantised.
    """
    check_positive("max_sequence_length", max_sequence_length)
    check_choice("beginnings", beginnings, POSITIONS)
    length = getattr(model, "arguments", {}).get("max_sequence_length")
    if not length or not any(v.path.endswith("/position/embeddings") for v in model.weights):
        raise ValueError(f"model ({shown(model)}) has no table of learned positions, which would be made longer.")

    def resized(rows):
        places = np.arange(max_sequence_length)
        if max_sequence_length <= len(rows):
            return rows[places]
        if beginnings == "repeat":
            return rows[places % len(rows)]
        places = places * (len(rows) - 1) / (max_sequence_length - 1)
        below = np.minimum(places.astype(int), len(rows) - 2) if len(rows) > 1 else np.zeros(len(places), int)
        share = (places - below)[:, None]
        return ((1 - share) * rows[below] + share * rows[np.minimum(below + 1, len(rows) - 1)]).astype(rows.dtype)

    arguments = {"max_sequence_length": max_sequence_length}
    cut = model.arguments.get("truncate_at")
    if cut is not None:
        arguments["truncate_at"] = min(cut, max_sequence_length)
    return rebuilt(model, arguments, {"max_sequence_length": length + 1}, resized)


def with_labels(model, labels):
    """A model of other labels on the same encoder: those of a name that it had keep their weights, others are random.

    Args:
        model: a `BERTClassifier` or `BERTTokenClassifier`; it stays as it is.
        labels: list of names, or their number.

    Returns:
        The new model, of the same class; it is not compiled.

    Raises:
        ValueError: the model has no labels, or `labels` are none.
    """
    if "labels" not in getattr(model, "arguments", ()):
        raise ValueError(f"model ({shown(model)}) must be one with labels, such as a BERTClassifier.")
    before = model.arguments["labels"]
    labels = labels if is_whole(labels) else read_strings("labels", labels, 0)
    count, more = (n if is_whole(n) else len(n) for n in (labels, before))
    named = not is_whole(labels) and not is_whole(before)

    def relabelled(rows):
        new = np.zeros((count, *rows.shape[1:]), rows.dtype)
        if rows.ndim > 1:
            new[:] = ops.convert_to_numpy(keras.random.normal(new.shape, stddev=0.02))
        for i, label in enumerate(labels if named else ()):
            if label in before:
                new[i] = rows[list(before).index(label)]
        return new

    return rebuilt(model, {"labels": labels}, {"labels": more + 1}, relabelled)


def student_of(model, layers, decoder_layers=None):
    """A model of some of the blocks of another, with their weights, to be trained as its student.

    DistilBERT (Sanh et al. 2019, arXiv:1910.01108) is every second block of BERT, further trained by a
    `DistillationLoss`. Embeddings, norms, pooler and head are the model's own.

    Args:
        model: a BERT or one of its heads, a GPT, a `TransformerTranslator` or `Summarizer`; it stays as it is.
        layers: numbers of the blocks that are kept, from 0 upwards; of a translator those of its encoder.
        decoder_layers: those of a translator's decoder. Default: `layers`. [0, 6] beside all of the encoder writes
            faster at little loss (Kasai et al. 2020, arXiv:2006.10369). A `Summarizer` has as many as `layers`, and the
            same ones where its sides share weights.

    Returns:
        The new model, of the same class; it is not compiled.

    Raises:
        ValueError: the model has no blocks, or is quantised; a number is none of its blocks, or not above the one
            before.

    Example:
        >>> student = kerasllm.student_of(teacher, layers=[0, 2, 4, 7, 9, 11])
    """
    if not isinstance(model, Model):
        raise ValueError(f"model ({shown(model)}) must be one of kerasllm's.")
    found = [match for match in (BLOCK.match(v.path) for v in model.weights) if match]
    depths = {side: 1 + max(int(m[2]) for m in found if m[1] == side) for side in {m[1] for m in found}}
    if not depths:
        raise ValueError(f"model ({model.name!r}) has no blocks of a Transformer.")
    has_sides = hasattr(model, "encoder") and hasattr(model, "decoder")
    if decoder_layers is not None and not has_sides:
        raise ValueError(f"decoder_layers ({shown(decoder_layers)}) is for models of an encoder and a decoder.")
    kept = {"encoder": layers, "decoder": layers if decoder_layers is None else decoder_layers}
    names = {"encoder": "layers", "decoder": "layers" if decoder_layers is None else "decoder_layers"}
    kept = {side: _read_blocks(names[side], kept[side], depths.get(side)) for side in kept}
    if has_sides and len(depths) == 1 and kept["encoder"] != kept["decoder"]:
        raise ValueError(f"decoder_layers ({shown(decoder_layers)}) must be layers: both sides share their weights.")
    arguments = {"num_layers": len(kept["encoder"])}
    if "num_decoder_layers" in model.arguments:
        arguments["num_decoder_layers"] = len(kept["decoder"])
    elif len(kept["encoder"]) != len(kept["decoder"]):
        raise ValueError(f"decoder_layers ({shown(decoder_layers)}) must be as many as layers of a {model.name}.")
    for name in BY_BLOCK:
        value = model.arguments.get(name)
        if isinstance(value, list | tuple):
            values = [[by_block(name, value, depths[side])[i] for i in kept[side]] for side in depths]
            if any(other != values[0] for other in values):
                raise ValueError(f"decoder_layers: {name} ({shown(value)}) would differ between encoder and decoder.")
            arguments[name] = values[0]

    def old(path):
        """The path that a part or variable of the new model has in the old one."""
        match = BLOCK.match(path)
        return path if not match else f"{path[: match.start(2)]}{kept[match[1]][int(match[2])]}{path[match.end(2) :]}"

    def new(path):
        match = BLOCK.match(path)
        if not match:
            return path
        number = int(match[2])
        place = kept[match[1]].index(number) if number in kept[match[1]] else None
        return None if place is None else f"{path[: match.start(2)]}{place}{path[match.end(2) :]}"

    changes = {new(path): change for path, change in parts.changes(model).items()}
    changes.pop(None, None)
    return rebuilt(model, {**arguments, "parts": changes or None}, {}, None, source=old)


def _read_blocks(name, numbers, depth):
    """Numbers of blocks, of which there are `depth`, or None where the other side has them."""
    numbers = read_sequence(name, numbers)
    if not numbers or not all(is_whole(i) and 0 <= i < (depth or i + 1) for i in numbers):
        raise ValueError(f"{name} ({shown(numbers)}) must be numbers of blocks, of which there are {depth}, from 0.")
    if any(a >= b for a, b in zip(numbers, numbers[1:], strict=False)):
        raise ValueError(f"{name} ({shown(numbers)}) must be in their order, each once.")
    return [int(i) for i in numbers]


def _renumbered(ids, numbers):
    """Ids, one or several or by names, as a smaller vocabulary has them; those that it has not are gone."""
    if isinstance(ids, Mapping):
        return {name: _renumbered(value, numbers) for name, value in ids.items()}
    if isinstance(ids, list | tuple):
        return type(ids)(numbers[i] for i in ids if i in numbers)
    return numbers.get(ids)


def _renumbered_defaults(defaults, numbers):
    """A `GenerationConfig` with the ids of a smaller vocabulary."""
    given = defaults.given()
    for name in [name for name in given if OPTIONS[name].holds_ids]:
        if not is_whole(given[name]):
            raise ValueError(f"model.generation_defaults: {name} has ids, which would be those of other tokens.")
        given[name] = numbers.get(given[name])
    return GenerationConfig(**given)


def _one_tokenizer(model):
    """The one tokenizer of a model, and the arguments that are its size."""
    if not isinstance(model, Model):
        raise ValueError(f"model ({shown(model)}) must be one of kerasllm's.")
    sizes = [name for name in model.arguments if name.endswith("vocabulary_size")]
    first = model.required_tokenizer(next(iter(model.tokenizer_prefixes)))
    if len(sizes) > 1 and not model.arguments.get("share_embeddings"):
        raise ValueError(f"model ({model.name!r}) must have one vocabulary for both sides (share_embeddings=True).")
    if any(tokenizer != first for tokenizer in model.tokenizers.values()):
        raise ValueError(f"model ({model.name!r}) must have one tokenizer for both sides.")
    return first, sizes


def _sources(tokenizer, tokens, beginnings):
    """For each new token the ids whose mean its embedding begins with, or None for all."""
    if beginnings == "mean":
        return [None] * len(tokens)
    if not isinstance(beginnings, Mapping):
        raise ValueError(f"beginnings ({shown(beginnings)}) must be 'mean' or a dict of texts.")
    missing = sorted(set(tokens) ^ set(beginnings))
    if missing:
        raise ValueError(f"beginnings must have a text for each of tokens and for no other: {shown(missing)}.")
    rows = tokenizer.encode_batch([beginnings[token] for token in tokens], special_tokens=False)
    for token, row in zip(tokens, rows, strict=True):
        if not row:
            raise ValueError(f"beginnings: {shown(beginnings[token])} for {shown(token)} has no token.")
    return [np.array(row) for row in rows]


def rebuilt(model, arguments, larger, change, tokenizer=None, source=str, edit=None):
    """A model of other arguments with the same weights, those changed in which `larger` arguments have another shape.

    Args:
        model: the model.
        arguments: dict, in place of its own.
        larger: dict, arguments by whose shapes is told which axis of which variable is meant; empty for none.
        change: function (array) -> array, of which the first axis is that.
        tokenizer: in place of its own.
        source: function, path of a variable of the new model -> its path in the model.
        edit: function (path, array) -> array, of variables that other arguments do not tell.
    """
    if not isinstance(model, Model):
        raise ValueError(f"model ({shown(model)}) must be one of kerasllm's.")
    quantized = [path for path, part in parts.changes(model).items() if "quantization" in part]
    if quantized:
        raise ValueError(f"model: {quantized[0]} is quantized; change the model's shape before that.")
    config, values = model.get_config(), {v.path: v for v in model.weights}
    others = _shapes_of(type(model), config | larger) if larger else {}

    def value(path):
        array = np.array(ops.convert_to_numpy(values[source(path)].value))
        for axis, (a, b) in enumerate(zip(array.shape, others.get(path, array.shape), strict=True)):
            if a != b:
                return np.moveaxis(change(np.moveaxis(array, axis, 0)), 0, axis)
        return array if edit is None else edit(path, array)

    def read(shapes):
        return {path: LazyArray(shape, np.dtype("float32"), partial(value, path)) for path, shape in shapes.items()}

    new = built_with(lambda: type(model).from_config(config | arguments), read)
    for name, own in model.tokenizers.items():
        setattr(new, name, tokenizer or own)
    for name in KEPT:
        if name in vars(model):
            object.__setattr__(new, name, vars(model)[name])
    return new


def _shapes_of(model_class, config):
    """The shapes of a model's weights, which is not built: dict path -> shape."""
    found = {}

    def read(shapes):
        found.update(shapes)
        raise _Enough

    try:
        built_with(lambda: model_class.from_config(config), read)
    except _Enough:
        return found


class _Enough(Exception):
    """The shapes are known."""
