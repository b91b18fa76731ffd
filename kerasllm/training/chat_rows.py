"""Chats as rows of token ids, with what of each is to be learnt: lists, JSONL, prompts with completions."""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from kerasllm.arguments import check_choice, read_sequence, shown
from kerasllm.text import chat, chat_turns, corpora

LOSS_ON = ("assistant", "last", "all")
FIELDS = ("messages", "prompt", "completion", "tools", "documents", "chat_template_kwargs")


class Row(NamedTuple):
    """A chat as ids.

    Args:
        ids: (N,) int32.
        learnt: (N,) bool, the tokens that are predicted and counted; never the first.
    """

    ids: np.ndarray
    learnt: np.ndarray


def read_chats(name, chats):
    """What an argument gives: a list of (what an error calls it, chat).

    Args:
        name: of the argument.
        chats: sequence of chats, as `encode_chat` takes them; or a path of a JSONL file, or several.
    """
    if isinstance(chats, str | Path) or (
        isinstance(chats, list | tuple) and chats and all(isinstance(c, str | Path) for c in chats)
    ):
        found = [
            row for path in corpora.find_files(chats, any_ending=True, name=name) for row in corpora.read_objects(path)
        ]
    else:
        found = [(f"{name}[{i}]", chat) for i, chat in enumerate(read_sequence(name, chats))]
    if not found:
        raise ValueError(f"{name} ({shown(chats)}) must hold a chat at least.")
    return found


def encode_chat(place, entry, tokenizer, loss_on="assistant", chat_template=None):
    """The `Row` of a chat.

    Args:
        place: what an error calls it.
        entry: list of messages; or a dict of `messages`, or of `prompt` and `completion`, both texts or both lists of
            messages; and perhaps `tools`, `documents` and `chat_template_kwargs`.
        tokenizer: a `Tokenizer`.
        loss_on: "assistant", all its answers; "last", the last one; "all", every token but the first.
        chat_template: as for `Tokenizer.apply_chat_template`.

    Raises:
        ValueError: the chat is malformed, or nothing in it is to be learnt; the error begins with `place`.
    """
    check_choice("loss_on", loss_on, LOSS_ON)
    try:
        entry = {"messages": entry} if isinstance(entry, list | tuple) else entry
        if not isinstance(entry, Mapping):
            raise ValueError(f"({shown(entry)}) must be a list of messages, or a dict.")
        said = {field: value for field, value in entry.items() if field in FIELDS and value is not None}
        if not ({"messages"} <= set(said) or {"prompt", "completion"} <= set(said)) or (
            "messages" in said and {"prompt", "completion"} & set(said)
        ):
            raise ValueError(f"({shown(entry)}) must have messages, or prompt and completion.")
        if isinstance(said.get("prompt"), str) or isinstance(said.get("completion"), str):
            ids, learnt = _of_texts(said, tokenizer)
        else:
            ids, learnt = _of_messages(said, tokenizer, loss_on, chat_template)
    except ValueError as error:
        raise ValueError(f"{place} {error}" if str(error).startswith("(") else f"{place}: {error}") from error
    learnt = np.array([False, *([loss_on == "all"] * (len(ids) - 1))]) | np.array(learnt)
    learnt[0] = False
    if not learnt.any():
        raise ValueError(f"{place}: no token of it is to be learnt.")
    return Row(np.array(ids, "int32"), learnt)


def _of_texts(said, tokenizer):
    """A prompt and its completion as they are, with the tokenizer's bos before and eos after them."""
    prompt, completion = said["prompt"], said["completion"]
    if not (isinstance(prompt, str) and isinstance(completion, str)):
        raise ValueError("prompt and completion must both be texts, or both messages.")
    if not completion.strip():
        raise ValueError(f"completion ({completion!r}) must be a text: there is nothing to learn.")
    before = [] if tokenizer.bos_id is None else [tokenizer.bos_id]
    after = [] if tokenizer.eos_id is None else [tokenizer.eos_id]
    given, answer = (tokenizer.encode(text, special_tokens=False) if text else [] for text in (prompt, completion))
    ids = [*before, *given, *answer, *after]
    return ids, [False] * (len(before) + len(given)) + [True] * (len(answer) + len(after))


def _of_messages(said, tokenizer, loss_on, chat_template):
    messages, first = said.get("messages"), 0
    if messages is None:
        prompt, completion = (list(read_sequence(name, said[name])) for name in ("prompt", "completion"))
        messages, first = prompt + completion, len(prompt)
    chat_turns.check_chat(messages)
    if loss_on == "last":
        first = max(i for i, message in enumerate(messages) if message["role"] == "assistant")
    variables = tokenizer.chat_variables() | dict(said.get("chat_template_kwargs", {}))
    variables |= {name: said[name] for name in ("tools", "documents") if name in said}
    template = chat.choose(tokenizer.config.get("chat_template"), chat_template, said.get("tools"))
    text, spans = chat_turns.answer_spans(template, messages, variables, first)
    return chat_turns.encode_answers(tokenizer, text, spans)
