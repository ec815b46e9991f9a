"""dataset-validated: every threshold from both sides."""

import pytest

from core.data.reports import Leakage
from gates.dataset_validated import dataset_validated
from gates.thresholds import DatasetValidated

DEFAULT = DatasetValidated()
PAIRS = ("train/val", "train/test", "val/test")


@pytest.fixture
def judge(ingested, formatted, split):
    """Judge good reports but for what is given; None stands for a report that is missing."""

    def go(thresholds=DEFAULT, uses=0, **reports):
        given = {"ingested": ingested, "formatted": formatted, "split": split} | reports
        return dataset_validated(given["ingested"], given["formatted"], given["split"], thresholds, uses)

    return go


@pytest.fixture
def failed(judge):
    return lambda report, thresholds=DEFAULT: {check.name for check in judge(thresholds, split=report).failed}


def sized(split, train, val, test):
    return split.model_copy(update={"train": train, "val": val, "test": test})


def leaking(split, pair, exact=0, normalised=0, groups=0, near=0):
    leak = Leakage(exact=exact, normalised=normalised, groups=groups, near=near)
    return split.model_copy(update={"leakage": {**split.leakage, pair: leak}})


def test_clean_data_opens_the_gate(judge):
    verdict = judge()
    assert verdict.passed
    assert verdict.gate == "dataset-validated"
    assert len({check.name for check in verdict.checks}) == len(verdict.checks)


def test_no_report_closes_it(failed):
    assert failed(None) == {"split report"}


@pytest.mark.parametrize(("rows", "closed"), [(600, set()), (601, {"rows"})])
def test_rows(failed, split, rows, closed):
    assert failed(split, DatasetValidated(min_rows=rows)) == closed


@pytest.mark.parametrize(("least", "closed"), [(60, set()), (61, {"test rows"})])
def test_test_rows(failed, split, least, closed):
    assert failed(split, DatasetValidated(min_test=least)) == closed


def test_train_rows(failed, split):
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
def test_shares_may_be_off_by_five_points(failed, split, sizes, closed):
    assert failed(sized(split, *sizes), DatasetValidated(min_test=1)) == closed


def test_shares_asked_for_must_be_known(failed, split):
    assert failed(split.model_copy(update={"requested": {}})) == {
        f"{n} share off by" for n in ("train", "val", "test")
    }


@pytest.mark.parametrize(
    ("count", "allowed", "closed"), [(0, 0, False), (1, 0, True), (3, 3, False), (4, 3, True)]
)
@pytest.mark.parametrize("pair", PAIRS)
@pytest.mark.parametrize("kind", ["exact", "normalised"])
def test_shared_questions(failed, split, pair, kind, count, allowed, closed):
    report = leaking(split, pair, **{kind: count})
    expected = {f"{pair} shared questions"} if closed else set()
    assert failed(report, DatasetValidated(max_leaked=allowed)) == expected


def test_a_question_shared_byte_for_byte_counts_once(failed, split):
    assert (
        failed(leaking(split, "train/test", exact=2, normalised=3), DatasetValidated(max_leaked=3)) == set()
    )


@pytest.mark.parametrize(("groups", "closed"), [(0, set()), (1, {"train/test shared groups"})])
def test_shared_groups(failed, split, groups, closed):
    assert failed(leaking(split, "train/test", groups=groups)) == closed


@pytest.mark.parametrize("pair", PAIRS)
def test_a_pair_nobody_compared_closes_it(failed, split, pair):
    report = split.model_copy(update={"leakage": {p: leak for p, leak in split.leakage.items() if p != pair}})
    assert failed(report) == {
        f"{pair} shared questions",
        f"{pair} questions repeated",
        f"{pair} nearly equal questions",
        f"{pair} shared groups",
    }


@pytest.mark.parametrize(
    ("count", "allowed", "closed"), [(0, 0, False), (1, 0, True), (2, 2, False), (3, 2, True)]
)
def test_duplicates(failed, split, count, allowed, closed):
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
def test_rejected_share_is_held_against_the_gates_budget_or_the_format_phases(
    failed, split, share, own, closed
):
    report = split.model_copy(update={"rejected_share": share})
    assert failed(report, DatasetValidated(max_rejected=own)) == ({"rejected share"} if closed else set())


def test_identical_files_close_it(failed, split):
    same = dict.fromkeys(("train", "val", "test"), split.digests["train"])
    assert failed(split.model_copy(update={"digests": same})) == {f"{pair} files" for pair in PAIRS}


@pytest.mark.parametrize("digests", [{}, {"train": "", "val": "", "test": ""}])
def test_files_without_digests_close_it(failed, split, digests):
    assert failed(split.model_copy(update={"digests": digests})) == {f"{pair} files" for pair in PAIRS}


def test_negative_counts_close_it(failed, split):
    assert failed(leaking(split, "train/test", exact=-1)) == {"smallest count"}
    assert failed(split.model_copy(update={"duplicates": -1})) == {"smallest count"}
    assert failed(split.model_copy(update={"removed": -1})) == {"smallest count"}
    assert failed(split.model_copy(update={"rejected_share": -0.5})) == {"rejected share known"}
    assert failed(leaking(split, "train/test", near=-1)) == {"smallest count"}


@pytest.mark.parametrize(
    ("count", "allowed", "closed"), [(0, 0, False), (1, 0, True), (3, 3, False), (4, 3, True)]
)
@pytest.mark.parametrize("pair", PAIRS)
def test_nearly_equal_questions(failed, split, pair, count, allowed, closed):
    expected = {f"{pair} nearly equal questions"} if closed else set()
    assert failed(leaking(split, pair, near=count), DatasetValidated(max_near_leaked=allowed)) == expected


def test_a_comparison_that_was_asked_for_and_not_made_closes_it(failed, split):
    assert failed(leaking(split, "train/test", near=None)) == {"train/test nearly equal questions"}
    unasked = split.model_copy(update={"near_threshold": None})
    assert failed(leaking(unasked, "train/test", near=None)) == set()


@pytest.mark.parametrize("pair", PAIRS)
def test_a_question_repeated_in_another_setting_closes_it(failed, split, pair):
    leak = split.leakage[pair].model_copy(update={"repeated": 1})
    report = split.model_copy(update={"leakage": {**split.leakage, pair: leak}})
    assert failed(report) == {f"{pair} questions repeated"}
    assert failed(report, DatasetValidated(max_leaked=1)) == set()


def names(verdict):
    return {check.name for check in verdict.failed}


@pytest.mark.parametrize("name", ["ingested", "formatted"])
def test_a_missing_account_closes_it(judge, name):
    label = {"ingested": "ingest", "formatted": "format"}[name]
    assert names(judge(**{name: None})) == {f"{label} report"}


def test_rows_must_be_accounted_for(judge, formatted, ingested):
    assert names(judge(formatted=formatted.model_copy(update={"duplicates": 21}))) == {"rows accounted for"}
    assert names(judge(ingested=ingested.model_copy(update={"rows": 651}))) == {"rows formatted"}
    fewer = formatted.model_copy(update={"duplicates": -1, "rejected": 28})
    assert names(judge(formatted=fewer)) == {"smallest row count"}


@pytest.mark.parametrize(
    ("kept", "closed"),
    [
        ({"a.jsonl": 462, "b.jsonl": 138}, set()),
        ({"a.jsonl": 463, "b.jsonl": 137}, {"share of a.jsonl off by", "share of b.jsonl off by"}),
        (
            {"a.jsonl": 600, "b.jsonl": 0},
            {"rows kept from b.jsonl", "share of a.jsonl off by", "share of b.jsonl off by"},
        ),
        ({"a.jsonl": 600}, {"rows kept from b.jsonl", "share of a.jsonl off by", "share of b.jsonl off by"}),
    ],
)
def test_a_mix_may_be_two_points_off(judge, formatted, kept, closed):
    assert names(judge(formatted=formatted.model_copy(update={"kept_by_source": kept}))) == closed


def test_without_weights_shares_are_nobodys_promise(judge, formatted, ingested):
    plain = ingested.model_copy(update={"is_weighted": False})
    skewed = formatted.model_copy(update={"kept_by_source": {"a.jsonl": 599, "b.jsonl": 1}})
    assert names(judge(ingested=plain, formatted=skewed)) == set()


def with_pii(formatted, findings, **more):
    report = formatted.quality.pii.model_copy(update={"findings": findings, **more})
    return formatted.model_copy(update={"quality": formatted.quality.model_copy(update={"pii": report})})


@pytest.mark.parametrize(
    "kind", ["card", "iban", "api_key", "private_key", "password", "national_id.us_ssn", "unheard_of"]
)
def test_one_secret_closes_it(judge, formatted, kind):
    report = with_pii(formatted, {kind: 1, "email": 2})
    assert names(judge(formatted=report)) == {"secrets and identity numbers"}
    assert names(judge(DatasetValidated(max_secrets=1), formatted=report)) == set()
    assert names(judge(formatted=with_pii(formatted, {kind: 1}, redacted=True))) == set()
    missed = with_pii(formatted, {kind: 2}, redacted=True, left={kind: 1})
    assert names(judge(formatted=missed)) == {"secrets and identity numbers"}


@pytest.mark.parametrize(("count", "closed"), [(32, set()), (33, {"contact details per row"})])
def test_contact_details_in_five_rows_of_a_hundred(judge, formatted, count, closed):
    assert names(judge(formatted=with_pii(formatted, {"email": count - 10, "phone": 10}))) == closed


def test_a_scan_that_was_switched_off_is_not_judged(judge, formatted):
    verdict = judge(formatted=with_pii(formatted, {}, looked=False))
    assert verdict.passed
    shown = {check.name: check.observed for check in verdict.checks}
    assert shown["personal data"] == "not looked for"
    assert "secrets and identity numbers" not in shown


def test_a_given_validation_file_is_judged_too(judge, formatted, split):
    found = formatted.quality.pii.model_copy(update={"findings": {"api_key": 1}})
    assert names(judge(split=split.model_copy(update={"validation_pii": found}))) == {
        "validation: secrets and identity numbers"
    }


def test_a_benchmark_without_items_closes_it(judge, formatted):
    nothing = formatted.quality.contamination.model_copy(update={"items": 0, "ignored": 7})
    report = formatted.model_copy(
        update={"quality": formatted.quality.model_copy(update={"contamination": nothing})}
    )
    assert names(judge(formatted=report)) == {"benchmark items"}


def test_rows_of_a_benchmark_close_it_unless_removed(judge, formatted):
    found = formatted.quality.contamination.model_copy(update={"removed": 1})
    report = formatted.model_copy(
        update={"quality": formatted.quality.model_copy(update={"contamination": found})}
    )
    assert names(judge(formatted=report)) == {"rows shared with benchmarks"}
    assert names(judge(DatasetValidated(max_contaminated=1), formatted=report)) == set()


def test_rows_nobody_looked_into_close_it(judge, formatted):
    assert names(judge(formatted=formatted.model_copy(update={"quality": None}))) == {"quality report"}


@pytest.mark.parametrize(
    ("uses", "closed"), [(0, set()), (100, set()), (101, {"earlier runs on this test set"})]
)
def test_a_worn_out_test_set_closes_it(judge, uses, closed):
    assert names(judge(uses=uses)) == closed


def test_uses_nobody_counted_close_it(judge):
    assert names(judge(uses=None)) == {"earlier runs on this test set"}
