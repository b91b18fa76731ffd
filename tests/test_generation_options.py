"""What is said once of each option, where it is used."""

import inspect
import re

import pytest

from kerasllm.generation import kinds
from kerasllm.generation.config import BEAMS, OPTIONS, SAMPLING, GenerationConfig, named
from kerasllm.generation.options import Option, one_of


def words(text):
    return re.sub(r"\s+", " ", text)


@pytest.mark.parametrize("name", OPTIONS)
def test_help_shows_each_option_with_its_default_and_what_it_does(name):
    arguments, raises = GenerationConfig.__doc__.split("    Args:\n")[1].split("\n\n    Raises:\n")
    assert f" {name}: {words(OPTIONS[name].text)}" in words(arguments)
    assert re.search(f"^        {name}: ", arguments, re.MULTILINE) and "ValueError" in raises
    parameter = inspect.signature(GenerationConfig).parameters[name]
    assert parameter.kind is parameter.KEYWORD_ONLY and parameter.default == getattr(GenerationConfig(), name)


@pytest.mark.parametrize("name", OPTIONS)
def test_what_is_said_of_an_option_is_known(name):
    """A word written wrong would change nothing, and nobody would see it."""
    its = OPTIONS[name]
    assert its.use in ("", "sampling", "beams") and its.exported in ("", "any", "text", "choice", "target")
    assert (its.in_file is None) is (name == "unsupported")


def test_the_lists_are_those_of_the_options():
    assert SAMPLING == ("temperature", "top_k", "top_p", "min_p", "typical_p", "epsilon_cutoff", "eta_cutoff")
    assert BEAMS == ("num_beams", "length_penalty", "early_stopping")
    assert set(named("with_draft", True)) == {*"max_length max_new_tokens temperature stop seed strip_prompt".split()}
    assert named("exported", "any") == ("max_length", "max_new_tokens", "strip_prompt")
    assert named("exported", "text") == ("num_return_sequences", "stop")
    assert named("exported", "choice") == ("temperature", "top_k", "top_p", "repetition_penalty", "seed")
    assert named("exported", "target") == ("num_beams", "length_penalty")


def test_an_option_is_off_where_it_says_nothing_or_does_nothing():
    its = Option(kinds.PART, "", off=one_of(0, 1))
    assert [its.is_off(x) for x in (None, 0, 1.0, [], {}, (), "", 0.5, [0], "x")] == 7 * [True] + 3 * [False]
    assert not Option(kinds.PART, "").is_off(0)
