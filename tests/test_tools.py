"""Functions as JSON schemas: what transformers makes of them."""

import enum
import typing

import pytest

from kerasllm.text import tools


class Unit(enum.Enum):
    CELSIUS = "celsius"
    KELVIN = 1


def get_weather(city: str, unit: typing.Literal["c", "f"] = "c", days: int | None = None) -> dict[str, float]:
    """Tells the weather.

    A second paragraph: with a colon.

    Args:
        city: The city, for example
            Paris or Rome
        unit: The unit (choices: ["c ", "f"])
        days: How many days: at most 7

    Returns:
        The temperatures
    """


def many_types(
    a: list[int],
    b: tuple[int, str],
    c: dict[str, list[str]],
    d: Unit,
    e: typing.Any,
    f: int | str | None,
    g: list[int] | dict[str, int],
    h: list,
    i: bool = True,
) -> "UnknownToJSON":
    """Has arguments of many types.

    Args:
        a: 1
        b: 2
        c: 3
        d: 4
        e: 5
        f: 6
        g: 7
        h: 8
        i: 9
    """


class UnknownToJSON:
    def method(self, x: float):
        """Is a method.

        Args:
            x: a number
        """


def without_arguments():
    """Does something."""


@pytest.mark.parametrize("function", [get_weather, many_types, UnknownToJSON().method, without_arguments])
def test_functions_are_described_as_in_transformers(function):
    pytest.importorskip("transformers")
    from transformers.utils import get_json_schema

    assert tools.schema(function) == get_json_schema(function)


def test_schemas_are_taken_as_they_are():
    schema = {"type": "function", "function": {"name": "f"}}
    assert tools.schema(schema) is schema


def no_docstring(x: int):
    pass


def no_type(x):
    """Lacks a type.

    Args:
        x: a number
    """


def no_description(x: int):
    """Lacks a description."""


def odd_type(x: set[int]):
    """Has an odd type.

    Args:
        x: a number
    """


@pytest.mark.parametrize(
    "tool, message",
    [
        ("get_weather", "'get_weather' must be a JSON schema or a function"),
        (no_docstring, "no_docstring must have a docstring"),
        (no_type, "argument x of no_type must have a type"),
        (no_description, "argument x of no_description must have a description"),
        (odd_type, r"odd_type has the type set\[int\]"),
    ],
)
def test_tools_that_are_not_understood_are_named(tool, message):
    with pytest.raises(ValueError, match=message):
        tools.schema(tool)
