"""Chats as text: the templates that chat models come with."""

import datetime
import json


def render(template, messages, **variables):
    """Fill in a chat template.

    It runs in jinja2's sandbox, with the settings and the functions of transformers: templates come with models that
    strangers wrote.

    Args:
        template: string, a jinja template.
        messages: list of dicts with strings `role` ("system", "user", "assistant") and `content`.
        **variables: what the template may use beside `messages`: special tokens, `add_generation_prompt`.

    Raises:
        ImportError: jinja2 is not installed.
        ValueError: `messages` is not such a list; the template is malformed, reaches for what it must not, or refuses
            the messages.
    """
    try:
        import jinja2
        from jinja2.sandbox import ImmutableSandboxedEnvironment
    except ImportError as error:
        raise ImportError("Chat templates need jinja2: `pip install 'kerasllm[chat]'`.") from error
    check_messages(messages)

    def refuse(message):
        raise jinja2.TemplateError(message)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = lambda value, indent=None: json.dumps(value, ensure_ascii=False, indent=indent)
    environment.globals["raise_exception"] = refuse
    environment.globals["strftime_now"] = lambda form: datetime.datetime.now().strftime(form)
    try:
        return environment.from_string(template).render(messages=messages, **variables)
    except Exception as error:  # whatever the template's expressions run into
        raise ValueError(f"the chat template cannot be filled in: {error}") from error


def check_messages(messages):
    """Raise a `ValueError` unless `messages` is a list of dicts with strings `role` and `content`."""
    if not isinstance(messages, list | tuple) or not messages:
        raise ValueError(f"messages ({messages!r}) must be a non-empty list of dicts with role and content.")
    for i, message in enumerate(messages):
        if not isinstance(message, dict) or not all(isinstance(message.get(key), str) for key in ("role", "content")):
            raise ValueError(f"messages[{i}] ({message!r}) must be a dict with strings role and content.")
