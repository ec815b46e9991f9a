"""Arbitrary bytes give rows or one clear error; rows written in any format come back equal."""

import csv
import gzip
import io
import json

import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from core.data.readers import SUPPORTED, json_window, read_open
from core.data.readers.lines import line_blocks
from core.data.readers.streams import ByteStream
from core.data.rows import MAX_ROWS, RowBatch
from core.errors import DataError

CAREFUL = settings(max_examples=60, deadline=None)
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
NAMES = st.text("abcɛɔ ", min_size=1, max_size=4).filter(lambda name: name == name.strip())
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=6,
)
OBJECTS = st.lists(st.dictionaries(TEXT, VALUES, max_size=4), min_size=1, max_size=6)


def read(data, name):
    return list(read_open(io.BytesIO(data), name, name))


def values(data, name):
    batches = read(data, name)
    assert [problem for batch in batches for problem in batch.problems if problem] == []
    return [orjson.loads(row) for batch in batches for row in batch.rows]


def survives(data, name):
    try:
        batches = read(data, name)
    except DataError as error:
        assert error.what and error.where.startswith(name) and error.fix
        return
    for batch in batches:
        assert isinstance(batch, RowBatch)
        assert 0 < len(batch.rows) == len(batch.lines) == len(batch.problems) <= MAX_ROWS
        assert all(line >= 1 for line in batch.lines)
        "".join(batch.rows).encode()


JSONISH = st.lists(
    st.sampled_from(
        [
            b"{",
            b"}",
            b"[",
            b"]",
            b'"',
            b",",
            b":",
            b"\\",
            b"\n",
            b"\r",
            b";",
            b"\t",
            b" ",
            b"1",
            b"NaN",
            b"tru",
            b"-",
            b"\xff",
            b"\xc9\x9b",
            b"\xef\xbb\xbf",
            b'{"data":[',
            b'{"a":1}',
            b'"a"',
            b"a,b",
            b"\\u",
            b"\xff\xfe",
        ]
    ),
    max_size=40,
).map(b"".join)


@pytest.mark.parametrize("packing", ["", ".gz", ".zst"])
@pytest.mark.parametrize("suffix", SUPPORTED)
@given(data=st.binary(max_size=300) | JSONISH)
@example(data=b"")
@settings(max_examples=25, deadline=None)
def test_arbitrary_bytes_give_rows_or_one_clear_error(suffix, packing, data):
    survives(data, "f" + suffix + packing)


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv", ".tsv", ".txt"])
@given(data=JSONISH)
@CAREFUL
def test_almost_sound_text_inside_an_archive_too(suffix, data):
    survives(data, "f" + suffix)
    survives(gzip.compress(data), f"f{suffix}.gz")


class Drip(io.BytesIO):
    """A file that gives a few bytes at a time."""

    size = 1

    def read(self, wanted=-1):
        return super().read(self.size)


def dripping(data, size):
    file = Drip(data)
    file.size = size
    return ByteStream(file.read, "f")


@given(
    items=st.lists(VALUES, min_size=1, max_size=5),
    size=st.integers(1, 9),
    indent=st.sampled_from([None, 3, 30]),
)
@CAREFUL
def test_a_window_finds_the_same_values_wherever_it_ends(items, size, indent):
    text = json.dumps(items, ensure_ascii=False, indent=indent)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_window, "CHUNK", size)
        window = json_window.JsonWindow(dripping(text.encode(), size))
        found, sign = [], window.take("[")
        while sign != "]":
            found.append(window.value())
            sign = window.take(",]")
        assert window.peek() == ""
    assert [json.loads(value.text) for value in found] == items
    if indent:
        ends = [json.dumps(items[:count], indent=indent).count("\n") for count in range(1, len(items))]
        assert [value.line for value in found] == [2, *(count + 1 for count in ends)]


@given(
    lines=st.lists(st.binary(max_size=12).map(lambda line: line.replace(b"\n", b"")), max_size=8),
    size=st.integers(1, 9),
)
@CAREFUL
def test_lines_are_the_same_wherever_a_chunk_ends(lines, size):
    data = b"\n".join(lines)
    blocks = list(line_blocks(dripping(data, size)))
    whole = data[:-1] if data.endswith(b"\n") else data
    assert b"\n".join(blocks) == whole


def sample_table():
    rows = [{"text": f"row {n} ɛ", "n": n, "turns": [{"role": "user", "raw": None}]} for n in range(50)]
    return pa.Table.from_pylist(rows).append_column("raw", pa.array([b"x"] * 50))


def packed_samples():
    table, samples = sample_table(), {}
    out = io.BytesIO()
    pq.write_table(table, out, row_group_size=20)
    samples["f.parquet"] = out.getvalue()
    for name, make in (("f.arrow", pa.ipc.new_file), ("f.stream.arrow", pa.ipc.new_stream)):
        out = io.BytesIO()
        with make(out, table.schema) as writer:
            writer.write_table(table, max_chunksize=20)
        samples[name] = out.getvalue()
    samples["f.jsonl.gz"] = gzip.compress(b'{"a": 1}\n' * 50)
    samples["f.csv.zst"] = pa.compress(b"a,b\n" + b"1,2\n" * 50, "zstd", asbytes=True)
    return samples


SAMPLES = packed_samples()


@pytest.mark.parametrize("name", SAMPLES)
@given(data=st.data())
@CAREFUL
def test_damaged_binary_files_give_rows_or_one_clear_error(name, data):
    sound = bytearray(SAMPLES[name])
    for _ in range(data.draw(st.integers(1, 4))):
        sound[data.draw(st.integers(0, len(sound) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(sound)) | st.just(len(sound)))
    survives(bytes(sound[:cut]), name)


@given(rows=OBJECTS, indent=st.sampled_from([None, 0, 2]), ascii_only=st.booleans())
@CAREFUL
def test_json_in_every_layout_reads_back_equal(rows, indent, ascii_only):
    def dumped(value, **how):
        return json.dumps(value, ensure_ascii=ascii_only, **how).encode()

    lines = b"\n".join(dumped(row) for row in rows)
    array = dumped(rows, indent=indent)
    for suffix, data in ((".jsonl", lines), (".json", array), (".json", dumped({"n": rows, "data": rows}))):
        assert values(data, "f" + suffix) == rows
        assert values(gzip.compress(data), f"f{suffix}.gz") == rows
        assert values(pa.compress(data, "zstd", asbytes=True), f"f{suffix}.zst") == rows


@given(data=st.data(), names=st.lists(NAMES, min_size=2, max_size=4, unique=True))
@CAREFUL
def test_tables_read_back_equal(data, names):
    # A lone carriage return ends a line for the csv module, unless it is quoted; a blank row is no row.
    row = st.fixed_dictionaries(dict.fromkeys(names, TEXT)).filter(
        lambda row: any(cell.strip() for cell in row.values())
    )
    rows = data.draw(st.lists(row, min_size=1, max_size=6))
    for suffix, delimiter in ((".csv", ","), (".tsv", "\t")):
        out = io.StringIO(newline="")
        writer = csv.DictWriter(out, names, delimiter=delimiter, quoting=csv.QUOTE_ALL)
        writer.writeheader()
        writer.writerows(rows)
        written = out.getvalue().encode()
        if b"\0" not in written:
            assert values(written, "f" + suffix) == rows
            assert values(gzip.compress(written), f"f{suffix}.gz") == rows


@given(
    rows=st.lists(
        st.fixed_dictionaries(
            {
                "text": st.none() | TEXT,
                "n": st.none() | st.integers(-(2**63), 2**63 - 1),
                "x": st.none() | st.floats(allow_nan=False, allow_infinity=False),
                "ok": st.none() | st.booleans(),
                "turns": st.none()
                | st.lists(st.fixed_dictionaries({"role": TEXT, "content": TEXT}), max_size=3),
            }
        ),
        min_size=1,
        max_size=6,
    )
)
@CAREFUL
def test_columns_read_back_equal(rows):
    turns = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))
    schema = pa.schema(
        [("text", pa.string()), ("n", pa.int64()), ("x", pa.float64()), ("ok", pa.bool_()), ("turns", turns)]
    )
    table = pa.Table.from_pylist(rows, schema=schema)
    out = io.BytesIO()
    pq.write_table(table, out)
    assert values(out.getvalue(), "f.parquet") == rows
    for make in (pa.ipc.new_file, pa.ipc.new_stream):
        out = io.BytesIO()
        with make(out, schema) as writer:
            writer.write_table(table, max_chunksize=2)
        assert values(out.getvalue(), "f.arrow") == rows
        assert values(gzip.compress(out.getvalue()), "f.arrow.gz") == rows


@given(text=st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0\ufeff"), max_size=200))
@CAREFUL
def test_text_reads_back_equal(text):
    for encoding in ("utf-8", "utf-8-sig", "utf-16", "utf-32"):
        expected = [{"text": text}] if text.strip() else []
        assert values(text.encode(encoding), "f.txt") == expected
