"""May a model be trained and judged on these splits?"""

from itertools import chain

from core.data.reports import Leakage, SplitReport
from gates.evidence import whole
from gates.thresholds import DatasetValidated
from gates.verdict import Check, Verdict, at_least, at_most, differs, limit

PAIRS = (("train", "val"), ("train", "test"), ("val", "test"))


def dataset_validated(split: SplitReport | None, thresholds: DatasetValidated) -> Verdict:
    """Judge the splits: enough rows, nothing shared, nothing twice, little thrown away.

    A model that has seen its test questions gets a score that says nothing, and no later
    gate can tell.

    Args:
        split: What the split phase counted, or None if it left no report.
        thresholds: The limits.
    """
    report, presence = whole("split", split, SplitReport)
    checks = [presence]
    if report is not None:
        checks += _amounts(report, thresholds)
        checks += chain.from_iterable(_pair(report, a, b, thresholds) for a, b in PAIRS)
    return Verdict.of("dataset-validated", checks)


def _amounts(report: SplitReport, thresholds: DatasetValidated) -> list[Check]:
    sizes = {"train": report.train, "val": report.val, "test": report.test}
    budget = report.max_rejected if thresholds.max_rejected is None else thresholds.max_rejected
    return [
        at_least("smallest count", min(_counts(report)), 0, "a negative count is not a count"),
        limit(at_least("rows", sum(sizes.values()), thresholds.min_rows)),
        at_least("train rows", report.train, 1),
        limit(at_least("test rows", report.test, thresholds.min_test)),
        *(limit(_share(name, size, report, thresholds.ratio_tolerance)) for name, size in sizes.items()),
        limit(at_most("duplicates", report.duplicates, thresholds.max_duplicates)),
        at_least("rejected share known", report.rejected_share, 0),
        limit(at_most("rejected share", report.rejected_share, budget)),
    ]


def _share(name: str, size: int, report: SplitReport, tolerance: float) -> Check:
    total = report.train + report.val + report.test
    asked = report.requested.get(name)
    if asked is None or total <= 0:
        return at_most(
            f"{name} share off by", None, tolerance, "the share asked for, or the rows, are missing"
        )
    share = size / total
    return at_most(f"{name} share off by", abs(share - asked), tolerance, f"{share:.3f}, asked for {asked:g}")


def _pair(report: SplitReport, first: str, second: str, thresholds: DatasetValidated) -> list[Check]:
    name = f"{first}/{second}"
    # A pair that nobody looked at is not a pair without leaks.
    shared = report.leakage.get(name)
    # Equal bytes are equal after normalisation too, so the counts overlap and must not be added.
    questions = max(shared.exact, shared.normalised) if shared else None
    detail = (
        f"{shared.exact} byte for byte, {shared.normalised} after normalisation" if shared else "not counted"
    )
    return [
        limit(at_most(f"{name} shared questions", questions, thresholds.max_leaked, detail)),
        limit(at_most(f"{name} shared groups", shared.groups if shared else None, thresholds.max_leaked)),
        differs(f"{name} files", report.digests.get(first), report.digests.get(second)),
    ]


def _counts(report: SplitReport) -> list[int]:
    leaks = chain.from_iterable(_leaks(shared) for shared in report.leakage.values())
    return [report.train, report.val, report.test, report.duplicates, report.removed, *leaks]


def _leaks(shared: Leakage) -> tuple[int, int, int]:
    return shared.exact, shared.normalised, shared.groups
