"""JSON that says two things, too much, or nothing, is refused by name."""

import json
import time

import pytest

from kerasllm.json_files import MOST_CONFIG_BYTES, MOST_DIGITS, parse_json, read_json

REFUSED = {
    "": "Expecting value",
    "{": "Expecting property name",
    "[NaN]": "NaN is no JSON number",
    "[-Infinity]": "-Infinity is no JSON number",
    "[1e999]": "1e999 is too large a number",
    "[" + "9" * (MOST_DIGITS + 1) + "]": "999 ... is too large a number",
    "[" + "9" * 10**5 + "]": "999 ... is too large a number",
    "[" * 10**5: "recursion",
    "[" * 65 + "]" * 65: "deeper than 64 levels",
    '{"a": {"b": 1, "c": 2, "b": 1}}': "the key 'b' stands twice",
    r'{"a": 1, "\u0061": 1}': "the key 'a' stands twice",
    r'["\ud800"]': "surrogates not allowed",
    r'{"\uDFFF": 1}': "surrogates not allowed",
    "\ufeff{}": "BOM",
    b"\xff": "can't decode byte",
    b'["\xed\xa0\x80"]': "can't decode byte",
    "null": "holds NoneType, expected an object",
    "[]": "holds list, expected an object",
}


def test_what_is_refused_says_why(tmp_path):
    for text, reason in REFUSED.items():
        with pytest.raises(ValueError) as error:
            parse_json(text, "x.json")
        assert str(error.value).startswith("x.json") and reason in str(error.value), (text[:80], error.value)
        path = tmp_path / "a.json"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        with pytest.raises(ValueError, match=r"a\.json") as error:
            read_json(path)
        assert reason in str(error.value)


def test_what_is_whole_is_read():
    for value in ({"a": [1, -2.5, 10**30, "é\ud7ff😀", None, True]}, {"\\ud800": "\\ud800"}, {}):
        for ascii_only in (True, False):
            assert parse_json(json.dumps(value, ensure_ascii=ascii_only), "x") == value
    assert parse_json("[" * 64 + "]" * 64, "x", list)
    assert parse_json("1", "x", object) == 1


def test_a_long_file_is_refused_before_it_is_read_and_a_long_object_in_linear_time(tmp_path):
    (tmp_path / "a.json").write_bytes(b" " * MOST_CONFIG_BYTES + b"{}")
    with pytest.raises(ValueError, match=f"a.json is longer than {MOST_CONFIG_BYTES} bytes"):
        read_json(tmp_path / "a.json", most_bytes=MOST_CONFIG_BYTES)
    pairs, start = ",".join(f'"{i}":0' for i in range(30_000)), time.perf_counter()
    with pytest.raises(ValueError, match="'29999' stands twice"):
        parse_json("{" + pairs + ',"29999":1}', "x")
    assert time.perf_counter() - start < 2
