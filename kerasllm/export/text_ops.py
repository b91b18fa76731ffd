"""Tokenizers inside a SavedModel: strings to ids and back by TensorFlow's own operations.

What they give is compared with the Python tokenizer on texts that are hard to cut, before anything is written.
"""

import numpy as np

from kerasllm.export.text_graph.hard_texts import HARD_TEXTS


def graph_tokenizer(tokenizer, with_places=False):
    """A tokenizer as TensorFlow operations, which a SavedModel holds.

        module = tf.Module()
        module.tokenizer = graph_tokenizer(tokenizer)
        module.tokenize = tf.function(module.tokenizer.encode, input_signature=[tf.TensorSpec([None], tf.string)])
        tf.saved_model.save(module, "folder")  # opens where TensorFlow alone is installed

    Args:
        tokenizer: a `kerasllm.Tokenizer`.
        with_places: whether `encode` is to tell where tokens stand in a text.

    Returns:
        A `GraphTokenizer`, a `tf.Module` with `encode(texts, pairs=None, add_special_tokens=True, with_places=False)`
        and `decode(token_ids, padding_mask)`.

    Raises:
        ValueError: there are no operations for a part of the tokenizer, or they gave something else for one of
            `HARD_TEXTS`.
    """
    from kerasllm.export.text_graph.tokenizer import GraphTokenizer

    try:
        graph = GraphTokenizer(tokenizer)
        check_equal(graph, tokenizer, HARD_TEXTS + special_texts(tokenizer))
        if with_places:
            check_places(graph, tokenizer, HARD_TEXTS + special_texts(tokenizer))
    except (KeyError, ValueError) as error:
        reason = f"its vocabulary lacks {error}" if isinstance(error, KeyError) else error
        raise ValueError(f"{tokenizer} cannot become a part of a graph: {reason}.") from error
    return graph


def special_texts(tokenizer):
    """Texts with the tokenizer's added tokens in them: a few tokens of each, at most."""
    tokens = [token.content for _, token in sorted(tokenizer.backend.get_added_tokens_decoder().items())]
    tokens = tokens[:8] + tokens[8:][-2:]
    return [f"a{token}b  {token}\n{token} {token}C {token.lower()}" for token in tokens]


def check_equal(graph, tokenizer, texts):
    """Compare a graph with the tokenizer that it was made of.

    Args:
        graph: a `GraphTokenizer`.
        tokenizer: a `kerasllm.Tokenizer`.
        texts: list of strings.

    Raises:
        ValueError: they differ; it names the first text.
    """
    import tensorflow as tf

    with tf.device("CPU"):
        encode, decode = tf.function(graph.encode, autograph=False), tf.function(graph.decode, autograph=False)
        for pairs in (None, texts[1:] + texts[:1]):
            expected = tokenizer.encodings(texts, pairs)
            found = encode(tf.constant(texts), None if pairs is None else tf.constant(pairs))
            found = {name: x.numpy() for name, x in found.items()}
            for text, encoding, ids, mask, segments in zip(texts, expected, *found.values(), strict=True):
                if ids[mask].tolist() != encoding.ids or segments[mask].tolist() != encoding.type_ids:
                    raise ValueError(f"{text!r} would have the ids {ids[mask].tolist()}, not {encoding.ids}")
        rows = [encoding.ids[:size] for encoding in expected for size in {len(encoding.ids), len(encoding.ids) // 2}]
        mask = np.arange(max(map(len, rows))) < np.array([[len(row)] for row in rows])
        token_ids = np.zeros(mask.shape, "int32")
        token_ids[mask] = [i for row in rows for i in row]
        for row, text in zip(rows, decode(tf.constant(token_ids), tf.constant(mask)).numpy(), strict=True):
            text = text.decode(errors="replace")
            if text != tokenizer.decode(row):
                raise ValueError(f"{row} would be decoded as {text!r}, not {tokenizer.decode(row)!r}")


def check_places(graph, tokenizer, texts):
    """Compare where a graph sees tokens with where the tokenizer does; arguments and errors as `check_equal`."""
    import tensorflow as tf

    if not hasattr(graph.model, "sizes"):
        raise ValueError(f"its model is {type(graph.model).__name__}, of whose tokens a graph does not know the places")
    questions = texts[1:] + texts[:1]
    places = tf.function(graph.encode, autograph=False)(tf.constant(questions), tf.constant(texts), with_places=True)
    encodings = tokenizer.encodings(questions, texts)
    for text, encoding, found in zip(texts, encodings, places["places"].numpy().tolist(), strict=True):
        parts = zip(encoding.offsets, encoding.sequence_ids, strict=True)
        expected = [list(place) if part == 1 else [0, 0] for place, part in parts]
        if found[: len(expected)] != expected:
            raise ValueError(f"the tokens of {text!r} would stand at {found[: len(expected)]}, not {expected}")
