"""dataset-validated: every threshold from both sides."""

import pytest

from core.data.reports import Leakage
from gates.dataset_validated import dataset_validated
from gates.thresholds import DatasetValidated

DEFAULT = DatasetValidated()
PAIRS = ("train/val", "train/test", "val/test")


def failed(report, thresholds=DEFAULT):
    return {check.name for check in dataset_validated(report, thresholds).failed}


def sized(split, train, val, test):
    return split.model_copy(update={"train": train, "val": val, "test": test})


def leaking(split, pair, exact=0, normalised=0, groups=0):
    leak = Leakage(exact=exact, normalised=normalised, groups=groups)
    return split.model_copy(update={"leakage": {**split.leakage, pair: leak}})


def test_a_clean_split_opens_the_gate(split):
    verdict = dataset_validated(split, DEFAULT)
    assert verdict.passed
    assert verdict.gate == "dataset-validated"
    assert len({check.name for check in verdict.checks}) == len(verdict.checks)


def test_no_report_closes_it():
    assert failed(None) == {"split report"}


@pytest.mark.parametrize(("rows", "closed"), [(600, set()), (601, {"rows"})])
def test_rows(split, rows, closed):
    assert failed(split, DatasetValidated(min_rows=rows)) == closed


@pytest.mark.parametrize(("least", "closed"), [(60, set()), (61, {"test rows"})])
def test_test_rows(split, least, closed):
    assert failed(split, DatasetValidated(min_test=least)) == closed


def test_train_rows(split):
    assert "train rows" in failed(sized(split, 0, 60, 60))


@pytest.mark.parametrize(
    ("sizes", "closed"),
    [
        ((75, 10, 15), set()),
        ((74, 10, 16), {"train share off by", "test share off by"}),
        ((85, 5, 10), set()),
        ((80, 4, 16), {"val share off by", "test share off by"}),
    ],
)
def test_shares_may_be_off_by_five_points(split, sizes, closed):
    assert failed(sized(split, *sizes), DatasetValidated(min_test=1)) == closed


def test_shares_asked_for_must_be_known(split):
    assert failed(split.model_copy(update={"requested": {}})) == {
        f"{n} share off by" for n in ("train", "val", "test")
    }


@pytest.mark.parametrize(
    ("count", "allowed", "closed"), [(0, 0, False), (1, 0, True), (3, 3, False), (4, 3, True)]
)
@pytest.mark.parametrize("pair", PAIRS)
@pytest.mark.parametrize("kind", ["exact", "normalised"])
def test_shared_questions(split, pair, kind, count, allowed, closed):
    report = leaking(split, pair, **{kind: count})
    expected = {f"{pair} shared questions"} if closed else set()
    assert failed(report, DatasetValidated(max_leaked=allowed)) == expected


def test_a_question_shared_byte_for_byte_counts_once(split):
    assert (
        failed(leaking(split, "train/test", exact=2, normalised=3), DatasetValidated(max_leaked=3)) == set()
    )


@pytest.mark.parametrize(("groups", "closed"), [(0, set()), (1, {"train/test shared groups"})])
def test_shared_groups(split, groups, closed):
    assert failed(leaking(split, "train/test", groups=groups)) == closed


@pytest.mark.parametrize("pair", PAIRS)
def test_a_pair_nobody_compared_closes_it(split, pair):
    report = split.model_copy(update={"leakage": {p: leak for p, leak in split.leakage.items() if p != pair}})
    assert failed(report) == {f"{pair} shared questions", f"{pair} shared groups"}


@pytest.mark.parametrize(
    ("count", "allowed", "closed"), [(0, 0, False), (1, 0, True), (2, 2, False), (3, 2, True)]
)
def test_duplicates(split, count, allowed, closed):
    report = split.model_copy(update={"duplicates": count})
    assert failed(report, DatasetValidated(max_duplicates=allowed)) == ({"duplicates"} if closed else set())


@pytest.mark.parametrize(
    ("share", "own", "closed"),
    [
        (0.05, None, False),
        (0.0501, None, True),
        (0.2, 0.2, False),
        (0.21, 0.2, True),
        (0.01, 0.0, True),
        (0.0, 0.0, False),
    ],
)
def test_rejected_share_is_held_against_the_gates_budget_or_the_format_phases(split, share, own, closed):
    report = split.model_copy(update={"rejected_share": share})
    assert failed(report, DatasetValidated(max_rejected=own)) == ({"rejected share"} if closed else set())


def test_identical_files_close_it(split):
    same = dict.fromkeys(("train", "val", "test"), split.digests["train"])
    assert failed(split.model_copy(update={"digests": same})) == {f"{pair} files" for pair in PAIRS}


@pytest.mark.parametrize("digests", [{}, {"train": "", "val": "", "test": ""}])
def test_files_without_digests_close_it(split, digests):
    assert failed(split.model_copy(update={"digests": digests})) == {f"{pair} files" for pair in PAIRS}


def test_negative_counts_close_it(split):
    assert failed(leaking(split, "train/test", exact=-1)) == {"smallest count"}
    assert failed(split.model_copy(update={"duplicates": -1})) == {"smallest count"}
    assert failed(split.model_copy(update={"removed": -1})) == {"smallest count"}
    assert failed(split.model_copy(update={"rejected_share": -0.5})) == {"rejected share known"}
