"""May a model be trained and judged on these splits?"""

from collections.abc import Iterator
from itertools import chain

from core.data.reports import FormatReport, IngestReport, Leakage, PiiReport, SplitReport
from gates.evidence import whole
from gates.thresholds import DatasetValidated
from gates.verdict import Check, Verdict, at_least, at_most, differs, equals, limit

PAIRS = (("train", "val"), ("train", "test"), ("val", "test"))
CONTACTS = frozenset({"email", "phone"})
"""Personal data that a corpus may well hold on purpose; everything else found is a secret."""


def dataset_validated(
    ingest: IngestReport | None,
    formatted: FormatReport | None,
    split: SplitReport | None,
    thresholds: DatasetValidated,
    test_uses: int | None,
) -> Verdict:
    """Judge the data: enough rows, nothing shared, nothing twice, little thrown away, nothing secret.

    A model that has seen its test questions gets a score that says nothing, and no later
    gate can tell.

    Args:
        ingest: What was gathered, or None if the phase left no report.
        formatted: What became of the rows, or None.
        split: What the split phase counted, or None.
        thresholds: The limits.
        test_uses: Runs that have judged a model on this test set before.
    """
    gathered, has_gathered = whole("ingest", ingest, IngestReport)
    usable, has_usable = whole("format", formatted, FormatReport)
    report, presence = whole("split", split, SplitReport)
    checks = [has_gathered, has_usable, presence]
    if report is not None:
        checks += _amounts(report, thresholds)
        checks += chain.from_iterable(_pair(report, a, b, thresholds) for a, b in PAIRS)
        if report.validation_pii is not None:
            checks += _personal("validation: ", report.validation_pii, report.val, thresholds)
    if gathered is not None and usable is not None:
        checks += _accounts(gathered, usable)
        checks += _sources(gathered, usable, thresholds)
        checks += _contents(usable, thresholds)
    checks.append(limit(at_most("earlier runs on this test set", test_uses, thresholds.max_test_uses)))
    return Verdict.of("dataset-validated", checks)


def _accounts(ingest: IngestReport, formatted: FormatReport) -> list[Check]:
    gone = formatted.duplicates + formatted.near_duplicates + formatted.contaminated + formatted.mixed_out
    total = formatted.kept + formatted.rejected + gone
    counts = [ingest.rows, formatted.rows, formatted.kept, formatted.rejected, formatted.duplicates]
    counts += [formatted.near_duplicates, formatted.contaminated, formatted.mixed_out]
    counts += formatted.kept_by_source.values()
    return [
        at_least("smallest row count", min(counts), 0, "a negative count is not a count"),
        equals("rows formatted", formatted.rows, ingest.rows, "against rows gathered"),
        equals("rows accounted for", total, formatted.rows, "kept, rejected, duplicate, or left out"),
    ]


def _sources(ingest: IngestReport, formatted: FormatReport, thresholds: DatasetValidated) -> Iterator[Check]:
    total = sum(formatted.kept_by_source.values())
    yield equals("rows kept from sources", total, formatted.kept)
    for source in ingest.sources:
        kept = formatted.kept_by_source.get(source.path)
        yield at_least(f"rows kept from {source.path}", kept, 1)
        if ingest.is_weighted:
            share = kept / total if kept is not None and total else None
            off = None if share is None else abs(share - source.wanted)
            detail = "" if share is None else f"{share:.3f} of the mix, asked for {source.wanted:.3f}"
            yield limit(at_most(f"share of {source.path} off by", off, thresholds.mix_tolerance, detail))


def _contents(formatted: FormatReport, thresholds: DatasetValidated) -> Iterator[Check]:
    quality = formatted.quality
    if quality is None:
        yield equals("quality report", "missing", "complete")
        return
    yield from _personal("", quality.pii, formatted.rows, thresholds)
    if quality.contamination is not None:
        found = quality.contamination
        detail = f"{found.rows} rows found, {found.removed} removed; {found.items_hit} of {found.items} items were hit"
        yield at_least(
            "benchmark items", found.items, 1, f"{found.ignored} of fewer than three words not counted"
        )
        left = found.rows - found.removed
        yield limit(at_most("rows shared with benchmarks", left, thresholds.max_contaminated, detail))


def _personal(where: str, pii: PiiReport, rows: int, thresholds: DatasetValidated) -> Iterator[Check]:
    if not pii.looked:
        # Whoever switched the scan off has answered the question; the line says that nobody looked.
        detail = "quality.pii.action is off: nobody looked"
        yield Check(name=f"{where}personal data", observed="not looked for", threshold="off", comparison="==",
                    passed=True, detail=detail)  # fmt: skip
        return
    # After redaction only what a second look still found counts.
    findings = pii.left if pii.redacted else pii.findings
    secrets = sum(count for kind, count in findings.items() if kind not in CONTACTS)
    contacts = sum(count for kind, count in findings.items() if kind in CONTACTS)
    said = ", ".join(f"{kind} {count}" for kind, count in pii.findings.items()) or "none found"
    if pii.redacted:
        said += f"; redacted, {secrets + contacts} left"
    yield limit(at_most(f"{where}secrets and identity numbers", secrets, thresholds.max_secrets, said))
    share = contacts / rows if rows else None
    yield limit(at_most(f"{where}contact details per row", share, thresholds.max_contacts, said))


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
        limit(
            at_most(
                f"{name} questions repeated",
                shared.repeated if shared else None,
                thresholds.max_leaked,
                "under another system text, or in a longer conversation",
            )
        ),
        *_near(name, shared, report, thresholds),
        limit(at_most(f"{name} shared groups", shared.groups if shared else None, thresholds.max_leaked)),
        differs(f"{name} files", report.digests.get(first), report.digests.get(second)),
    ]


def _near(
    name: str, shared: Leakage | None, report: SplitReport, thresholds: DatasetValidated
) -> list[Check]:
    if report.near_threshold is None:
        detail = "split.near_threshold is null: nobody looked"
        return [Check(name=f"{name} nearly equal questions", observed="not looked for", threshold="off",
                      comparison="==", passed=True, detail=detail)]  # fmt: skip
    detail = f"at least {report.near_threshold:.0%} of their word sequences in common"
    near = shared.near if shared else None
    return [limit(at_most(f"{name} nearly equal questions", near, thresholds.max_near_leaked, detail))]


def _counts(report: SplitReport) -> list[int]:
    leaks = chain.from_iterable(_leaks(shared) for shared in report.leakage.values())
    return [report.train, report.val, report.test, report.duplicates, report.removed, *leaks]


def _leaks(shared: Leakage) -> tuple[int, int, int, int, int]:
    return shared.exact, shared.normalised, shared.groups, shared.repeated, shared.near or 0
