import datetime
import decimal
import gzip
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from core.data.readers import SUPPORTED, is_supported, json_window, read_batches, read_open, split_suffix
from core.data.rows import EXCERPT, MAX_ROW_BYTES, MAX_ROWS
from core.errors import DataError


def put(tmp_path, name, content):
    file = tmp_path / name
    file.write_bytes(content.encode() if isinstance(content, str) else content)
    return file


def all_rows(path, notes=None):
    """Every row as (line, value or start of text, problem)."""
    found = []
    for batch in read_batches(path, path.name, note=(notes if notes is not None else []).append):
        assert len(batch.rows) == len(batch.lines) == len(batch.problems) <= MAX_ROWS
        for row, line, problem in zip(*batch, strict=True):
            found.append((line, row if problem else json.loads(row), problem))
    return found


def read(path):
    """Rows of a file in which nothing is wrong."""
    found = all_rows(path)
    assert [problem for _, _, problem in found if problem] == []
    return [(line, value) for line, value, _ in found]


# --- each kind ---


@pytest.mark.parametrize("name", ["a.jsonl", "a.ndjson", "a.JSONL"])
def test_json_lines(tmp_path, name):
    file = put(tmp_path, name, '{"a": 1}\r\n\n  {"a": "ɛ\u2028b"}\n')
    assert read(file) == [(1, {"a": 1}), (3, {"a": "ɛ\u2028b"})]


def test_json_lines_are_cut_but_not_parsed(tmp_path):
    file = put(tmp_path, "a.jsonl", '{"a": NaN}\nnot json\n')
    (batch,) = read_batches(file, "a")
    assert batch.rows == ['{"a": NaN}', "not json"]
    assert batch.problems == [None, None]


@pytest.mark.parametrize("holder", ["data", "rows", "examples", "train"])
def test_json_list_alone_or_in_an_object(tmp_path, holder):
    assert read(put(tmp_path, "a.json", '[\n{"a": 1},\n{"a":\n2}]')) == [(2, {"a": 1}), (3, {"a": 2})]
    text = '{"version": {"data": [9]}, "x": 1, "HOLDER" : [\n{"a": 1}], "end": 0}'.replace("HOLDER", holder)
    assert read(put(tmp_path, "b.json", text)) == [(2, {"a": 1})]


def test_json_list_that_is_not_read_is_noted(tmp_path):
    notes = []
    assert len(all_rows(put(tmp_path, "a.json", '{"train": [{"a": 1}], "test": [{"a": 2}]}'), notes)) == 1
    assert notes == ["a.json: the list 'test' is left out; rows are read from data, rows, examples, train"]


def test_json_lines_in_a_json_file_are_read_and_noted(tmp_path):
    notes = []
    file = put(tmp_path, "a.json", '\n{"a": [1]}\n{"a": 2}\n\nbroken\n')
    rows = [row for batch in read_batches(file, "a.json", note=notes.append) for row in batch.rows]
    assert rows == ['{"a": [1]}', '{"a": 2}', "broken"]
    assert notes == ["a.json: holds one object per line; read like a .jsonl file"]


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


def test_csv_with_semicolons_or_old_line_ends(tmp_path):
    notes = []
    assert all_rows(put(tmp_path, "a.csv", "q;a\n1,5;2\n"), notes) == [(2, {"q": "1,5", "a": "2"}, None)]
    assert notes == ["a.csv: columns are separated by semicolons"]
    assert read(put(tmp_path, "b.csv", "q,a\r1,2\r")) == [(2, {"q": "1", "a": "2"})]


@pytest.mark.parametrize("name", ["a.txt", "a.md"])
def test_a_text_file_is_one_document(tmp_path, name):
    text = "# Title\n\nɛte sɛn\r\n\n  end  \n"
    assert read(put(tmp_path, name, text)) == [(1, {"text": text})]
    assert read(put(tmp_path, name, " \n\n")) == []


def test_a_large_text_is_cut_between_paragraphs_and_nothing_is_lost(tmp_path):
    paragraphs = [f"paragraph {n} " + "wɔ " * (n % 50) + "\nsecond line" for n in range(20_000)]
    paragraphs[7] = "long paragraph\n" * 20_000
    paragraphs[9] = "ɛ" * 200_000
    text = "\n \r\n".join(paragraphs)
    rows = read(put(tmp_path, "a.txt", text))
    pieces = [value["text"] for _, value in rows]
    assert "".join("".join(pieces).split()) == "".join(text.split())
    assert "".join(pieces) == text
    assert all(len(piece.encode()) <= 1 << 16 for piece in pieces)
    assert len(pieces) < 1.3 * len(text.encode()) / (1 << 16) + 3
    for (line, _), start in zip(rows, _starts(pieces), strict=True):
        assert line == start
    whole = [piece for piece in pieces if "long paragraph" not in piece and "ɛɛɛ" not in piece]
    assert all(piece.strip().endswith("second line") for piece in whole)
    assert all("\n" in piece[-3:] for piece in pieces if piece.endswith("long paragraph\n"))


def _starts(pieces):
    line = 1
    for piece in pieces:
        yield line
        line += piece.count("\n")


def table_of(tmp_path, name, columns):
    table = pa.table(columns)
    file = tmp_path / name
    if name.endswith(".parquet"):
        pq.write_table(table, file, row_group_size=2)
    elif name.endswith(".stream.arrow"):
        with pa.ipc.new_stream(file, table.schema) as out:
            out.write_table(table, max_chunksize=2)
    else:
        with pa.ipc.new_file(file, table.schema) as out:
            out.write_table(table, max_chunksize=2)
    return file


KINDS = ["a.parquet", "a.arrow", "a.stream.arrow", "a.feather"]


@pytest.mark.parametrize("name", KINDS)
def test_columns_of_every_type_become_json(tmp_path, name):
    day = datetime.datetime(2026, 11, 21, 8, 30)
    columns = {
        "text": pa.array(["ɛ", None, "c"]),
        "n": pa.array([1, 2**53 + 1, None]),
        "x": pa.array([0.5, float("nan"), float("inf")]),
        "price": pa.array([decimal.Decimal("1.50"), None, decimal.Decimal("-2.00")]),
        "at": pa.array([day, None, day], pa.timestamp("ns")),
        "day": pa.array([day.date()] * 3),
        "kind": pa.array(["u", "v", "u"]).dictionary_encode(),
        "turns": pa.array([[{"role": "user"}], [], None]),
        "map": pa.array([[("k", 1)], [], None], pa.map_(pa.string(), pa.int64())),
        "raw": pa.array([b"caf\xc3\xa9", b"", None]),
    }
    rows = read(table_of(tmp_path, name, columns))
    assert [line for line, _ in rows] == [1, 2, 3]
    assert rows[0][1] == {
        "text": "ɛ",
        "n": 1,
        "x": 0.5,
        "price": "1.50",
        "at": "2026-11-21T08:30:00",
        "day": "2026-11-21",
        "kind": "u",
        "turns": [{"role": "user"}],
        "map": {"k": 1},
        "raw": "café",
    }
    assert rows[1][1]["x"] is None and rows[2][1]["x"] is None
    assert rows[1][1]["n"] == 2**53 + 1


@pytest.mark.parametrize("name", KINDS)
def test_binary_columns_are_left_out_with_a_note(tmp_path, name):
    notes = []
    columns = {
        "text": ["a", "b"],
        "picture": [b"\x89PNG\xff", None],
        "image": [{"bytes": b"\xff", "path": "x"}, None],
    }
    assert all_rows(table_of(tmp_path, name, columns), notes) == [
        (1, {"text": "a"}, None),
        (2, {"text": "b"}, None),
    ]
    assert sorted(notes) == [
        f"{name}: column {each!r} holds binary data and is left out" for each in ("image", "picture")
    ]


def test_bytes_that_stop_being_text_make_their_row_unusable(tmp_path):
    first, second = pa.table({"text": [b"ok"] * 9000}), pa.table({"text": [b"fine", b"\xff"]})
    file = tmp_path / "a.parquet"
    pq.write_table(pa.concat_tables([first, second]), file)
    rows = all_rows(file)
    assert len(rows) == 9002
    assert rows[9000] == (9001, {"text": "fine"}, None)
    assert rows[9001][0] == 9002
    assert rows[9001][2] == "field 'text' is not UTF-8"


def test_parquet_with_a_missing_column_gives_rows_without_the_field(tmp_path):
    assert read(table_of(tmp_path, "a.parquet", {"instruction": ["x"]})) == [(1, {"instruction": "x"})]


@pytest.mark.parametrize("packing", [".gz", ".zst"])
@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv", "a.txt", *KINDS])
def test_compressed_files_read_like_plain_ones(tmp_path, name, packing):
    if name in KINDS:
        plain = table_of(tmp_path, name, {"a": ["x", "y", "z"], "b": [1, 2, 3]})
    else:
        texts = {".jsonl": '{"a": 1}\n', ".json": '[{"a": 1}]', ".csv": "a,b\n1,2\n", ".txt": "hello"}
        plain = put(tmp_path, name, texts[Path(name).suffix])
    packed = tmp_path / (name + packing)
    data = plain.read_bytes()
    packed.write_bytes(
        gzip.compress(data, mtime=0) if packing == ".gz" else pa.compress(data, "zstd", asbytes=True)
    )
    assert read(packed) == read(plain) != []


def test_archives_of_several_members_are_read_to_their_end(tmp_path):
    parts = [b'{"a": %d}\n' % number for number in range(5)]
    expected = [(number + 1, {"a": number}) for number in range(5)]
    assert read(put(tmp_path, "a.jsonl.gz", b"".join(map(gzip.compress, parts)))) == expected
    zstd = b"".join(pa.compress(part, "zstd", asbytes=True) for part in parts)
    assert read(put(tmp_path, "a.jsonl.zst", zstd)) == expected


def test_the_ending_can_be_given(tmp_path):
    file = put(tmp_path, "0f3a", gzip.compress(b'{"a": 1}\n', mtime=0))
    assert [batch.rows for batch in read_batches(file, "x", suffix=".jsonl.gz")] == [['{"a": 1}']]


def test_endings():
    assert split_suffix("a/b.c/x.JSONL.GZ") == (".jsonl", "gzip")
    assert split_suffix("x.csv.zst") == (".csv", "zstd")
    assert split_suffix("a.b/x") == ("", None)
    assert split_suffix("x.gz") == ("", "gzip")
    assert all(
        is_supported("x" + suffix + packing) for suffix in SUPPORTED for packing in ("", ".gz", ".zst")
    )
    assert not is_supported("x.xlsx") and not is_supported("x.pkl") and not is_supported("x.tar.gz")


# --- encodings ---

MARKED = ["utf-8", "utf-8-sig", "utf-16", "utf-32"]


@pytest.mark.parametrize("encoding", MARKED)
@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.jsonl", '{"a": "Ɛte sɛn"}\r\n{"a": "\U0001f600"}'),
        ("a.json", '[{"a": "Ɛte sɛn"}, {"a": "\U0001f600"}]'),
        ("a.csv", "a\nƐte sɛn\n\U0001f600\n"),
    ],
)
def test_text_with_or_without_mark_is_read(tmp_path, encoding, name, text):
    found = [value for _, value in read(put(tmp_path, name, text.encode(encoding)))]
    assert found == [{"a": "Ɛte sɛn"}, {"a": "\U0001f600"}]


@pytest.mark.parametrize("encoding", MARKED)
def test_plain_text_with_or_without_mark_is_read(tmp_path, encoding):
    assert read(put(tmp_path, "a.txt", "Ɛte\r\nsɛn".encode(encoding))) == [(1, {"text": "Ɛte\r\nsɛn"})]


def test_a_mark_in_the_middle_of_joined_files_is_no_part_of_a_row(tmp_path):
    assert read(put(tmp_path, "a.jsonl", '\ufeff{"a": 1}\n\ufeff{"a": 2}\n')) == [
        (1, {"a": 1}),
        (2, {"a": 2}),
    ]


@pytest.mark.parametrize(
    ("name", "content", "line", "problem"),
    [
        ("a.jsonl", b'{"a": 1}\n{"a": "\xff"}\n{"a": 3}\n', 2, "not UTF-8 (byte 0xff at column 8)"),
        ("a.jsonl", 'x\n{"ɛ": "'.encode() + b'\xe9t\xe9"}\ny', 2, "not UTF-8 (byte 0xe9 at column 8)"),
        ("a.csv", b'a,b\n1,2\n"x\n\xfc",2\n5,6\n', 3, "not UTF-8 (byte 0xfc at column 1)"),
        ("a.json", b'[{"a": 1},\n{"a": "\xe9"},\n{"a": 3}]', 2, "not UTF-8 (byte 0xe9)"),
        ("a.txt", b"one\ntwo \xe9\n", 1, "not UTF-8 (byte 0xe9 on line 2)"),
    ],
)
def test_mixed_encodings_spoil_only_their_row(tmp_path, name, content, line, problem):
    found = list(read_batches(put(tmp_path, name, content), name))
    problems = [(at, why) for batch in found for at, why in zip(batch.lines, batch.problems, strict=True)]
    assert (line, problem) in problems
    assert len([why for _, why in problems if why]) == 1
    assert len(problems) == (1 if name == "a.txt" else 3)


@pytest.mark.parametrize("size", [1, 2, 3, 7, 64])
def test_where_the_chunks_end_makes_no_difference(tmp_path, monkeypatch, size):
    texts = {
        "a.jsonl": '{"a": "ɛ"}\r\n\n{"b": [1]}\n{"c": 2}',
        "b.json": ' [ {"a": "\\u025b\\\\"} ,\n{"b": [-1.5e3, true, "x]}\\""]},{"c":{}}, 12345, -0.5e-10, "x", null] ',
        "c.json": '{"n": 12.50, "data": [{"a": 1}, {"b": "ɛ\U0001f600"}]}',
        "d.csv": 'q,a\n"x\n""ɛ""",y\n1,2\n',
        "e.txt": "ɛ\n\nb",
    }
    files = {name: put(tmp_path, name, text) for name, text in texts.items()}
    files["f.jsonl"] = put(tmp_path, "f.jsonl", '{"a": "ɛ\U0001f600"}\n{"b": 2}'.encode("utf-16"))
    expected = {name: read(file) for name, file in files.items()}
    monkeypatch.setattr(json_window, "CHUNK", size)
    for name, file in files.items():
        found = [
            (line, json.loads(row))
            for batch in read_open(Drip(file.read_bytes(), size), name, name)
            for row, line in zip(batch.rows, batch.lines, strict=True)
        ]
        assert found == expected[name]


class Drip(io.RawIOBase):
    """A file that gives a few bytes at a time."""

    def __init__(self, data, size):
        self.data, self.size, self.at = data, size, 0

    def read(self, wanted=-1):
        part = self.data[self.at : self.at + self.size]
        self.at += len(part)
        return part


# --- bad input, one by one ---


@pytest.mark.parametrize(
    ("name", "content", "where", "what"),
    [
        ("a.jsonl", b"\x00\x01\x02", "a.jsonl", "is not a text file: byte 0 is zero"),
        ("a.txt", os.urandom(5000) + b"\0", "a.txt", "is not a text file"),
        ("a.csv", "ab".encode("utf-16-le"), "a.csv", "is not a text file: byte 1 is zero"),
        ("a.jsonl", gzip.compress(b"{}", mtime=0), "a.jsonl", "is not a text file"),
        ("a.json", b"PAR1abc", "a.json", "is not a text file"),
        ("a.jsonl", "{}\n{}".encode("utf-16")[:-1], "a.jsonl:2", "is not UTF-16 throughout: truncated data"),
        ("a.json", '{"a": 1}', "a.json", "holds no list of rows"),
        ("a.json", "{}", "a.json", "holds no list of rows"),
        ("a.json", "3", "a.json", "holds no list of rows"),
        ("a.json", "hello", "a.json:1", "not valid JSON: Expecting value (column 1)"),
        ("a.json", '[{"a": 1},\n{"a": ]', "a.json:2", "not valid JSON: Expecting value (column 7)"),
        (
            "a.json",
            '[{"a": 1},\n{"a": 2}\n{"a": 3}]',
            "a.json:3",
            "not valid JSON: , or ] expected (column 1)",
        ),
        ("a.json", '[{"a": 1},]', "a.json:1", "not valid JSON: Expecting value (column 11)"),
        ("a.json", '[{"a": 1}', "a.json:1", "not valid JSON: , or ] expected"),
        ("a.json", '[{"a": "x', "a.json:1", "not valid JSON: Unterminated string"),
        ("a.json", '[{"a": 1}]\n[2]', "a.json:2", "the text goes on after its end"),
        ("a.json", '{"data": [{"a": 1}], }', "a.json:1", "not valid JSON"),
        ("a.csv", ",answer\na,b\n", "a.csv:1", "column 1 has no name"),
        ("a.csv", "answer,answer\na,b\n", "a.csv:1", "column 'answer' stands twice"),
        ("a.csv", b"\xff,b\n1,2\n", "a.csv:1", "the header cannot be read: not UTF-8"),
        ("a.csv", 'q,a\n1,2\n"a,b\nc,d\n', "a.csv:3", "a double quote is opened and never closed"),
        ("a.parquet", b"PAR1 this is no parquet PAR1", "a.parquet", "cannot be read as Parquet"),
        ("a.parquet", b"", "a.parquet", "cannot be read as Parquet"),
        ("a.arrow", b"ARROW1 not", "a.arrow", "cannot be read as Arrow"),
        ("a.arrow", b"hello world, no arrow", "a.arrow", "cannot be read as Arrow"),
        ("a.feather", b"FEA1....", "a.feather", "is a Feather file of version 1"),
        (
            "a.jsonl.gz",
            gzip.compress(b'{"a": 1}\n' * 99, mtime=0)[:-9],
            "a.jsonl.gz",
            "is damaged: Truncated",
        ),
        ("a.jsonl.gz", b"no archive", "a.jsonl.gz", "is damaged"),
        ("a.parquet.zst", b"no archive", "a.parquet.zst", "is damaged"),
        ("a.xlsx", "x", "a.xlsx", "files ending in .xlsx cannot be read"),
        ("a.pkl", "x", "a.pkl", "files ending in .pkl cannot be read"),
        ("a", "hello", "a", "files without an ending cannot be read"),
    ],
)
def test_every_broken_file_is_named(tmp_path, name, content, where, what):
    with pytest.raises(DataError) as error:
        all_rows(put(tmp_path, name, content))
    assert error.value.where == where
    assert what in error.value.what
    assert error.value.fix


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("a.json", '[{"a": 1},\n{"a": NaN}]', (2, "NaN is not a number that JSON can hold")),
        (
            "a.json",
            '[{"a": 1},\n{"a": {"b": [-Infinity]}}]',
            (2, "-Infinity is not a number that JSON can hold"),
        ),
        ("a.json", '[{"a": 1},\n' + "[" * 100_000 + "]" * 100_000 + "]", (2, "nested too deeply")),
        ("a.csv", "q,a\nx,y\nc,d,e\n", (3, "the row has 3 fields, the header has 2")),
        ("a.csv", "q,a\nx,y\nc\n", (3, "the row has 1 fields, the header has 2")),
        ("a.csv", 'q,a\nx,y\n"a"x,b\n', (3, "a double quote in the wrong place")),
    ],
)
def test_a_bad_row_is_told_and_the_others_are_read(tmp_path, name, text, expected):
    good, bad = all_rows(put(tmp_path, name, text))
    assert good[2] is None
    assert (bad[0], bad[2]) == expected
    assert len(bad[1]) <= EXCERPT


def test_rows_after_a_bad_quote_are_read_again(tmp_path):
    found = all_rows(put(tmp_path, "a.csv", 'q,a\n"a"x,b\n1,2\n3,4\n'))
    assert [(line, problem is None) for line, _, problem in found] == [(2, False), (3, True), (4, True)]


def test_wrong_types_reach_the_format_phase_as_they_are(tmp_path):
    file = put(tmp_path, "a.json", '[{"a": 1},\n7, "x", null, [1]]')
    assert [value for _, value in read(file)] == [{"a": 1}, 7, "x", None, [1]]


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv", "a.txt"])
def test_a_row_of_two_million_characters_is_accepted(tmp_path, name):
    text = "wɔ" * 1_000_000
    content = {"a.jsonl": json.dumps({"text": text}), "a.csv": f"text\n{text}\n", "a.txt": text}
    content["a.json"] = f"[{content['a.jsonl']}]"
    found = read(put(tmp_path, name, content[name]))
    assert "".join(value["text"] for _, value in found) == text


def test_a_row_longer_than_the_limit_is_one_problem(tmp_path):
    long = '{"a": "%s"}' % ("x" * (MAX_ROW_BYTES + 9))
    file = put(tmp_path, "a.jsonl", f'{{"a": 1}}\n{long}\n{{"a": 3}}\n')
    found = all_rows(file)
    assert [(line, problem) for line, _, problem in found] == [(1, None), (2, "longer than 16 MB"), (3, None)]
    assert len(found[1][1]) == EXCERPT
    found = all_rows(put(tmp_path, "a.json", f'[{{"a": 1}},\n{long},\n{{"a": 3}}]'))
    assert [(line, problem) for line, _, problem in found] == [(1, None), (2, "longer than 16 MB"), (3, None)]


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv", "a.txt", "a.jsonl.gz", "a.arrow"])
def test_an_empty_file_has_no_rows(tmp_path, name):
    assert all_rows(put(tmp_path, name, b"")) == []


def test_no_regular_file(tmp_path):
    (tmp_path / "a.jsonl").mkdir()
    os.mkfifo(tmp_path / "b.jsonl")
    (tmp_path / "c.jsonl").symlink_to("c.jsonl")
    for name, what in [
        ("a.jsonl", "is a folder"),
        ("b.jsonl", "is not a regular file"),
        ("c.jsonl", "cannot be read: Too many levels of symbolic links"),
        ("d.jsonl", "cannot be read: No such file"),
    ]:
        with pytest.raises(DataError, match=what):
            list(read_batches(tmp_path / name, name))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_an_unreadable_file(tmp_path):
    file = put(tmp_path, "a.jsonl", "{}")
    file.chmod(0)
    with pytest.raises(DataError, match="cannot be read: Permission denied"):
        list(read_batches(file, "a.jsonl"))


HUGE = """
import io, re, sys
from pathlib import Path
from core.data.readers import read_open

class Huge(io.RawIOBase):
    '''Bytes made up on the way: a start, many times the same, an end.'''
    def __init__(self, start, many, size, end):
        self.parts, self.many, self.left, self.end = [start], many, size, end
    def read(self, wanted=-1):
        if self.parts:
            return self.parts.pop()
        if self.left > 0:
            self.left -= 1 << 20
            return self.many * ((1 << 20) // len(self.many))
        end, self.end = self.end, b""
        return end

def peak():
    # getrusage would tell the peak of the process that started this one, where that is higher.
    return int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])

name, start, many, megabytes, end = sys.argv[1], *map(eval, sys.argv[2:6])
warm = list(read_open(io.BytesIO(start + end), name, name)) if name != "a.json" else None
before = peak()
rows, bad = 0, []
for batch in read_open(Huge(start, many, megabytes << 20, end), name, name):
    rows += len(batch.rows)
    bad += [problem for problem in batch.problems if problem]
after = peak()
print(rows, bad[:1], len(bad), (after - before) // 1024)
"""


@pytest.mark.parametrize(
    ("name", "start", "many", "megabytes", "end", "rows"),
    [
        ("a.jsonl", b'{"a": 1}\n{"a": "', b"x", 1024, b'"}\n{"a": 3}\n', 3),
        ("a.csv", b"a\n1\n", b"x", 300, b"\n3\n", 3),
        ("a.json", b'[{"a": 1}, {"a": "', b"x", 300, b'"}, {"a": 3}]', 3),
        ("a.txt", b"", b"x", 200, b"", None),
        ("b.txt", b"", b"word ", 200, b"", None),
        ("c.txt", b"", b"word and word\n\n", 100, b"", None),
    ],
)
def test_a_huge_line_needs_little_memory(name, start, many, megabytes, end, rows):
    arguments = [name, *map(repr, (start, many, megabytes, end))]
    done = subprocess.run(
        [sys.executable, "-c", HUGE, *arguments], capture_output=True, text=True, check=True, cwd=Path.cwd()
    )
    *found, peak = done.stdout.rsplit(maxsplit=1)
    if rows is not None:
        assert found == [f"{rows} ['longer than 16 MB'] 1"]
    assert int(peak) < (100 if name.endswith(".txt") else 200)
