import pytest

from core.data import parts
from core.data.config import SourceConfig
from core.data.ingest import ingest
from core.data.parts import notes_of, parts_of, read_part
from core.errors import DataError


@pytest.fixture
def base(tmp_path, jsonl):
    jsonl(tmp_path / "a/one.jsonl", [{"q": f"ɛ{n}"} for n in range(40)])
    jsonl(tmp_path / "a/two.jsonl", [{"q": f"a{n}"} for n in range(40, 60)])
    jsonl(tmp_path / "b.jsonl", [{"q": f"b{n}"} for n in range(100)])
    return tmp_path


def gather(base, *sources):
    target = base / "out/corpus.parquet"
    report = ingest(sources, target, base=base, cache=base / "cache")
    return report, [row for part in parts_of(target) for row in read_part(part).to_pylist()], target


def test_every_row_is_kept_once_with_its_origin(base):
    report, rows, target = gather(
        base, SourceConfig(path="a", weight=2), SourceConfig(path="b.jsonl", weight=2, format="alpaca")
    )
    assert rows[0] == {"row": '{"q": "ɛ0"}', "problem": None, "file": "a/one.jsonl", "line": 1, "source": 0}
    assert (rows[59]["file"], rows[59]["line"]) == ("a/two.jsonl", 20)
    assert (rows[60]["file"], rows[60]["source"]) == ("b.jsonl", 1)
    assert report.rows == len(rows) == 160
    assert [(s.path, s.files, s.rows, s.wanted) for s in report.sources] == [
        ("a", 2, 60, 0.5),
        ("b.jsonl", 1, 100, 0.5),
    ]
    assert not report.is_weighted
    assert [note["format"] for note in notes_of(target)] == ["auto", "alpaca"]


def test_weights_are_only_noted_here(base):
    report, rows, target = gather(base, SourceConfig(path="a", weight=3), SourceConfig(path="b.jsonl"))
    assert len(rows) == 160
    assert report.is_weighted
    assert [source.wanted for source in report.sources] == [0.75, 0.25]
    assert [note["weight"] for note in notes_of(target)] == [3, 1]


def test_unreadable_files_in_a_folder_are_noted(base):
    (base / "a/picture.pdf").write_bytes(b"%PDF")
    report, _, _ = gather(base, SourceConfig(path="a"))
    assert report.notes == ("a/picture.pdf: not a data file, passed over",)


def test_a_failed_ingest_leaves_the_old_corpus(base):
    _, _, target = gather(base, SourceConfig(path="a"))
    before = target.read_bytes()
    (base / "b.jsonl").write_bytes(b"")
    with pytest.raises(DataError):
        gather(base, SourceConfig(path="a"), SourceConfig(path="b.jsonl"))
    assert target.read_bytes() == before
    assert [path.name for path in target.parent.iterdir()] == ["corpus.parquet"]


def test_parts_end_where_the_rows_say(base, monkeypatch):
    monkeypatch.setattr(parts, "PART_ROWS", 25)
    _, rows, target = gather(base, SourceConfig(path="a"), SourceConfig(path="b.jsonl"))
    sizes = [read_part(part).num_rows for part in parts_of(target)]
    assert max(sizes) <= 25
    assert sum(sizes) == len(rows) == 160


def test_progress_is_told(base):
    told = []
    ingest(
        [SourceConfig(path="a")],
        base / "c",
        base=base,
        cache=base,
        advanced=lambda done, total, what: told.append(done),
    )
    assert told == [40, 60]
