import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.data.config import ContaminationConfig, PiiConfig, QualityConfig
from core.data.quality import inspect, prepare

ROWS = [
    "Mail kofi@example.com or pay with 4111 1111 1111 1111 before noon",
    "What is the capital of Ghana please?\nAccra is the capital",
    "Wo ho te sɛn? Me ho yε",
    "password=hunter2x! and mail ama@example.com",
    "The cat sat on the mat and looked at me for a long time.",
    "",
    "2 + 2\n4",
]
BENCHMARK = ["what is the capital of Ghana, please", "4"]


def config(action="report", pii="report", **more):
    return QualityConfig(
        pii=PiiConfig(action=pii),
        contamination=ContaminationConfig(files=("b.jsonl",), ngram=6, action=action),
        markers={"twi": ("ɛ", "ɔ")},
        **more,
    )


def seen(rows, prepared, first=0):
    numbers = np.arange(first, first + len(rows))
    fields = [{"topic": "ab"[n % 2]} for n in numbers.tolist()]
    return inspect(
        pa.array(rows, pa.string()), fields, [f"rows.jsonl:{n + 1}" for n in numbers], numbers, prepared
    )


def test_a_report_says_what_the_rows_are_like():
    prepared = prepare(config(languages=("de",)), BENCHMARK, len(ROWS))
    report = seen(ROWS, prepared).report(prepared, changed_by_normalisation=3)
    assert report.pii.findings == {"card": 1, "email": 2, "password": 1} and report.pii.rows == 2
    assert report.contamination.rows == report.contamination.items_hit == report.contamination.items == 1
    assert report.contamination.examples == ("rows.jsonl:2: what is the capital of ghana",)
    assert (report.words.n, report.words.unit, report.language_sample) == (7, "words", 7)
    assert report.languages["en"] >= 2 and report.unexpected_languages == 7 - report.languages["und"]
    assert report.markers == {"twi": 1}
    assert report.mixed_script_rows == 1 and report.mixed_script_examples == ("rows.jsonl:3: yε",)
    assert report.scripts["Greek"] == 1 and next(iter(report.scripts)) == "Latin"
    assert [label.field for label in report.labels] == ["topic"]
    assert report.changed_by_normalisation == 3
    assert prepared.benchmark.ignored == 1


@settings(max_examples=25, deadline=None)
@given(st.lists(st.sampled_from(ROWS), max_size=14), st.integers(0, 14), st.integers(0, 14))
def test_reports_do_not_depend_on_parts_and_their_order(rows, one, two):
    prepared = prepare(config(), BENCHMARK, len(rows))
    one, two = sorted((min(one, len(rows)), min(two, len(rows))))
    a, b, c = seen(rows[:one], prepared), seen(rows[one:two], prepared, one), seen(rows[two:], prepared, two)
    whole = seen(rows, prepared).report(prepared)
    for merged in (a.merged(b).merged(c), a.merged(b.merged(c)), c.merged(b).merged(a)):
        assert merged.report(prepared) == whole
        assert list(merged.report(prepared).languages) == list(whole.languages)


def test_examples_never_show_what_was_found():
    texts = ["ama@example.com kofi@example.com, 024 412 3456 password=hunter2x! 4111 1111 1111 1111 yε"]
    prepared = prepare(config(), ["kofi example com 024 412 3456 password"], 1)
    report = seen(texts, prepared).report(prepared)
    previews = {example.kind: example.preview for example in report.pii.examples}
    assert previews == {
        "email": "[EMAIL] [EMAIL], [PHONE] password=[PA…",
        "phone": "[EMAIL] [EMAIL], [PHONE] password=[PASSWORD] [CARD] yε",
        "password": "…IL] [EMAIL], [PHONE] password=[PASSWORD] [CARD] yε",
        "card": "…, [PHONE] password=[PASSWORD] [CARD] yε",
    }
    assert {example.origin for example in report.pii.examples} == {"rows.jsonl:1"}
    assert report.contamination.examples == ("rows.jsonl:1: … … … … … …",)
    assert all(not each.row for each in seen(texts, prepared).overlap.examples)
    for secret in ("ama@", "kofi", "024", "hunter2x", "4111"):
        assert secret not in report.model_dump_json()


def test_every_kind_gets_an_example_before_any_gets_a_second():
    prepared = prepare(config(), (), 40)
    rows = [f"a{n}@example.com" for n in range(40)] + ["password=hunter2x!"]
    examples = seen(rows, prepared).report(prepared).pii.examples
    assert len(examples) == 10 and [each.kind for each in examples[:3]] == ["email", "password", "email"]


def test_rows_taken_out_count_as_contaminated_only():
    prepared = prepare(config("remove"), BENCHMARK, len(ROWS))
    findings = seen(ROWS, prepared)
    report = findings.report(prepared)
    assert findings.contaminated.tolist() == [1]
    assert (report.words.n, report.contamination.removed) == (6, 1)


def test_personal_data_is_not_looked_for_when_switched_off():
    prepared = prepare(config(pii="off"), (), 7)
    report = seen(ROWS, prepared).report(prepared)
    assert (report.pii.looked, report.pii.rows, report.contamination) == (False, 0, None)


@pytest.mark.parametrize("name", ["arithmetic.jsonl", "twi.jsonl"])
def test_a_maths_and_a_twi_corpus_have_no_personal_data(name):
    lines = (Path(__file__).parents[4] / "data/tutor" / name).read_text(encoding="utf-8").splitlines()
    prepared = prepare(config(), (), 10**9)
    report = seen([line for line in lines if line.isprintable()], prepared).report(prepared)
    assert report.words.n > 400 and report.pii.findings == {}


def test_long_numbers_of_a_maths_corpus_are_no_findings():
    draw = np.random.default_rng(5)
    numbers = draw.integers(1, 10**11, (3000, 3)).tolist()
    rows = [f"What is {a} + {b} * {c % 997}? {a / 7:.9f}, {json.dumps([a, b])}" for a, b, c in numbers]
    prepared = prepare(config(), (), 10**9)
    assert seen(rows, prepared).report(prepared).pii.rows == 0
