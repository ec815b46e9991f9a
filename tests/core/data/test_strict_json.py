import json

import pytest

from core.data.strict_json import array_items, parse
from core.errors import DataError


def test_valid_json_equals_the_standard_library():
    text = '{"a": [1, 2.5e3, true, null, "x\\u00e9\\ud83d\\ude00"], "b": {"c": -0.0}}'
    assert parse(text, "f") == json.loads(text)


@pytest.mark.parametrize(
    ("text", "where", "what"),
    [
        ('{"a": 1,}', "f:5", "column"),
        ('{"a":\n  oops}', "f:6", "Expecting value (column 3)"),
        ('{"a": NaN}', "f:5", "NaN is not a number that JSON can hold (column 7)"),
        ('{"a": "NaN",\n "b": -Infinity}', "f:6", "-Infinity is not a number that JSON can hold (column 7)"),
        ('{"a": "1e999", "b": 1e999}', "f:5", "1e999 is not a number that JSON can hold (column 21)"),
        ('{"a": "\\ud83d"}', "f:5", "half a character"),
        ("[" * 100_000, "f:5", "not usable JSON"),
        ('{"a": ' + "9" * 5000 + "}", "f:5", "not usable JSON"),
    ],
)
def test_every_error_names_line_and_problem(text, where, what):
    with pytest.raises(DataError) as error:
        parse(text, "f", line=5)
    assert error.value.where == where
    assert what in error.value.what
    assert error.value.fix


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ('[{"a": 1}, {"a": 2}]', [1, 1]),
        ('\n[\n {"a": "x,]\\n"},\n\n {"a": [1, [2]]}\n]', [3, 5]),
        ('{"version": {"data": [9]}, "n": 1,\n "data" : [\n{"a": 1},{"a": 2}\n], "end": 0}', [3, 3]),
        ("[]", []),
    ],
)
def test_array_items_have_their_lines(text, lines):
    value = json.loads(text)
    expected = value["data"] if isinstance(value, dict) else value
    items = array_items(text)
    assert items is not None
    found = list(items)
    assert [line for line, _ in found] == lines
    assert [item for _, item in found] == expected


@pytest.mark.parametrize("text", ["{}", '{"data": 1}', '{"a": [1]}', "3", '"x"'])
def test_no_array(text):
    assert array_items(text) is None
