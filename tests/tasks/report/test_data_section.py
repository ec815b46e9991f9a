"""The Data and "Will it learn?" sections: what is there is shown, what is not is not, and text stays text."""

import base64
import hashlib
import re
from html import unescape
from typing import get_args

import pytest

from core.data.learning_reports import LearnReport, OverfitReport
from core.data.reports import Composition, FormatReport, Leakage, QualityReport
from tasks.report.data_page import DataReports, render_data_page
from tasks.test_uses import TestUses
from tests.tasks.report import data_reports as found
from tests.tasks.report.test_page import ATTACK, Reader, words

ALL = DataReports(found.INGEST, found.FORMATTED, found.SPLIT, found.LEARNING, found.TEST_USES)


def page(**parts: object) -> str:
    return render_data_page("tutor", ALL._replace(**parts))


def with_format(**fields: object) -> str:
    return page(formatted=found.FORMATTED.model_copy(update=fields))


def with_quality(**fields: object) -> str:
    return with_format(quality=found.QUALITY.model_copy(update=fields))


def with_split(**fields: object) -> str:
    return page(split=found.SPLIT.model_copy(update=fields))


def with_learning(**fields: object) -> str:
    return page(learning=found.LEARNING.model_copy(update=fields))


def text_of(html: str) -> str:
    return words(html)


SHOWN = (
    "Raw rows 3,110",
    "near-duplicates: 30 rows, 1.0 %",
    "left out for the weights: 400 rows, 12.9 %",
    "no answer 21 60.0 %",
    "arithmetic.jsonl looks like alpaca; using instruction, input, output",
    "4 files, 2,400 rows read, asked for 75.0 %",
    "How long the rows are, in words",
    "How long the examples are, in tokens",
    "is 1,024 tokens; 12 examples are longer",
    "en 1,650 82.5 %",
    "Guessed for a sample of 2,000 rows; und could not be told.",
    "29 rows of the sample are in a language",
    "Greek 612 0.1 %",
    "Normalisation changed 18 rows.",
    "twi 268 10.3 %",
    "7 rows have a word with letters of two alphabets",
    "Evenness 79.3 % over 5 values.",
    "missing in 12 rows",
    "Rarer values: 41 rows.",
    "4 more values of difficulty_of_the_question",
    "31 rows hold personal data or secrets",
    "Send your answer to [EMAIL] before Friday.",
    "5 rows share 8 words in a row with 4 of 1,319 benchmark items; none was removed",
    "What is the capital city of Ghana?",
    "Alike from 0.8 on",
    "train: 2,080 rows, 80.0 %",
    "2,511 clusters, the largest of 9 rows",
    "This test set has been used by 3 runs (9 evaluations, first 2026-11-19 10:00 UTC).",
    "By topic",
    "train/test 0 0 0 0",
    "Nothing stands in the way. 2 findings to look at. Looked at 2,000 of 2,080 training rows",
    "Trained tokens 22.5 %",
    "Fix: set model.max_seq_length: 1344",
    "9 of 26 tokens trained",
    "2,284 tokens left out",
    "Learned. The loss went from 3.41 to 0.04 nats per token in 40 steps on 4 examples",
)


@pytest.mark.parametrize("expected", SHOWN)
def test_everything_that_was_found_is_shown(expected: str):
    assert expected in text_of(page())


def test_the_page_is_balanced_with_unique_ids_and_no_loose_reference():
    html = page()
    reader = Reader(html)
    ids = reader.values("id")
    assert len(ids) == len(set(ids))
    assert set(reader.values("aria-labelledby")) <= set(ids)
    assert set(re.findall(r"url\(#(\w+)\)", html)) <= set(ids)


def test_the_page_runs_nothing_and_its_policy_names_its_style():
    html = page()
    policy = unescape(re.search(r'Security-Policy" content="([^"]*)"', html)[1])  # type: ignore[index]
    [style] = re.findall(r"<style>(.*?)</style>", html, flags=re.S)
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    assert f"style-src 'sha256-{digest}'" in policy and "default-src 'none'" in policy
    assert "script-src" not in policy and "<script" not in html
    assert not re.search(r"<[^>]+ style=", html) and not re.search(r"https?://|@import|url\((?!#)", html)


def test_the_page_is_small_enough_to_be_logged_with_every_run():
    assert len(page().encode()) < 100_000


# What is not there


@pytest.mark.parametrize("part", DataReports._fields)
def test_any_report_may_be_missing(part: str):
    text = text_of(page(**{part: None}))
    assert "None" not in text


@pytest.mark.parametrize("part", [name for name in DataReports._fields if name != "test_uses"])
def test_any_report_may_be_the_only_one(part: str):
    html = render_data_page("tutor", DataReports(**{part: getattr(ALL, part)}))
    assert "None" not in text_of(html)


GONE = {
    "ingest": ("Sources", "passed over"),
    "formatted": (
        "What became of the rows",
        "Why rows were rejected",
        "Personal data",
        "Languages",
        "in words",
    ),
    "split": ("Splits", "What they share", "What is in them", "This test set"),
    "learning": ("Will it learn?", "in tokens", "One batch by heart"),
    "test_uses": ("This test set",),
}


@pytest.mark.parametrize("part", GONE)
def test_a_missing_report_leaves_no_heading_and_no_zero(part: str):
    there, gone = text_of(page()), text_of(page(**{part: None}))
    for heading in GONE[part]:
        assert heading in there and heading not in gone


def test_rows_whose_quality_nobody_looked_at_show_no_quality():
    text = text_of(with_format(quality=None))
    assert "Rejected 35" in text
    for heading in ("Languages", "Scripts", "Personal data", "Overlap with benchmarks", "in words"):
        assert heading not in text


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"languages": {}, "language_sample": 0}, "Languages Not measured."),
        ({"scripts": {}}, "Scripts Not measured."),
        ({"contamination": None}, "Not measured: no benchmark is named in quality.contamination.files."),
    ],
)
def test_what_was_not_measured_says_so(fields: dict[str, object], expected: str):
    assert expected in text_of(with_quality(**fields))


@pytest.mark.parametrize(
    ("fields", "heading"),
    [
        ({"markers": {}}, "Markers"),
        ({"mixed_script_rows": 0}, "Words that mix"),
        ({"labels": ()}, "Balance of"),
    ],
)
def test_what_a_dataset_does_not_have_is_not_mentioned(fields: dict[str, object], heading: str):
    assert heading in text_of(page())
    assert heading not in text_of(with_quality(**fields))


def test_near_duplicates_that_nobody_looked_for_are_no_zero():
    text = text_of(with_format(near_threshold=None, near_duplicates=0, near_examples=()))
    assert "Near-duplicates dropped" not in text and "near-duplicates:" not in text


def test_near_leakage_that_nobody_looked_for_is_no_zero():
    pairs = {"train/test": Leakage(exact=0, normalised=0, groups=0, near=None)}
    html = with_split(leakage=pairs, near_threshold=None)
    assert "train/test 0 0 0 not measured 0" in text_of(html)
    assert '<tr class="fails">' not in html


def test_near_leakage_is_marked():
    pairs = {"train/test": Leakage(exact=0, normalised=0, groups=0, near=2)}
    assert '<tr class="fails"><th scope="row">train/test' in with_split(leakage=pairs)


def test_compositions_and_clusters_appear_only_if_counted():
    text = text_of(with_split(composition=(), clusters=0))
    assert "What is in them" not in text and "cluster" not in text


def test_an_empty_composition_is_drawn_without_a_number():
    assert "By topic" in text_of(with_split(composition=(Composition(property="topic", counts={}),)))


# Personal data, benchmarks, uses


def pii(**fields: object) -> str:
    return text_of(with_quality(pii=found.PII.model_copy(update=fields)))


def test_personal_data_says_whether_it_is_still_there_and_what_to_change():
    reported = pii()
    assert "Only reported." in reported and "quality.pii.action: redact" in reported
    redacted = pii(redacted=True)
    assert "Redacted." in redacted and "quality.pii.action: report" in redacted
    assert "will be trained on" not in redacted


def test_personal_data_that_was_not_looked_for_is_not_called_absent():
    text = pii(looked=False, rows=0, findings={}, examples=())
    assert "Not looked for: quality.pii.action is off." in text and "Nothing of the kind" not in text


def test_no_personal_data_says_in_how_many_rows():
    assert "Nothing of the kind was found in 2,600 rows." in pii(rows=0, findings={}, examples=())


def test_contaminated_rows_that_were_removed_are_called_removed():
    overlap = found.QUALITY.contamination
    assert overlap is not None
    text = text_of(with_quality(contamination=overlap.model_copy(update={"removed": 5})))
    assert "Found and removed." in text and "5 rows were removed." in text
    none = text_of(with_quality(contamination=overlap.model_copy(update={"rows": 0, "items_hit": 0})))
    assert "No row shares 8 words in a row with any of 1,319 benchmark items." in none


def test_a_test_set_that_was_never_used_says_so():
    text = text_of(page(test_uses=TestUses(runs=0, evaluations=0)))
    assert "has not been used by any run yet" in text and "the less its interval" not in text


# The mask


def test_trained_tokens_are_marked_by_more_than_colour():
    html = page()
    assert html.count('<mark class="trained') >= 3
    assert "inset 0 -2px var(--accent)" in html and "text-decoration: line-through" in html
    assert "trained (underlined)" in text_of(html) and "cut off by the window (struck out)" in text_of(html)


def test_the_tokens_joined_are_the_text_of_the_example():
    example = found.LEARNING.examples[0]
    block = re.search(r'<div class="tokens">(.*?)</div>', page(), flags=re.S)
    assert block is not None
    shown = unescape(re.sub(r"<[^>]+>", "", block[1]))
    assert shown.replace("↵", "") == "".join(token.text for token in example.tokens)


def test_examples_that_all_fit_are_said_to_fit():
    counts = found.LEARNING.counts.model_copy(update={"cut_examples": 0})
    assert "no example is longer" in text_of(with_learning(counts=counts))


def test_languages_of_all_rows_are_no_sample():
    assert "Guessed for all 2,600 rows" in text_of(with_quality(language_sample=2600))


def test_errors_are_said_first():
    finding = found.LEARNING.findings[0].model_copy(update={"level": "error"})
    text = text_of(with_learning(findings=(finding,)))
    assert "No: 1 finding below would make training pointless." in text and "Nothing stands" not in text


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"overfit": None}, "One batch by heart Not measured."),
        ({"examples": ()}, "One batch by heart"),
        ({"of_rows": None, "model": ""}, "Looked at 2,000 training rows."),
    ],
)
def test_parts_of_the_look_at_the_tokens_may_be_missing(fields: dict[str, object], expected: str):
    text = text_of(with_learning(**fields))
    assert expected in text and "None" not in text


@pytest.mark.parametrize("verdict", get_args(OverfitReport.model_fields["verdict"].annotation))
def test_every_verdict_on_the_batch_has_words(verdict: str):
    learned = found.LEARNING.overfit
    assert learned is not None
    text = text_of(with_learning(overfit=learned.model_copy(update={"verdict": verdict})))
    assert "One batch by heart" in text and verdict.split()[-1] in text.lower()


def test_a_skipped_batch_says_why():
    skipped = found.LEARNING.overfit
    assert skipped is not None
    said = skipped.model_copy(
        update={
            "verdict": "skipped",
            "reason": "too large",
            "loss_before": None,
            "loss_after": None,
            "losses": (),
        }
    )
    text = text_of(with_learning(overfit=said))
    assert "Skipped. Too large." in text and "The loss went" not in text


def test_counts_of_nothing_are_absent_rather_than_zero():
    counts = found.LEARNING.counts.model_copy(
        update={"tokens": 0, "answers": 0, "trained_tokens": 0, "words": 0, "closed_answers": 0}
    )
    trip = found.LEARNING.round_trip.model_copy(update={"checked": 0})
    text = text_of(with_learning(counts=counts, round_trip=trip))
    assert "Trained tokens —" in text and "Answers with their end —" in text and "Tokens per word —" in text
    assert "Round-trip failures — not measured" in text


# Other people's text


def hostile(report: FormatReport, learning: LearnReport) -> DataReports:
    assert report.quality
    quality: QualityReport = report.quality.model_copy(
        update={
            "languages": {ATTACK: 3},
            "scripts": {ATTACK: 3},
            "markers": {ATTACK: 3},
            "mixed_script_examples": (ATTACK,),
            "labels": (report.quality.labels[0].model_copy(update={"field": ATTACK, "counts": {ATTACK: 2}}),),
            "pii": found.PII.model_copy(
                update={
                    "findings": {ATTACK: 3},
                    "examples": tuple(
                        one.model_copy(update={"kind": ATTACK, "origin": ATTACK, "preview": ATTACK})
                        for one in found.PII.examples
                    ),
                }
            ),
            "contamination": found.QUALITY.contamination.model_copy(update={"examples": (ATTACK,)}),  # type: ignore[union-attr]
        }
    )
    formatted = report.model_copy(
        update={
            "quality": quality,
            "reasons": {ATTACK: 1},
            "formats": {ATTACK: 1},
            "looks_like": (ATTACK,),
            "near_examples": ((ATTACK, "kept"),),
        }
    )
    sources = tuple(one.model_copy(update={"path": ATTACK}) for one in found.INGEST.sources)
    split = found.SPLIT.model_copy(
        update={"composition": (Composition(property=ATTACK, counts={ATTACK: {ATTACK: 2}}),)}
    )
    token = learning.examples[0].tokens[0].model_copy(update={"text": ATTACK})
    looked = learning.model_copy(
        update={
            "model": ATTACK,
            "findings": (
                learning.findings[0].model_copy(update={"where": ATTACK, "what": ATTACK, "fix": ATTACK}),
            ),
            "examples": (
                learning.examples[0].model_copy(update={"label": ATTACK, "id": ATTACK, "tokens": (token,)}),
            ),
            "round_trip": learning.round_trip.model_copy(update={"first": ATTACK}),
            "overfit": learning.overfit.model_copy(update={"reason": ATTACK}) if learning.overfit else None,
        }
    )
    ingest = found.INGEST.model_copy(update={"sources": sources, "notes": (ATTACK,)})
    return DataReports(ingest, formatted, split, looked, found.TEST_USES)


def test_text_from_rows_tokens_and_config_is_escaped_everywhere():
    html = render_data_page(ATTACK, hostile(found.FORMATTED, found.LEARNING))
    assert "<script" not in html and "<img" not in html
    assert Reader(html).text.count("<script>alert('x')</script>") >= 25
    assert [tag for tag, attrs in Reader(html).elements if any(name.startswith("on") for name in attrs)] == []
    assert "{{ 7*7 }}" in html
