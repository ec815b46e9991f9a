import tracemalloc

import pytest

from core.data.readers import SUPPORTED, read_rows
from core.errors import DataError


def read(path):
    return [(row.line, row.value) for row in read_rows(path, path.name)]


def put(tmp_path, name, text):
    file = tmp_path / name
    file.write_bytes(text.encode() if isinstance(text, str) else text)
    return file


@pytest.mark.parametrize("name", ["a.jsonl", "a.ndjson", "a.JSONL"])
def test_jsonl(tmp_path, name):
    file = put(tmp_path, name, '{"a": 1}\r\n\n  {"a": "ɛ"}\n')
    assert read(file) == [(1, {"a": 1}), (3, {"a": "ɛ"})]


def test_json_array_and_data_object(tmp_path):
    assert read(put(tmp_path, "a.json", '[\n{"a": 1},\n{"a": 2}]')) == [(2, {"a": 1}), (3, {"a": 2})]
    assert read(put(tmp_path, "b.json", '{"data": [{"a": 1}]}')) == [(1, {"a": 1})]


def test_csv_with_quotes_line_breaks_and_mark(tmp_path):
    file = put(tmp_path, "a.csv", '\ufeffquestion, answer ,topic\n"a, ""b""\nc",d,\n\ne,f,g\n')
    assert read(file) == [
        (2, {"question": 'a, "b"\nc', "answer": "d", "topic": ""}),
        (5, {"question": "e", "answer": "f", "topic": "g"}),
    ]


def test_tsv(tmp_path):
    assert read(put(tmp_path, "a.tsv", "question\tanswer\na, b\tc\n")) == [
        (2, {"question": "a, b", "answer": "c"})
    ]


@pytest.mark.parametrize(
    ("name", "text", "where", "what"),
    [
        ("a.jsonl", '{"a": 1}\n{"a": \n', "a.jsonl:2", "not valid JSON: Expecting value (column 6)"),
        ("a.jsonl", '{"a": 1}\n{"a": 1} {"b": 2}\n', "a.jsonl:2", "not valid JSON: Extra data (column 10)"),
        ("a.jsonl", '{"a": 1}\n{"a": NaN}\n', "a.jsonl:2", "NaN is not a number"),
        ("a.jsonl", "[1]\n", "a.jsonl:1", "a row must be a JSON object, not a list"),
        ("a.jsonl", "true\n", "a.jsonl:1", "a row must be a JSON object, not true or false"),
        ("a.jsonl", "", "a.jsonl", "holds no rows"),
        ("a.jsonl", "\n \n", "a.jsonl", "holds no rows"),
        ("a.jsonl", b'{"a": 1}\n{"a": "\xff"}\n', "a.jsonl:2", "byte 16 (0xff) is not UTF-8"),
        ("a.json", "", "a.json", "holds no rows"),
        ("a.json", "[]", "a.json", "holds no rows"),
        ("a.json", '{"a": 1}', "a.json", "holds no list of rows"),
        ("a.json", '[{"a": 1},\n{"a": ]', "a.json:2", "not valid JSON"),
        ("a.json", '[{"a": 1},\n{"a": Infinity}]', "a.json:2", "Infinity is not a number"),
        ("a.json", '[{"a": 1},\n\n7]', "a.json:3", "a row must be a JSON object, not a number"),
        ("a.csv", "", "a.csv", "holds no rows"),
        ("a.csv", "question,answer\n", "a.csv", "holds no rows"),
        ("a.csv", "question,answer\na,b\nc,d,e\n", "a.csv:3", "the row has 3 fields, the header has 2"),
        ("a.csv", "question,answer\na\n", "a.csv:2", "the row has 1 fields, the header has 2"),
        ("a.csv", ",answer\na,b\n", "a.csv:1", "column 1 has no name"),
        ("a.csv", "answer,answer\na,b\n", "a.csv:1", "column 'answer' stands twice"),
        ("a.csv", 'question,answer\n"a,b\nc,d\n', "a.csv:2", "not a valid table: unexpected end of data"),
        ("a.csv", 'question,answer\n"a"x,b\n', "a.csv:2", "not a valid table"),
        ("a.txt", "hello", "a.txt", "files ending in .txt cannot be read"),
        ("a", "hello", "a", "files without an ending cannot be read"),
    ],
)
def test_every_broken_file_is_named(tmp_path, name, text, where, what):
    with pytest.raises(DataError) as error:
        read(put(tmp_path, name, text))
    assert error.value.where == where
    assert what in error.value.what
    assert error.value.fix


def test_unsupported_type_lists_the_supported_ones(tmp_path):
    with pytest.raises(DataError) as error:
        read(put(tmp_path, "a.xlsx", "x"))
    assert all(suffix in error.value.fix for suffix in SUPPORTED)


@pytest.mark.parametrize(
    ("name", "head", "line"), [("a.jsonl", "", '{{"a": "{}"}}\n'), ("a.csv", "a\n", "{}\n")]
)
def test_lines_are_streamed(tmp_path, name, head, line):
    file = put(tmp_path, name, head + line.format("x" * 1000) * 20_000)
    tracemalloc.start()
    assert sum(1 for _ in read_rows(file, name)) == 20_000
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert file.stat().st_size > 20e6 > 8e6 > peak
