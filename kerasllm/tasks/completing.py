"""What language models and translators do with texts: prompts in any form to ids, completions to texts.

A model, or an exported file that stands for one, is here what has `generation_defaults`; `end_token_ids`;
`output_vocabulary_size`; `token_id(role)`; `required_tokenizer(name)`; and for what it writes `output_tokenizer`, which
may be None, and `required_output_tokenizer()`. `Generation`s are those of `kerasllm.generation`.
"""

import dataclasses
import functools
import itertools
from collections.abc import Mapping

import numpy as np

from kerasllm.arguments import read_sequence, read_strings, read_texts, shown
from kerasllm.text import batches
from kerasllm.text.completions import CompletionWriter


def read_prompts(model, prompts, strip_prompt):
    """Prompts in any form as ids, and what gives their completions the same form.

    Args:
        model: what continues them.
        prompts: as for `LanguageModel.generate`.
        strip_prompt: whether the prompt is left out of the ids that are given back.

    Returns:
        Lists of ids; and a function (for each prompt a list of n `Generation`s, n) -> results.

    Raises:
        ValueError: there are no prompts; one is empty, or holds unknown ids; strings without a tokenizer; an empty
            string without a start token.
    """
    if isinstance(prompts, str):
        ids, results_of = read_prompts(model, [prompts], strip_prompt)
        return ids, lambda rows, n: results_of(rows, n)[0]
    if are_texts("prompts", prompts):
        tokenizer, texts = model.required_tokenizer(), read_strings("prompts", prompts)
        return [tokenizer.encode(text) or _start(tokenizer) for text in texts], texts_of
    ids = read_rows("prompts", prompts, model.output_vocabulary_size)
    if isinstance(prompts, list | tuple):
        return ids, functools.partial(ids_of, strip_prompt=strip_prompt)

    def array_of(rows, n):
        flat = ids_of([[generation] for row in rows for generation in row], 1, strip_prompt)
        array, _ = batches.pad(flat, value=model.token_id("pad") or 0)
        return array if n == 1 else array.reshape(len(rows), n, -1)

    return ids, array_of


def read_chats(model, messages, options):
    """Chats as ids.

    Args:
        model: what answers them.
        messages: of one chat, or a list of such lists.
        options: dict of the call's options, which those of the chat template leave.

    Returns:
        Lists of ids; and the function that undoes the list on the answers to one chat.

    Raises:
        ValueError: there are no chats; the tokenizer has no chat template, or it refuses them.
    """
    is_one = isinstance(messages, list | tuple) and len(messages) > 0 and isinstance(messages[0], dict)
    chats = [messages] if is_one else messages
    if not isinstance(chats, list | tuple) or not chats:
        raise ValueError(f"messages ({shown(messages)}) must be a non-empty list of dicts, or a list of such lists.")
    tokenizer = model.required_tokenizer()
    # What is a field of the `GenerationConfig` is none of the template's variables.
    template = tokenizer.take_chat_arguments(options, vars(model.generation_defaults))
    ids = [tokenizer.encode_chat(chat, **template) for chat in chats]
    return ids, (lambda answers: answers[0]) if is_one else list


def read_streamed(model, prompt, options):
    """The ids of what a stream continues, a string or the messages of a chat; `options` as for `read_chats`."""
    if isinstance(prompt, list | tuple) and prompt and all(isinstance(message, dict) for message in prompt):
        return read_chats(model, prompt, options)[0][0]
    if not isinstance(prompt, str):
        raise ValueError(f"prompt ({shown(prompt)}) must be a string or the messages of a chat.")
    return read_prompts(model, prompt, True)[0][0]


def read_sources(model, name, texts):
    """Texts to translate as ids.

    Args:
        model: what translates them.
        name: of the argument, for errors.
        texts: a string or a list of strings.

    Returns:
        Lists of ids; and the function that undoes the list on the translations of one text.

    Raises:
        ValueError: a text is empty; a tokenizer is missing.
    """
    texts, unlist = read_texts(name, texts)
    model.required_output_tokenizer()
    return model.required_tokenizer("source_tokenizer").encode_batch(texts), unlist


def check_streamed(config):
    """Raise `ValueError` unless a `GenerationConfig` is for one sequence without beams."""
    for name in ("num_beams", "num_return_sequences"):
        if getattr(config, name) > 1:
            raise ValueError(f"{name} ({getattr(config, name)}) must be 1 in a stream.")


def ends_and_writer(model, config):
    """How completions end, and who writes them.

    Args:
        model: what completes.
        config: a `GenerationConfig`.

    Returns:
        The ids that end a completion, a tuple; the function that finds stop strings, as for `Task`, None where there
        are none; and a `CompletionWriter`, None without a tokenizer.

    Raises:
        ValueError: `stop` holds an id outside the vocabulary, or a string where there is no tokenizer.
    """
    strings = [stop for stop in config.stop if isinstance(stop, str)]
    ids = [stop for stop in config.stop if not isinstance(stop, str)]
    batches.check_ids(np.array(ids, "int64"), model.output_vocabulary_size, "stop")
    end_ids = (*model.end_token_ids, *ids)
    tokenizer = model.required_output_tokenizer() if strings else model.output_tokenizer
    writer = tokenizer and CompletionWriter(tokenizer, strings, config.min_new_tokens or 0, end_ids)
    return end_ids, writer.find_stop if strings else None, writer


def with_text(generation, writer, strip_prompt):
    """A `Generation` with its text, with or without that of its prompt, where there is a `CompletionWriter`."""
    if writer is None:
        return generation
    prompt = generation.token_ids[: generation.prompt_length].tolist()
    text = writer.write(prompt, generation.completion.tolist())
    return dataclasses.replace(generation, text=text if strip_prompt else writer.write_prompt(prompt) + text)


def texts_of(rows, n):
    """The texts of lists of n `Generation`s, in lists or for n = 1 alone."""
    return unnested([[generation.text for generation in row] for row in rows], n)


def ids_of(rows, n, strip_prompt):
    """The ids of lists of n `Generation`s, with or without their prompt's, in lists or for n = 1 alone."""
    return unnested([[(g.completion if strip_prompt else g.token_ids).tolist() for g in row] for row in rows], n)


def unnested(rows, n):
    """Lists of n results, or for n = 1 the results themselves."""
    return rows if n > 1 else [row[0] for row in rows]


def are_texts(name, rows):
    """Whether the rows of an argument are texts, and not ids; a `ValueError` where there are no rows."""
    if not hasattr(rows, "__len__") or getattr(rows, "ndim", 1) == 0 or len(rows) == 0:
        raise ValueError(
            f"{name} ({shown(rows)}) must be a string, a list of strings or of lists of ids, or an int array."
        )
    return not isinstance(rows, Mapping) and all(isinstance(row, str) for row in rows)


def read_rows(name, rows, vocabulary_size):
    """Rows of ids in any form as checked lists of Python ints.

    Args:
        name: of the argument, for errors.
        rows: lists of ids, an int array or tensor (B, T); or a mapping of `token_ids` and `padding_mask`, or of
            `input_ids` and `attention_mask` as the tokenizers of transformers give them.
        vocabulary_size: what all ids are below.

    Raises:
        ValueError: no rows, an empty row, or ids that are no whole numbers in [0, vocabulary_size).
    """
    if isinstance(rows, Mapping):
        rows = _unpadded(name, rows)
    lists = [read_ids(f"{name}[{i}]", row, vocabulary_size) for i, row in enumerate(read_sequence(name, rows))]
    if not lists:
        raise ValueError(f"{name} ({shown(rows)}) must not be empty.")
    return lists


def read_ids(name, row, vocabulary_size):
    """One row of ids, a list, an array or a tensor, as for `read_rows`."""
    array = _as_numpy(row)
    if array.ndim != 1 or array.size == 0 or array.dtype.kind not in "iu":
        raise ValueError(f"{name} ({shown(row)}) must be a non-empty list of token ids.")
    batches.check_ids(array, vocabulary_size, name)
    return array.tolist()


def _unpadded(name, mapping):
    """The rows of ids of a mapping, without padding."""
    keys = ("token_ids", "padding_mask") if "token_ids" in mapping else ("input_ids", "attention_mask")
    if set(keys) != set(mapping):
        raise ValueError(
            f"{name} ({sorted(map(str, mapping))}) must hold token_ids and padding_mask, or input_ids and "
            "attention_mask, and nothing else."
        )
    ids, masks = ([_as_numpy(row) for row in read_sequence(f"{name}[{key!r}]", mapping[key])] for key in keys)
    for i, (row, mask) in enumerate(itertools.zip_longest(ids, masks)):
        if row is None or mask is None or row.ndim != 1 or row.shape != mask.shape or not np.isin(mask, (0, 1)).all():
            shapes = [np.shape(mapping[key]) if hasattr(mapping[key], "shape") else "(a list)" for key in keys]
            raise ValueError(
                f"{name}[{i}]: {keys[0]} {shapes[0]} and {keys[1]} {shapes[1]} must be of one shape (B, P), the mask "
                "True or 1 where a token is real."
            )
    return [row[mask.astype("bool")] for row, mask in zip(ids, masks, strict=True)]


def _as_numpy(row):
    """An array of a row; of what is none, such as lists of unequal lengths, one of objects."""
    try:
        return np.asarray(row.cpu() if hasattr(row, "cpu") else row)  # numpy does not reach into a GPU's memory
    except (RuntimeError, TypeError, ValueError):
        return np.empty(0, "O")


def _start(tokenizer):
    if tokenizer.bos_id is None:
        raise ValueError("prompts: an empty prompt needs a tokenizer with a start token (bos), and this has none.")
    return [tokenizer.bos_id]
