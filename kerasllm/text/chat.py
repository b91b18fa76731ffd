"""Chats as text: the templates that chat models come with."""

import collections.abc
import dataclasses

import numpy as np

from kerasllm.arguments import shown
from kerasllm.text import template_processes
from kerasllm.text import tools as tools_

# What a chat may be given beside the generation's settings and the template's own variables.
ARGUMENTS = ("tools", "documents", "chat_template", "add_generation_prompt", "continue_final_message")
# Names of what an assistant thought before its answer. Templates read the first, older ones the second.
REASONING = ("reasoning_content", "thinking", "reasoning")
# Its place in the text is where a message that goes on ends. The space shows whether the template keeps spaces.
END = "CONTINUE_FINAL_MESSAGE_TAG "


def render(
    template,
    messages,
    tools=None,
    documents=None,
    add_generation_prompt=False,
    continue_final_message=False,
    operation="render",
    **variables,
):
    """Fill in a chat template.

    It runs in jinja2's sandbox, with the settings and the functions of transformers, in a process of its own with
    limits of time and memory: templates come with models that strangers wrote.

    Args:
        template: string, a jinja template.
        messages, tools, documents, add_generation_prompt, continue_final_message: as for
            `Tokenizer.apply_chat_template`.
        operation: "render", or "render_marked", which shows what an assistant wrote (`template_worker`).
        **variables: what else the template may use: special tokens, switches of its own.

    Raises:
        ImportError: jinja2 is not installed.
        ValueError: `messages` is no chat; the template is malformed, reaches for what it must not, does not read what
            the messages hold, refuses them, or needs too much time or memory.
    """
    check_messages(messages)
    if continue_final_message and add_generation_prompt:
        raise ValueError("add_generation_prompt and continue_final_message must not both be given: which one is begun?")
    try:
        chat = [_with_reasoning(_plain(_without_none(message))) for message in messages]
        variables = _plain(variables) | {
            "tools": None if tools is None else [_plain(tools_.schema(tool)) for tool in tools],
            "documents": _checked_documents(documents),
            "add_generation_prompt": add_generation_prompt,
        }
    except RecursionError as error:
        raise ValueError("messages, tools, documents and variables must not nest so deeply.") from error
    field = continue_final_message if isinstance(continue_final_message, str) else "content"
    if continue_final_message:
        _check_continued(template, chat[-1], field)
        chat[-1] = _marked(chat[-1], field)
    text = _render_parts(operation, template, chat, variables)
    return _cut(text) if continue_final_message else text


def choose(templates, name=None, tools=None):
    """One of the templates of a model.

    Args:
        templates: the `chat_template` of a tokenizer_config.json: a string, a dict name -> string, or a list of
            dicts with `name` and `template`.
        name: the name of one, or a template itself. Default: "tool_use" for a chat with tools, else "default".
        tools: the tools of the chat, or None.

    Raises:
        ValueError: there is no such template.
    """
    if isinstance(templates, list | tuple):
        templates = {str(t.get("name")): t.get("template") for t in templates if isinstance(t, dict)}
    named = templates if isinstance(templates, dict) else {"default": templates}
    if name is None:
        name = "tool_use" if tools is not None and isinstance(named.get("tool_use"), str) else "default"
    elif not isinstance(name, str):
        raise ValueError(f"chat_template ({shown(name)}) must be a string: a name, or a template.")
    elif "{" in name:
        return name
    if not isinstance(named.get(name), str):
        known = ", ".join(sorted(repr(key) for key, value in named.items() if isinstance(value, str)))
        if not known:
            raise ValueError("tokenizer has no chat_template.")
        raise ValueError(f"chat_template ({shown(name)}) must be one of the tokenizer's, {known}, or a template.")
    return named[name]


def variables_of(template):
    """The names of the variables that a template reads."""
    return set(template_processes.ask("variables_of", template).splitlines())


def take_arguments(templates, options, others):
    """Take out of the options of a call what is for the chat template: `ARGUMENTS` and variables that it reads.

    Args:
        templates: as for `choose`.
        options: dict, which what is returned leaves.
        others: names of options that are something else, also where a template reads a variable of this name.
    """
    taken = {name: options.pop(name) for name in ARGUMENTS if name in options}
    if unknown := set(options) - set(others):
        template = choose(templates, taken.get("chat_template"), taken.get("tools"))
        taken |= {name: options.pop(name) for name in unknown & variables_of(template) - {"messages"}}
    return taken


def check_messages(messages):
    """Raise a `ValueError` unless `messages` is a list of dicts with a string `role` and `content`.

    The content is a string or a list of parts, dicts with `type`. It may be None or absent where there is something
    else, as `tool_calls`. What a tool answers may be anything.
    """
    if not isinstance(messages, list | tuple) or not messages:
        raise ValueError(f"messages ({shown(messages)}) must be a non-empty list of dicts with role and content.")
    for i, message in enumerate(messages):
        if not isinstance(message, dict) or not isinstance(message.get("role"), str) or len(message) < 2:
            raise ValueError(f"messages[{i}] ({shown(message)}) must be a dict with role and content, strings.")
        content = message.get("content")
        if isinstance(content, str | None) or message["role"] in ("tool", "function", "ipython"):
            continue
        if not isinstance(content, list | tuple) or not all(isinstance(part, dict) for part in content):
            raise ValueError(
                f"messages[{i}] ({shown(message)}): content must be a string, or a list of parts, which are dicts of "
                "strings type and text."
            )


def _render_parts(operation, template, chat, variables):
    """Render messages, of which some have a content in parts: as the template reads it, else as their text."""
    parted = [i for i, message in enumerate(chat) if isinstance(message.get("content"), list) and _is_parts(message)]
    if not parted:
        return template_processes.ask(operation, template, chat, variables)
    others = [(i, part) for i in parted for part in chat[i]["content"] if "text" not in part]
    try:
        text = template_processes.ask(operation, template, chat, variables)
        texts = [part["text"].strip() for i in parted for part in chat[i]["content"] if "text" in part]
        # Some write the list as Python does, some leave it out.
        is_read = all(t in text for t in texts) and not any(str(chat[i]["content"]) in text for i in parted)
    except ValueError:
        if others:
            raise
        is_read = False
    if is_read and others:
        texts = {i: [part for part in chat[i]["content"] if "text" in part] for i in parted}
        is_read = template_processes.ask(operation, template, _with_contents(chat, texts), variables) != text
    if not is_read and others:
        i, part = others[0]
        raise ValueError(
            f"messages[{i}] has a part ({shown(part)}) that the chat template does not read; text it does."
        )
    if is_read:
        return text
    joined = {i: "".join(part["text"] for part in chat[i]["content"]) for i in parted}
    return template_processes.ask(operation, template, _with_contents(chat, joined), variables)


def _is_parts(message):
    # What a tool answers may be a list of anything.
    parts = message["content"]
    return all(isinstance(p, dict) and {"type", "text"} & set(p) and isinstance(p.get("text", ""), str) for p in parts)


def _with_contents(chat, contents):
    return [message | {"content": contents[i]} if i in contents else message for i, message in enumerate(chat)]


# What a template sees


def _without_none(message):
    # Some interfaces write `tool_calls=None`; templates ask whether the key is there.
    return {name: value for name, value in message.items() if value is not None}


def _plain(value):
    """A copy made of JSON's types, whose methods do no harm; anything else is the name of its type."""
    if value is None or isinstance(value, bool):
        return value
    for kind in (str, int, float):
        if isinstance(value, kind):
            return value if type(value) is kind else getattr(kind, f"__{kind.__name__}__")(value)
    if isinstance(value, collections.abc.Mapping):
        return {_plain(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(map(_plain, value)) if type(value) in (list, tuple) else list(map(_plain, value))
    if isinstance(value, np.generic):
        return _plain(value.item())
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: _plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if callable(getattr(value, "model_dump", None)):
        return _plain(value.model_dump())
    return f"<{type(value).__name__}>"


def _with_reasoning(message):
    reasoning = next((message[name] for name in REASONING if message.get(name) is not None), None)
    return message if reasoning is None else {"thinking": reasoning, **message, "reasoning_content": reasoning}


def _checked_documents(documents):
    if documents is None:
        return None
    if not isinstance(documents, list | tuple) or not all(isinstance(document, dict) for document in documents):
        raise ValueError(f"documents ({shown(documents)}) must be a list of dicts, with title and text for example.")
    return _plain(list(documents))


# A message that goes on


def _check_continued(template, message, field):
    fields = [name for name in REASONING if name in message] if field in REASONING else [field]
    if message.get(field) is None:
        raise ValueError(f"continue_final_message: the last of messages has no {shown(field)} to go on with.")
    if not any(name in template for name in fields):
        raise ValueError(f"continue_final_message ({shown(field)}) must be what the chat template reads.")


def _marked(message, field):
    """The message with `END` after its text."""
    content = message[field]
    if isinstance(content, str):
        same = [name for name in REASONING if message.get(name) == content] if field in REASONING else [field]
        return message | {name: content + END for name in same}
    parts = [dict(part) for part in content]
    for part in reversed(parts):
        if "text" in part:
            part["text"] += END
            return message | {field: parts}
    raise ValueError("continue_final_message: the last of messages has no text to go on with.")


def _cut(text):
    """The text up to the mark; without the spaces before it where the template has taken those of the mark."""
    place = text.rfind(END.strip())
    if place < 0:
        raise ValueError("continue_final_message: the chat template leaves the last of messages out, or changes it.")
    return text[:place] if text[place:].startswith(END) else text[:place].rstrip()
