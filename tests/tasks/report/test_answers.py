import pytest

from tasks.report import answers
from tasks.report.answers import AnswerRow, flips


def row(base: bool | None, tuned: bool | None, shipped: bool | None = None, **fields: str) -> AnswerRow:
    def scores(right: bool | None) -> dict[str, float]:
        return {} if right is None else {"exact_match": float(right), "token_f1": 1.0}

    return AnswerRow(
        id="q",
        question="Q?",
        reference="R",
        baseline="a",
        tuned="b",
        shipped="c",
        baseline_scores=scores(base),
        tuned_scores=scores(tuned),
        shipped_scores=scores(shipped),
        **fields,
    )


@pytest.mark.parametrize(
    ("base", "tuned", "kind"),
    [
        (False, True, "fixed"),
        (True, False, "broken"),
        (True, True, "same_right"),
        (False, False, "same_wrong"),
    ],
)
def test_tuning_sorts_into_exactly_one_kind(base: bool, tuned: bool, kind: str) -> None:
    given = row(base, tuned)
    found = flips([given])._asdict()
    assert {name for name, rows in found.items() if rows} == {kind}
    assert found[kind] == (given,)


@pytest.mark.parametrize(
    ("tuned", "shipped", "kind"),
    [
        (True, False, "quantization_broke"),
        (False, True, "quantization_fixed"),
        (True, True, None),
        (False, False, None),
    ],
)
def test_quantization_flips(tuned: bool, shipped: bool, kind: str | None) -> None:
    found = flips([row(None, tuned, shipped)])._asdict()
    assert {name for name, rows in found.items() if rows} == ({kind} if kind else set())


def test_ungraded_answers_take_part_in_nothing() -> None:
    assert not any(flips([row(True, None), row(None, True), row(None, None)]))


def test_flips_partition_the_graded_rows() -> None:
    rows = [row(a, b) for a in (True, False) for b in (True, False) for _ in range(3)]
    found = flips(rows)
    assert [len(kind) for kind in found[:4]] == [3, 3, 3, 3]


def test_exact_match_decides_and_full_marks_do_without_it() -> None:
    assert answers.is_right({"exact_match": 0.0, "token_f1": 1.0}) is False
    assert answers.is_right({"exact_match": 1.0, "token_f1": 0.9}) is True
    assert answers.is_right({"token_f1": 0.99}) is False
    assert answers.is_right({"token_f1": 1.0}) is True
    assert answers.is_right({}) is None


def test_worst_news_come_first() -> None:
    rows = [row(True, True), row(False, True), row(True, False), row(False, False), row(False, True, False)]
    assert [flip.kinds for flip in answers.flip_rows(rows)] == [
        ("broken",),
        ("quantization-broke", "fixed"),
        ("fixed",),
        ("all-wrong",),
        ("all-right",),
    ]


def test_answers_without_grades_say_so() -> None:
    assert answers.flip_rows([row(None, None)])[0].label == "Not graded"
    assert answers.flip_rows([row(True, None, False)])[0].label == "Mixed"


def test_topics_count_right_answers() -> None:
    rows = [
        row(True, True, topic="a"),
        row(False, True, topic="a"),
        row(False, None, topic="b"),
        row(True, True),
    ]
    assert answers.topic_rows(rows) == (
        ("a", 2, 0.5, 1.0, None),
        (answers.NO_TOPIC, 1, 1.0, 1.0, None),
        ("b", 1, 0.0, None, None),
    )
    assert answers.topic_rows([row(True, True)]) == ()
