import json

import pytest

from core.data.config import FormatConfig
from core.data.formatting import format_records
from core.data.records import read_conversations
from core.errors import DataError


def entry(line, row, format="auto", file="a.jsonl"):
    return {"row": row, "format": format, "origin": {"file": file, "line": line}}


def qa(question, answer="A", **more):
    return {"question": question, "answer": answer, **more}


def rows_of(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture
def run(tmp_path, jsonl):
    def go(rows, **settings):
        corpus = jsonl(tmp_path / "corpus.jsonl", [entry(n, row) for n, row in enumerate(rows, start=1)])
        report = format_records(
            corpus, tmp_path / "out/d.jsonl", tmp_path / "out/rejected.jsonl", FormatConfig(**settings)
        )
        return report, rows_of(tmp_path / "out/d.jsonl"), rows_of(tmp_path / "out/rejected.jsonl")

    return go


def test_rows_of_every_shape_become_conversations(run, tmp_path):
    rows = [
        {"instruction": "S", "input": "Q", "output": "ɛ", "id": "x-1", "topic": "t"},
        {"messages": [{"role": "user", "content": "1"}, {"role": "assistant", "content": "2"}]},
        {"conversations": [{"from": "human", "value": "3"}, {"from": "gpt", "value": "4"}]},
        qa("5"),
    ]
    report, dataset, rejected = run(rows)
    assert report.formats == {"alpaca": 1, "messages": 1, "sharegpt": 1, "prompt_completion": 1}
    assert (report.rows, report.kept, report.rejected, report.duplicates, report.reasons) == (4, 4, 0, 0, {})
    assert dataset[0] == {
        "id": "x-1",
        "conversations": [
            {"role": "system", "content": "S"},
            {"role": "user", "content": "Q"},
            {"role": "assistant", "content": "ɛ"},
        ],
        "metadata": {"topic": "t"},
        "origin": {"file": "a.jsonl", "line": 1},
    }
    assert rejected == []
    assert len(list(read_conversations(tmp_path / "out/d.jsonl"))) == 4


def test_one_of_equal_rows_is_kept_but_different_answers_all_stay(run):
    rows = [qa("One two", "A"), qa("one  TWO", "a"), qa("One two", "B"), qa("one two", "A")]
    report, dataset, _ = run(rows)
    assert [(row["origin"]["line"], row["conversations"][1]["content"]) for row in dataset] == [
        (1, "A"),
        (3, "B"),
    ]
    assert (report.kept, report.duplicates) == (2, 2)
    report, dataset, _ = run(rows, deduplicate=False)
    assert (report.kept, report.duplicates, len({row["id"] for row in dataset})) == (4, 0, 4)


def test_twi_letters_do_not_make_duplicates(run):
    report, _, _ = run([qa("Ɛyɛ sɛ"), qa("Eye se")])
    assert report.duplicates == 0


def test_ids_are_kept_made_and_made_unique(run):
    rows = [
        qa("1", id="a"),
        qa("2", id="a"),
        qa("3", id="b c"),
        qa("4"),
        qa("5", id=17),
        qa("6", id=True),
        qa("7", id="a"),
    ]
    _, first, _ = run(rows)
    _, again, _ = run(rows)
    ids = [row["id"] for row in first]
    assert ids == [row["id"] for row in again]
    assert len(set(ids)) == 7
    assert ids[0] == "a"
    assert ids[1].startswith("a-")
    assert ids[4] == "17"
    assert all(len(ids[n]) == 16 and int(ids[n], 16) for n in (2, 3, 5))
    _, other, _ = run([qa("  4 "), qa("x")])
    assert other[0]["id"] == ids[3]


def test_rejected_rows_are_listed_and_counted(run):
    rows = [qa(f"{n}") for n in range(98)] + [qa("x", ""), {"text": "y" * 1000}]
    report, dataset, rejected = run(rows)
    assert (report.kept, report.rejected, len(dataset)) == (98, 2, 98)
    assert report.reasons == {"empty answer": 1, "unknown shape": 1}
    assert rejected[0] == {
        "file": "a.jsonl",
        "line": 99,
        "reason": "empty answer",
        "row": '{"question": "x", "answer": ""}',
    }
    assert len(rejected[1]["row"]) == 200


def test_too_many_rejected_stops_with_counts_places_and_fix(run, tmp_path):
    rows = [qa(f"{n}") for n in range(10)] + [qa("x", "")] * 3 + [{"text": "y"}]
    with pytest.raises(DataError) as error:
        run(rows)
    text = str(error.value)
    assert "4 of 14 rows are unusable, 5.0% are allowed (empty answer: 3, unknown shape: 1)" in text
    assert all(f"a.jsonl:{line}: empty answer" in text for line in (11, 12, 13))
    assert "a.jsonl:14" not in text
    assert "rejected.jsonl" in error.value.fix
    assert "{instruction, input, output}" in error.value.fix
    assert len(rows_of(tmp_path / "out/rejected.jsonl")) == 4
    assert not (tmp_path / "out/d.jsonl").exists()
    assert not list((tmp_path / "out").glob(".*.part"))


@pytest.mark.parametrize(("bad", "passes"), [(5, True), (6, False)])
def test_the_limit_itself_is_allowed(run, bad, passes):
    rows = [qa(f"{n}") for n in range(100 - bad)] + [qa("x", "")] * bad
    if passes:
        assert run(rows)[0].rejected == bad
    else:
        with pytest.raises(DataError):
            run(rows)


def test_nothing_kept_is_an_error_whatever_the_limit(run):
    with pytest.raises(DataError, match="1 of 1 rows are unusable"):
        run([qa("x", "")], max_rejected=1.0)
    with pytest.raises(DataError, match="the corpus holds no rows"):
        run([])


def test_a_dataset_row_can_be_fed_in_again(run):
    _, first, _ = run([qa("Q", id="k", topic="t")])
    report, second, _ = run(first)
    assert report.formats == {"messages": 1}
    assert second[0]["id"] == "k"
    assert second[0]["metadata"] == {"topic": "t"}
