import json

import pytest

from core.data.config import SourceConfig
from core.data.ingest import ingest
from core.errors import DataError


def source(path, weight=1.0, format="auto"):
    return SourceConfig(path=path, weight=weight, format=format)


def rows_of(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture
def base(tmp_path, jsonl):
    jsonl(tmp_path / "a/one.jsonl", [{"q": f"ɛ{n}"} for n in range(40)])
    jsonl(tmp_path / "a/two.jsonl", [{"q": f"a{n}"} for n in range(40, 60)])
    jsonl(tmp_path / "b.jsonl", [{"q": f"b{n}"} for n in range(100)])
    return tmp_path


def test_equal_weights_keep_every_row_once_with_its_origin(base):
    report = ingest(
        [source("a", 2), source("b.jsonl", 2, "alpaca")], base / "out/corpus.jsonl", base=base, seed=1
    )
    rows = rows_of(base / "out/corpus.jsonl")
    assert [row["row"]["q"] for row in rows[:60]] == [f"ɛ{n}" for n in range(40)] + [
        f"a{n}" for n in range(40, 60)
    ]
    assert rows[0] == {"row": {"q": "ɛ0"}, "format": "auto", "origin": {"file": "a/one.jsonl", "line": 1}}
    assert rows[59]["origin"] == {"file": "a/two.jsonl", "line": 20}
    assert rows[60]["format"] == "alpaca"
    assert report.rows == len(rows) == 160
    assert [(s.path, s.files, s.rows, s.taken) for s in report.sources] == [
        ("a", 2, 60, 60),
        ("b.jsonl", 1, 100, 100),
    ]


def test_different_weights_sample_without_repetition(base):
    target = base / "corpus.jsonl"
    report = ingest([source("a", 3), source("b.jsonl", 1)], target, base=base, seed=1)
    questions = [row["row"]["q"] for row in rows_of(target)]
    assert len(questions) == len(set(questions)) == report.rows == 80
    assert sum(q.startswith("b") for q in questions) == 20
    assert [(s.rows, s.taken) for s in report.sources] == [(60, 60), (100, 20)]


def test_the_sample_follows_the_seed(base):
    def taken(seed):
        ingest([source("a", 3), source("b.jsonl", 1)], base / "c.jsonl", base=base, seed=seed)
        return (base / "c.jsonl").read_bytes()

    assert taken(1) == taken(1) != taken(2)


def test_passed_over_files_are_noted(base):
    (base / "a/sheet.parquet").write_bytes(b"PAR1")
    report = ingest([source("a")], base / "c.jsonl", base=base, seed=1)
    assert report.notes == ("a/sheet.parquet: not a data file, passed over",)


def test_a_broken_row_leaves_no_corpus(base):
    with (base / "b.jsonl").open("a") as file:
        file.write("{oops\n")
    with pytest.raises(DataError) as error:
        ingest([source("a"), source("b.jsonl")], base / "c.jsonl", base=base, seed=1)
    assert error.value.where == "b.jsonl:101"
    assert not (base / "c.jsonl").exists()
    assert not list(base.glob(".*.part"))


def test_an_empty_file_in_a_folder_is_an_error(base):
    (base / "a/three.jsonl").write_text("")
    with pytest.raises(DataError, match=r"a/three\.jsonl: holds no rows"):
        ingest([source("a")], base / "c.jsonl", base=base, seed=1)
