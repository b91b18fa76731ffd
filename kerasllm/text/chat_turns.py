"""Which tokens of a chat an assistant wrote: what training on chats learns.

A template says so itself by `{% generation %}` (as transformers' `return_assistant_tokens_mask` reads it). Of others
the chat is rendered up to each answer, with the beginning of an answer, and up to its end: what lies between is the
answer. No string is searched for.

    <|user|>Hi<|end|><|assistant|>Hello!<|end|>
                                  ^^^^^^^^^^^^^
"""

import re

from kerasllm.arguments import shown
from kerasllm.text import chat
from kerasllm.text.template_worker import BEGIN, END

ROLES = ("system", "developer", "user", "assistant", "tool", "function", "ipython")
GENERATION = re.compile(r"\{%-?\+?\s*generation\b")


def check_chat(messages):
    """Raise `ValueError` unless messages are a chat with answers to learn: roles are known, no answer is empty."""
    chat.check_messages(messages)
    for i, message in enumerate(messages):
        if message["role"] not in ROLES:
            raise ValueError(f"messages[{i}]: role ({shown(message['role'])}) must be one of {', '.join(ROLES)}.")
        if message["role"] == "assistant" and not (message.get("content") or message.get("tool_calls")):
            raise ValueError(
                f"messages[{i}] is an assistant's without content or tool_calls: there is nothing to learn."
            )
    if not any(message["role"] == "assistant" for message in messages):
        raise ValueError("messages have no answer of an assistant: there is nothing to learn.")


def answer_spans(template, messages, variables, first=0):
    """The text of a chat, and where in it stands what the assistant wrote in the messages from `first` on.

    Args:
        template: string, a jinja template.
        messages: a chat, as `check_chat` wants it.
        variables: dict, what `chat.render` takes besides.
        first: the number of the first message that counts.

    Returns:
        (text, list of (start, end)).

    Raises:
        ValueError: the template writes an answer in another way when others follow, so that it is not told apart; or
            writes none.
    """
    if GENERATION.search(template) and not first:
        return _marked(template, messages, variables)
    text = chat.render(template, messages, **variables)
    spans = []
    for i in range(first, len(messages)):
        if messages[i]["role"] != "assistant":
            continue
        whole = text if i + 1 == len(messages) else chat.render(template, messages[: i + 1], **variables)
        before = chat.render(template, messages[:i], add_generation_prompt=True, **variables) if i else ""
        if not (whole.startswith(before) and text.startswith(whole)):
            raise ValueError(
                f"the chat template writes messages[{i}] in another way where it is asked for, or where others follow: "
                "which tokens are the answer's is not told. A template with {% generation %} tells it (chat_template="
                "...), and loss_on='last' needs only the last."
            )
        spans.append((len(before), len(whole)))
    return text, spans


def _marked(template, messages, variables):
    text = chat.render(template, messages, operation="render_marked", **variables)
    parts = re.split(f"({BEGIN}|{END})", text)
    spans, plain, start = [], "", None
    for part in parts:
        if part not in (BEGIN, END):
            plain += part
        elif (part == BEGIN) == (start is None):
            start = len(plain) if part == BEGIN else spans.append((start, len(plain)))
        else:
            raise ValueError("the chat template has a generation inside another, or a message has its marks.")
    if start is not None or not spans:
        raise ValueError("the chat template has {% generation %}, and writes no whole answer of this chat in it.")
    return plain, spans


def encode_answers(tokenizer, text, spans):
    r"""The ids of a chat's text, and which of them are inside the spans: lists of as many int and bool.

    White space after the last special token of an answer, as "\n" in "<|im_end|>\n", is not the answer's: a generation
    has ended before it.
    """
    (encoding,) = tokenizer.encodings([text], special_tokens=False)
    ids, special = encoding.ids, set(tokenizer.special_ids)
    counted = [False] * len(ids)
    for start, end in spans:
        inside = [i for i, (a, b) in enumerate(encoding.offsets) if b > start and a < end and b > a]
        ends = [n for n, i in enumerate(inside) if ids[i] in special]
        if ends and not text[encoding.offsets[inside[ends[-1]]][1] : end].strip():
            inside = inside[: ends[-1] + 1]
        for i in inside:
            counted[i] = True
    return ids, counted
