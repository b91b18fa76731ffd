"""Tools of a chat: Python functions as the JSON schemas that chat templates show to models."""

import enum
import inspect
import json
import re
import types
import typing

from kerasllm.arguments import shown

TYPES = {
    **{int: "integer", float: "number", str: "string", bool: "boolean", type(None): "null"},
    **{list: "array", tuple: "array", dict: "object"},
}
SCALARS = (int, float, str, bool, type(None))


def schema(tool):
    """A tool as a template reads it.

    Args:
        tool: a dict, which is taken as it is; or a function with types at its arguments, and a docstring in Google's
            style that describes each of them, as in transformers. `(choices: ["c", "f"])` at the end of a description
            lists what an argument may be.

    Raises:
        ValueError: it is neither, or an argument has no type, no description, or a type that JSON has no word for.
    """
    if isinstance(tool, dict):
        return tool
    if not (inspect.isfunction(tool) or inspect.ismethod(tool)):
        raise ValueError(f"tools: {shown(tool)} must be a JSON schema or a function.")
    text = (inspect.getdoc(tool) or "").strip()
    if not text:
        raise ValueError(f"tools: {tool.__name__} must have a docstring.")
    description, descriptions, returned = _sections(text)
    hints, parameters = typing.get_type_hints(tool), dict(inspect.signature(tool).parameters)
    first = next(iter(parameters), None)
    if first in ("self", "cls") and first not in hints:
        del parameters[first]
    properties = {}
    for name in parameters:
        if name not in hints or name not in descriptions:
            missing = "a type" if name not in hints else "a description in the docstring"
            raise ValueError(f"tools: argument {name} of {tool.__name__} must have {missing}.")
        properties[name] = _described(_schema_of(hints[name], tool), descriptions[name])
    required = [name for name, parameter in parameters.items() if parameter.default is inspect.Parameter.empty]
    whole = {"type": "object", "properties": properties} | ({"required": required} if required else {})
    function = {"name": tool.__name__, "description": description, "parameters": whole}
    if "return" in hints:
        try:
            function["return"] = _schema_of(hints["return"], tool)
        except ValueError:  # The model does not write it.
            return {"type": "function", "function": function}
        if returned is not None:
            function["return"]["description"] = returned
    return {"type": "function", "function": function}


def _sections(text):
    """The description, dict argument -> description, and what is returned or None, of a docstring."""
    before = re.match(r"(.*?)[\n\s]*(Args:|Returns:|Raises:|\Z)", text, re.DOTALL).group(1).strip()
    returned = re.search(r"\n\s*Returns:\n\s*(.*?)[\n\s]*(Raises:|\Z)", text, re.DOTALL)
    arguments = re.search(r"\n\s*Args:\n(.*?)[\n\s]*(Returns:|Raises:|\Z)", text, re.DOTALL)
    lines = "\n".join(line for line in (arguments.group(1) if arguments else "").split("\n") if line.strip())
    # An argument ends where the next name stands that is not indented deeper.
    entries = re.findall(r"(?:^|\n)([ \t]*)(\w+):\s*(.*?)\s*(?=\n(?!\1[ \t])[ \t]*\w+:|\Z)", lines, re.DOTALL)
    found = {name: re.sub(r"\s*\n+\s*", " ", words.strip()) for _, name, words in entries}
    return before, found, returned.group(1).strip() if returned else None


def _described(schema, words):
    choices = re.search(r"\(choices:\s*(.*?)\)\s*$", words, re.IGNORECASE)
    if choices:
        values = json.loads(choices.group(1))
        schema["enum"] = [value.strip() if isinstance(value, str) else value for value in values]
        words = words[: choices.start()].strip()
    return schema | {"description": words}


def _schema_of(hint, tool):
    """The JSON schema of a type."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is typing.Any:
        return {}
    if origin is None and isinstance(hint, type) and issubclass(hint, enum.Enum):
        return _schema_of_values([member.value for member in hint], hint, tool)
    if origin is typing.Literal:
        return _schema_of_values(list(arguments), hint, tool)
    if origin is None and hint in TYPES:
        return {"type": TYPES[hint]}
    if origin in (typing.Union, types.UnionType):
        return _schema_of_union(arguments, tool)
    if origin is list:
        return {"type": "array", "items": _schema_of(arguments[0], tool)}
    if origin is tuple and len(arguments) > 1 and ... not in arguments:
        return {"type": "array", "prefixItems": [_schema_of(argument, tool) for argument in arguments]}
    if origin is dict:
        return {"type": "object", "additionalProperties": _schema_of(arguments[1], tool)}
    raise _unknown(hint, tool)


def _schema_of_union(arguments, tool):
    kinds = [_schema_of(argument, tool) for argument in arguments if argument is not type(None)]
    if len(kinds) == 1:
        [found] = kinds
    elif all(set(kind) == {"type"} and isinstance(kind["type"], str) for kind in kinds):
        names = sorted({kind["type"] for kind in kinds})
        found = {"type": names[0] if len(names) == 1 else names}
    else:
        found = {"anyOf": kinds}
    return found | ({"nullable": True} if type(None) in arguments else {})


def _schema_of_values(values, hint, tool):
    if not values or any(type(value) not in SCALARS for value in values):
        raise _unknown(hint, tool)
    names = list(dict.fromkeys(TYPES[type(value)] for value in values))
    return {"type": names[0] if len(names) == 1 else names, "enum": values}


def _unknown(hint, tool):
    return ValueError(f"tools: {tool.__name__} has the type {hint!r}, which JSON schemas have no word for.")
