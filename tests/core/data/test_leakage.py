import pytest

from core.data.leakage import measure
from core.data.reports import Leakage
from core.data.workers import Inline
from core.errors import DataError

NONE = Leakage(exact=0, normalised=0, groups=0, near=None)


def measure_leakage(folder, group_by=None, threshold=None):
    return measure(folder, Inline(), folder, group_by=group_by, threshold=threshold).leakage


@pytest.fixture
def lay(tmp_path, jsonl, make_row):
    def go(**parts):
        numbers = iter(range(1000))
        for name in ("train", "val", "test"):
            rows = [
                make_row(next(numbers), question, answer, **meta)
                for question, answer, meta in parts.get(name, [])
            ]
            jsonl(tmp_path / f"{name}.jsonl", rows)
        return tmp_path

    return go


def test_clean_splits_show_nothing(lay):
    folder = lay(train=[("a", "x", {})], val=[("b", "x", {})], test=[("c", "x", {})])
    assert measure_leakage(folder) == {"train/val": NONE, "train/test": NONE, "val/test": NONE}


def test_planted_leaks_are_counted_by_pair_and_kind(lay):
    folder = lay(
        train=[
            ("Same question", "x", {"book": 1}),
            ("exact", "x", {"book": 2}),
            ("free", "x", {"book": "3"}),
        ],
        val=[("same  QUESTION", "other answer", {"book": 3})],
        test=[("exact", "y", {"book": 2}), ("exact", "z", {"book": 1}), ("SAME question", "x", {"book": 9})],
    )
    assert measure_leakage(folder, "book") == {
        "train/val": Leakage(exact=0, normalised=1, groups=0, near=None, repeated=1),
        "train/test": Leakage(exact=1, normalised=2, groups=2, near=None, repeated=3),
        "val/test": Leakage(exact=0, normalised=1, groups=0, near=None, repeated=1),
    }
    assert measure_leakage(folder)["train/test"].groups == 0


def test_a_row_without_group_is_named(lay):
    folder = lay(train=[("a", "x", {"book": 1})], val=[("b", "x", {})])
    with pytest.raises(DataError) as error:
        measure_leakage(folder, "book")
    assert error.value.where == "row r1 (rows.jsonl:2)"
    assert "'book'" in error.value.what


@pytest.mark.parametrize("value", ["", "  ", None, ["a"], {"a": 1}])
def test_blank_and_structured_groups_are_refused(lay, value):
    with pytest.raises(DataError, match="row r0"):
        measure_leakage(lay(train=[("a", "x", {"book": value})]), "book")


def test_duplicates_are_equal_conversations(lay):
    folder = lay(train=[("a", "x", {}), ("A ", "X", {}), ("a", "y", {}), ("a", "x", {"m": 1})])
    assert measure(folder, Inline(), folder).duplicates == 2


LONG = "one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen"


def test_nearly_equal_questions_on_two_sides_are_counted_once_each(lay):
    folder = lay(
        train=[(LONG, "x", {}), (LONG + " seventeen", "x", {}), ("something else altogether here", "x", {})],
        val=[("nothing like it at all", "x", {})],
        test=[(LONG + " eighteen", "y", {}), ("again a question of its own", "y", {})],
    )
    found = measure_leakage(folder, threshold=0.8)
    assert {pair: leak.near for pair, leak in found.items()} == {
        "train/val": 0,
        "train/test": 1,
        "val/test": 0,
    }
    assert found["train/test"].normalised == 0


def test_splits_are_compared_by_source_and_by_fields_of_few_values(lay):
    folder = lay(
        train=[(f"q{n}", "x", {"topic": "ab"[n % 2], "page": n}) for n in range(20)],
        test=[("other", "x", {"topic": "a", "page": 99})],
    )
    found = {c.property: c.counts for c in measure(folder, Inline(), folder).composition}
    assert found["topic"] == {"train": {"a": 10, "b": 10}, "val": {"a": 0, "b": 0}, "test": {"a": 1, "b": 0}}
    assert found["source"]["train"] == {"rows.jsonl": 20}
    assert "page" not in found


def chat(number, *turns, system=None):
    said = [{"role": ("user", "assistant")[n % 2], "content": text} for n, text in enumerate(turns)]
    head = [{"role": "system", "content": system}] if system else []
    return {
        "id": f"r{number}",
        "conversations": head + said,
        "metadata": {},
        "origin": {"file": "a", "line": number},
    }


def test_the_same_question_under_another_system_text_is_a_repetition(tmp_path, jsonl):
    jsonl(tmp_path / "train.jsonl", [chat(1, "What is it?", "42", system="Be brief.")])
    jsonl(tmp_path / "val.jsonl", [])
    jsonl(tmp_path / "test.jsonl", [chat(2, "what is IT?", "42", system="Be kind.")])
    found = measure_leakage(tmp_path)["train/test"]
    assert (found.exact, found.normalised, found.repeated) == (0, 0, 1)


def test_a_question_inside_a_longer_conversation_is_a_repetition(tmp_path, jsonl):
    jsonl(tmp_path / "train.jsonl", [chat(1, "Where is Ho?", "In Volta.", "And Wa?", "In Upper West.")])
    jsonl(tmp_path / "val.jsonl", [chat(3, "And Wa?", "In Upper West.")])
    jsonl(tmp_path / "test.jsonl", [chat(2, "Where is Ho?", "In the Volta region.")])
    found = measure_leakage(tmp_path)
    assert {pair: leak.repeated for pair, leak in found.items()} == {
        "train/val": 0,
        "train/test": 1,
        "val/test": 0,
    }


def test_what_half_the_rows_ask_is_a_phrase(tmp_path, jsonl):
    rows = [chat(n, "Continue.", f"answer {n}", system=f"Passage {n}") for n in range(120)]
    jsonl(tmp_path / "train.jsonl", rows[:60])
    jsonl(tmp_path / "val.jsonl", [])
    jsonl(tmp_path / "test.jsonl", rows[60:])
    assert measure_leakage(tmp_path)["train/test"].repeated == 0
