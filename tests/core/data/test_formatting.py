import json

import pytest

from core.data.config import (
    ContaminationConfig,
    FieldsConfig,
    FormatConfig,
    PiiConfig,
    QualityConfig,
    SourceConfig,
)
from core.data.dataset_file import read_dataset
from core.data.formatting import format_records
from core.data.ingest import ingest
from core.data.workers import Inline, open_workers
from core.errors import DataError


def qa(question, answer="A", **more):
    return {"question": question, "answer": answer, **more}


def rows_of(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture
def run(tmp_path, jsonl):
    def go(rows, *, quality=None, benchmarks=(), **settings):
        jsonl(tmp_path / "a.jsonl", rows)
        corpus, target = tmp_path / "corpus.parquet", tmp_path / "out/dataset.parquet"
        ingest([SourceConfig(path="a.jsonl")], corpus, base=tmp_path, cache=tmp_path / "cache")
        report = format_records(
            corpus,
            target,
            tmp_path / "out/rejected.jsonl",
            FormatConfig(**settings),
            quality,
            workers=Inline(),
            benchmarks=benchmarks,
        )
        return report, list(read_dataset(target)), rows_of(tmp_path / "out/rejected.jsonl")

    return go


def test_rows_of_every_shape_become_conversations(run, tmp_path):
    rows = [
        {"instruction": "S", "input": "Q", "output": "ɛ", "id": "x-1", "topic": "t"},
        {"messages": [{"role": "user", "content": "1"}, {"role": "assistant", "content": "2"}]},
        {"conversations": [{"from": "human", "value": "3"}, {"from": "gpt", "value": "4"}]},
        qa("5"),
    ]
    report, dataset, rejected = run(rows)
    assert report.formats == {"alpaca": 1, "messages": 1, "sharegpt": 1, "question_answer": 1}
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
    rows = [qa(f"{n}") for n in range(98)] + [qa("x", ""), {"nothing": "y" * 1000}]
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
    rows = [qa(f"{n}") for n in range(10)] + [qa("x", "")] * 3 + [{"nothing": "y"}]
    with pytest.raises(DataError) as error:
        run(rows)
    text = str(error.value)
    assert "4 of 14 rows are unusable, 5.0% are allowed (empty answer: 3, unknown shape: 1)" in text
    assert all(f"a.jsonl:{line}: empty answer" in text for line in (11, 12, 13))
    assert "a.jsonl:14" not in text
    assert "rejected.jsonl" in error.value.fix
    assert "{instruction, input, output}" in error.value.fix
    assert len(rows_of(tmp_path / "out/rejected.jsonl")) == 4
    assert not (tmp_path / "out/dataset.parquet").exists()
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
    with pytest.raises(DataError, match="holds no rows"):
        run([])


def test_a_dataset_row_can_be_fed_in_again(run):
    _, first, _ = run([qa("Q", id="k", topic="t")])
    report, second, _ = run(first)
    assert report.formats == {"sharegpt": 1}
    assert second[0]["id"] == "k"
    assert second[0]["metadata"] == {"topic": "t"}


LONG = "tell me in a few simple words how the rain is made in the clouds above the sea and why it falls on the land"


def test_nearly_equal_rows_are_dropped_and_shown(run):
    rows = [
        qa(LONG, "warm air rises and cools"),
        qa("Please " + LONG, "warm air rises and cools"),
        qa("other"),
    ]
    report, dataset, _ = run(rows)
    assert (report.kept, report.duplicates, report.near_duplicates) == (2, 0, 1)
    assert report.near_examples[0][0].startswith("Please tell")
    assert [row["origin"]["line"] for row in dataset] == [1, 3]
    report, _, _ = run(rows, near_duplicates="keep")
    assert (report.kept, report.near_duplicates, report.near_threshold) == (3, 0, None)


def test_the_same_question_under_another_system_text_is_no_near_duplicate(run):
    rows = [
        {"instruction": f"Translate to {name}", "input": LONG, "output": "ɛyɛ"}
        for name in ("Twi", "Ga", "Ewe")
    ]
    assert run(rows)[0].kept == 3


def test_broken_lines_are_rejected_rows_not_errors(tmp_path, run):
    rows = [qa(str(n)) for n in range(40)]
    lines = [
        *(json.dumps(row) for row in rows),
        '{"question": NaN}',
        "[1]",
        "{",
        '{"question": "x", "answer": 1e999}',
    ]
    (tmp_path / "b.jsonl").write_bytes("\n".join(lines).encode() + b'\n{"question": "\xff", "answer": "b"}')
    corpus = tmp_path / "c.parquet"
    ingest([SourceConfig(path="b.jsonl")], corpus, base=tmp_path, cache=tmp_path)
    report = format_records(
        corpus, tmp_path / "d", tmp_path / "rejected.jsonl", FormatConfig(max_rejected=0.2), workers=Inline()
    )
    listed = rows_of(tmp_path / "rejected.jsonl")
    assert [row["line"] for row in listed] == [41, 42, 43, 44, 45]
    assert listed[0]["reason"] == listed[2]["reason"] == "not valid JSON"
    assert listed[1]["reason"] == "row is not an object"
    assert listed[4]["reason"].startswith("not UTF-8")
    assert report.kept == 40


def test_text_is_normalised_and_text_of_nothing_is_rejected(run):
    rows = [qa("Ɛte\u00a0sɛn?\r\n", "ɛyɛ\u200b"), qa("\u200b", "x")]
    report, dataset, rejected = run(rows, max_rejected=0.5)
    assert [turn["content"] for turn in dataset[0]["conversations"]] == ["Ɛte sɛn?", "ɛyɛ"]
    assert rejected[0]["reason"] in ("empty turn", "no user turn")
    assert report.quality.changed_by_normalisation >= 1
    _, dataset, _ = run(rows[:1], normalise=False)
    assert dataset[0]["conversations"][0]["content"] == "Ɛte\u00a0sɛn?"


def test_personal_data_is_counted_or_redacted(run):
    rows = [qa("Write to ama.mensah@example.org please", "done"), qa("hello")]
    report, dataset, _ = run(rows)
    assert report.quality.pii.findings == {"email": 1}
    assert "ama.mensah" in dataset[0]["conversations"][0]["content"]
    assert "ama.mensah" not in report.model_dump_json()
    report, dataset, _ = run(rows, quality=QualityConfig(pii=PiiConfig(action="redact")))
    assert dataset[0]["conversations"][0]["content"] == "Write to [EMAIL] please"
    assert (report.quality.pii.redacted, report.quality.pii.findings) == (True, {"email": 1})
    report, _, _ = run(rows, quality=QualityConfig(pii=PiiConfig(action="off")))
    assert not report.quality.pii.looked


@pytest.mark.parametrize(("action", "kept", "gone"), [("report", 3, 0), ("remove", 2, 1)])
def test_rows_of_a_benchmark_are_reported_or_removed(run, action, kept, gone):
    rows = [qa("first"), qa(LONG), qa("third")]
    config = QualityConfig(contamination=ContaminationConfig(files=("x",), action=action))
    report, dataset, _ = run(rows, quality=config, benchmarks=[LONG])
    assert (report.kept, report.contaminated, len(dataset)) == (kept, gone, kept)
    assert (report.quality.contamination.rows, report.quality.contamination.items_hit) == (1, 1)
    assert report.rows == report.kept + report.contaminated


def mixed(tmp_path, jsonl, sizes, weights, workers, seed=0):
    for name, size in sizes.items():
        jsonl(tmp_path / f"{name}.jsonl", [qa(f"{name} {n}", f"{name}{n}") for n in range(size)])
    sources = [SourceConfig(path=f"{name}.jsonl", weight=weights[name]) for name in sizes]
    ingest(sources, tmp_path / "c.parquet", base=tmp_path, cache=tmp_path)
    target = tmp_path / f"d{seed}.parquet"
    report = format_records(
        tmp_path / "c.parquet", target, tmp_path / "r", FormatConfig(), workers=workers, seed=seed
    )
    return report, [row["id"] for row in read_dataset(target)]


def test_a_mix_follows_its_weights_after_cleaning(tmp_path, jsonl):
    report, ids = mixed(tmp_path, jsonl, {"a": 60, "b": 100}, {"a": 3, "b": 1}, Inline())
    assert report.kept_by_source == {"a.jsonl": 60, "b.jsonl": 20}
    assert (report.kept, report.mixed_out) == (80, 80)
    assert mixed(tmp_path, jsonl, {"a": 60, "b": 100}, {"a": 3, "b": 1}, Inline(), seed=1)[1] != ids


def test_equal_weights_keep_every_row_once(tmp_path, jsonl):
    report, ids = mixed(tmp_path, jsonl, {"a": 7, "b": 31}, {"a": 2, "b": 2}, Inline())
    assert (report.kept, report.mixed_out, len(set(ids))) == (38, 0, 38)


def test_fields_named_by_the_config_are_used(tmp_path, jsonl):
    jsonl(tmp_path / "a.jsonl", [{"frage": "1?", "antwort": "eins", "note": 3}])
    source = SourceConfig(path="a.jsonl", fields=FieldsConfig(user="frage", assistant="antwort"))
    ingest([source], tmp_path / "c.parquet", base=tmp_path, cache=tmp_path)
    report = format_records(
        tmp_path / "c.parquet", tmp_path / "d", tmp_path / "r", FormatConfig(), workers=Inline()
    )
    row = next(read_dataset(tmp_path / "d"))
    assert [turn["content"] for turn in row["conversations"]] == ["1?", "eins"]
    assert row["metadata"] == {"note": 3}
    assert report.formats == {"mapped": 1}
    assert "frage" in report.looks_like[0]


def test_workers_do_not_change_a_byte(tmp_path, jsonl, monkeypatch):
    monkeypatch.setattr("core.data.parts.PART_ROWS", 50)
    report, _ = mixed(tmp_path, jsonl, {"a": 170, "b": 230}, {"a": 1, "b": 1}, Inline())
    alone = (tmp_path / "d0.parquet").read_bytes()
    with open_workers("local", 2, None) as workers:
        again, _ = mixed(tmp_path, jsonl, {"a": 170, "b": 230}, {"a": 1, "b": 1}, workers)
    assert (tmp_path / "d0.parquet").read_bytes() == alone
    assert again == report


def test_redaction_reaches_calls_metadata_and_rejects(run, tmp_path):
    call = {
        "type": "function",
        "function": {"name": "mail", "arguments": json.dumps({"to": "a.b@example.org"})},
    }
    row = {
        "messages": [
            {"role": "user", "content": "Send it"},
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "content": "sent"},
            {"role": "assistant", "content": "Done"},
        ],
        "contact": "c.d@example.org",
    }
    rows = [row, {"nothing": "e.f@example.org"}, qa("hello")]
    config = QualityConfig(pii=PiiConfig(action="redact"))
    report, dataset, rejected = run(rows, quality=config, max_rejected=0.5)
    everything = json.dumps([dataset, rejected]) + report.model_dump_json()
    assert "@example.org" not in everything
    (turn,) = [turn for turn in dataset[0]["conversations"] if turn.get("tool_calls")]
    assert json.loads(turn["tool_calls"][0]["arguments"]) == {"to": "[EMAIL]"}
    assert dataset[0]["metadata"]["contact"] == "[EMAIL]"
    assert (report.quality.pii.findings, report.quality.pii.left) == ({"email": 2}, {})


def test_answers_of_few_kinds_are_labels(run):
    rows = [qa(f"review number {n} of many", "positive" if n % 4 else "negative") for n in range(40)]
    (label,) = [label for label in run(rows)[0].quality.labels if label.field == "answer"]
    assert label.counts == {"positive": 30, "negative": 10}


def test_a_reason_is_counted_once_however_many_places_it_names(tmp_path):
    lines = [json.dumps(qa(str(n))).encode() for n in range(10)] + [b" " * n + b"caf\xe9" for n in range(20)]
    (tmp_path / "b.jsonl").write_bytes(b"\n".join(lines))
    ingest([SourceConfig(path="b.jsonl")], tmp_path / "c", base=tmp_path, cache=tmp_path)
    report = format_records(
        tmp_path / "c", tmp_path / "d", tmp_path / "r.jsonl", FormatConfig(max_rejected=1), workers=Inline()
    )
    assert report.reasons == {"not UTF-8": 20}
    assert rows_of(tmp_path / "r.jsonl")[3]["detail"] == "byte 0xe9 at column 7"


def test_an_article_does_not_displace_the_question_that_quotes_it(run):
    report, _, _ = run([{"text": LONG + " warm air rises"}, qa(LONG, "warm air rises")])
    assert report.kept == 2
