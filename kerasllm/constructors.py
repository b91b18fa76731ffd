"""Constructors whose arguments are described once, in a `TypedDict`, and taken by several classes (PEP 692).

    class StackArguments(TypedDict, total=False):
        dropout: Annotated[float, Argument(0.0, check_rate, "rate after each sublayer.")]

    class GPT(Model):
        @takes(StackArguments, dropout=0.1)
        def __init__(self, vocabulary_size, **arguments: Unpack[StackArguments]): ...

Editors read names and types from the annotation. `inspect.signature` and `help` say them with the class's defaults and
their documentation, and the constructor is called with all of them, checked.
"""

import functools
import inspect
import textwrap
from collections.abc import Callable
from typing import Any, NamedTuple, get_type_hints

from kerasllm.arguments import check_boolean, plain

# Names of before, the names of now, and what becomes of the values.
SECOND_NAMES = {"norm_first": ("residual", {True: "pre", False: "post"})}


class Argument(NamedTuple):
    """What an argument is, beside its name and its type.

    Args:
        default: its value where neither a call nor a class says another.
        check: function (name, value) that raises `ValueError` for what it does not accept.
        text: its documentation.
        stands_for: function (all arguments) -> the value that None stands for; None where it stands for nothing else.
        only_with: dict, the values of other arguments without which it says nothing.
    """

    default: Any
    check: Callable
    text: str
    stands_for: Callable | None = None
    only_with: dict | None = None


def arguments_of(description):
    """The arguments that a `TypedDict` describes, dict name -> `Argument`."""
    return {name: hint.__metadata__[0] for name, hint in get_type_hints(description, include_extras=True).items()}


def takes(description, order="", **defaults):
    """A decorator of constructors that take what a `TypedDict` describes as their last parameter, `**arguments`.

    Args:
        description: a `TypedDict` whose items are `Annotated` with an `Argument` each.
        order: names of the parameters that may be given by their place too, after those that the constructor itself
            has before a `*`.
        **defaults: those of this class that are not the description's.
    """

    def decorate(init):
        init.described = arguments_of(description)
        own = list(inspect.signature(init).parameters.values())[:-1]
        parameters = {p.name: p for p in own} | {
            name: inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=defaults.get(name, argument.default))
            for name, argument in init.described.items()
        }
        first = [p.name for p in own if p.kind is p.POSITIONAL_OR_KEYWORD]
        placed = [parameters.pop(name) for name in (*first, *order.split())]
        placed = [p.replace(kind=p.POSITIONAL_OR_KEYWORD) for p in placed]
        init.__signature__ = inspect.Signature([*placed, *parameters.values()])
        return init

    return decorate


def bound(init, instance, args, kwargs):
    """The arguments of a call by their names: defaults filled in, numpy's numbers as Python's, second names replaced.

    Raises:
        TypeError: the call does not fit the signature.
        ValueError: an argument has two names.
    """
    return _by_name(_bind(init, instance, args, kwargs))


def reading(init, keep=None):
    """A constructor that gets what `bound` makes of its arguments, checked where it `takes` described ones.

    Args:
        init: the constructor.
        keep: function (instance, arguments by their names) that is called first.
    """
    described = getattr(init, "described", {})

    @functools.wraps(init)
    def read(self, *args, **kwargs):
        call = _bind(init, self, args, kwargs)
        given = _by_name(call)
        for name, argument in described.items():
            argument.check(name, given[name])
        if keep:
            keep(self, given)
        if described:  # the constructor itself has them in `**arguments`
            init(self, **given)
        else:
            init(*call.args, **call.kwargs)

    read.__signature__ = inspect.signature(init)  # Keras asks for it and does not look behind wrappers.
    return read


def with_first_names(parameters, arguments):
    """Arguments by name, dict, with the names of now in place of those of before, where the constructor has them.

    Raises:
        ValueError: an argument has two names.
    """
    for second, (name, _) in SECOND_NAMES.items():
        if second in arguments and name in parameters:
            check_boolean(second, arguments[second])
            if name in arguments:
                raise ValueError(f"{second} ({arguments[second]}) is the older name of {name}, which is given too.")
            arguments = {name if key == second else key: value for key, value in arguments.items()}
    return arguments


def _bind(init, instance, args, kwargs):
    signature = inspect.signature(init)
    call = signature.bind(instance, *args, **with_first_names(signature.parameters, kwargs))
    call.apply_defaults()
    for name, value in list(call.arguments.items())[1:]:
        call.arguments[name] = _plain(value, signature.parameters[name])
    for name, values in SECOND_NAMES.values():
        if isinstance(call.arguments.get(name), bool):
            call.arguments[name] = values[call.arguments[name]]
    return call


def _by_name(call):
    given = {}
    for name, value in list(call.arguments.items())[1:]:
        is_rest = call.signature.parameters[name].kind is inspect.Parameter.VAR_KEYWORD
        given |= value if is_rest else {name: value}
    return given


def _plain(value, parameter):
    if parameter.kind is parameter.VAR_KEYWORD:
        return {name: plain(x) for name, x in value.items()}
    return tuple(map(plain, value)) if parameter.kind is parameter.VAR_POSITIONAL else plain(value)


def document(cls):
    """Let the docstring of a class say all that its constructor `takes`, where it has a line `**arguments: ...`."""
    described = getattr(cls.__init__, "described", {})
    lines = (vars(cls).get("__doc__") or "").split("\n")
    places = [i for i, line in enumerate(lines) if line.lstrip().startswith("**arguments: ")]
    if not described or not places:
        return
    texts = entries({name: argument.text for name, argument in described.items()})
    cls.__doc__ = "\n".join([*lines[: places[0]], texts, *lines[places[0] + 1 :]])


def entries(texts):
    """The lines of a docstring's Args: dict name -> text."""
    space = {"width": 120, "initial_indent": " " * 8, "subsequent_indent": " " * 12}
    return "\n".join(textwrap.fill(f"{name}: {text}", **space) for name, text in texts.items())
