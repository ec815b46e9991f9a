import base64
import hashlib
import re
import subprocess
import sys
from html import unescape
from html.parser import HTMLParser

import pytest

from gates.verdict import GATE_NAMES
from tasks.report import page
from tasks.report.answers import FILTERS, AnswerRow, flips
from tasks.report.page import CheckView, GateView, ReportData, render_report

VOID = {"meta", "link", "br", "hr", "img", "input", "wbr"}
ATTACK = "<script>alert('x')</script><img src=x onerror=alert(1)>\"'&{{ 7*7 }}"


class Reader(HTMLParser):
    """Collects a page's elements and visible text, and insists that tags are balanced."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.seen: list[str] = []
        self.feed(html)
        self.close()
        self.text = "".join(self.seen)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
        if tag in {"td", "th", "li", "dt", "dd", "small"}:
            self.seen.append(" ")

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] not in {"script", "style"}:
            self.seen.append(data)

    def values(self, attribute: str) -> list[str]:
        return [attrs[attribute] or "" for _, attrs in self.elements if attribute in attrs]


def words(html: str) -> str:
    return " ".join(Reader(html).text.replace("\u202f", " ").split())


def minimal(**fields: object) -> ReportData:
    given: dict[str, object] = {
        "name": "run",
        "status": "failed",
        "headline": "It stopped.",
        "started_at": "2026-11-20T22:48:05+00:00",
        "seconds": 1.0,
        "config_text": "name: run\n",
    }
    return ReportData.model_validate(given | fields)


def row(**fields: str | None) -> AnswerRow:
    given = {"id": "q", "question": "Q?", "reference": "R", "baseline": "a"} | fields
    return AnswerRow.model_validate(given | {"baseline_scores": {"exact_match": 0.0}})


# Structure


def test_page_is_balanced_with_unique_ids_and_living_references(
    full: ReportData, blocked: ReportData
) -> None:
    for data in (full, blocked, minimal()):
        reader = Reader(render_report(data))
        ids = reader.values("id")
        assert len(ids) == len(set(ids))
        targets = [link[1:] for link in reader.values("href") if link.startswith("#")]
        assert set(targets) | set(reader.values("aria-labelledby")) <= set(ids)
        assert [tag for tag, _ in reader.elements].count("h1") == 1


def test_every_data_table_has_headers(full: ReportData) -> None:
    html = render_report(full)
    tables = re.findall(r"<table.*?</table>", html, flags=re.S)
    assert len(tables) > 10
    assert all("scope=" in table for table in tables)


@pytest.mark.parametrize("name", GATE_NAMES)
def test_every_gate_is_listed_even_if_nobody_judged_it(name: str) -> None:
    html = render_report(minimal())
    assert name in words(html)
    assert words(html).count("not judged") == len(GATE_NAMES)


def test_passed_run_shows_words_numbers_and_every_section(full: ReportData) -> None:
    text = words(render_report(full))
    for expected in (
        "90.8 %",
        "87.4 % to 94.2 %, n = 260",
        "3.4 M of 271.0 M",
        "2.1 MB",
        "12 min 34 s",
        "Broken by quantization",
        "Fixed by tuning",
        "no answer",
        "data/extra.csv",
        "What is the capital of Ghana?",
        "tokens per second",
        "Q4_K_M shipped",
        "name: geography-tutor",
        "python 3.11.2",
        "Ran on cpu",
        "between splits: 12 rows",
        "data/tutor/readme.txt was passed over",
    ):
        assert expected in text
    assert "Not reached" not in text and "What to do" not in text


def test_full_digests_are_on_the_page(full: ReportData) -> None:
    html = render_report(full)
    assert 'title="sha256:' + "4" * 64 in html
    assert "sha256:" + "5" * 64 + "  Merged model" in unescape(html)


def test_equal_prompts_are_one_line(full: ReportData) -> None:
    names = [name for name, _ in page.digest_rows(full)]
    assert names.count("Prompts, all models") == 1
    assert "Base model" in names and "File Q8_0" in names


# Self-contained, both schemes


def test_nothing_is_loaded_from_anywhere(full: ReportData) -> None:
    html = render_report(full)
    reader = Reader(html)
    assert reader.values("src") == []
    for tag, attrs in reader.elements:
        if tag == "link":
            assert attrs["href"] == "data:,"
        elif "href" in attrs and not (attrs["href"] or "").startswith("#"):
            assert tag == "a" and attrs["href"] in full.links.values()
    outside = html
    for link in full.links.values():
        outside = outside.replace(link, "")
    assert not re.search(r"https?://|@import|url\((?!#)", outside)


def test_policy_names_the_digests_of_style_and_script(full: ReportData) -> None:
    html = render_report(full)
    policy = unescape(re.search(r'Security-Policy" content="([^"]*)"', html)[1])  # type: ignore[index]
    assert "default-src 'none'" in policy and "unsafe" not in policy
    for tag in ("style", "script"):
        [block] = re.findall(rf"<{tag}>(.*?)</{tag}>", html, flags=re.S)
        digest = base64.b64encode(hashlib.sha256(block.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy
    assert not re.search(r"<[^>]+ style=", html)


def palettes(html: str) -> tuple[dict[str, str], dict[str, str]]:
    light, dark = re.findall(r":root \{(.*?)\}", html, flags=re.S)[:2]
    read = [dict(re.findall(r"--([\w-]+): (#\w{6})", block)) for block in (light, dark)]
    return read[0], read[0] | read[1]


def luminance(colour: str) -> float:
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_text_has_contrast_in_both_schemes() -> None:
    html = render_report(minimal())
    assert "prefers-color-scheme: dark" in html
    light, dark = palettes(html)
    assert light != dark
    pairs = [
        (text, ground)
        for text in ("text", "muted", "accent", "good", "bad", "warn")
        for ground in ("page", "card")
    ]
    pairs += [
        ("good", "good-soft"),
        ("bad", "bad-soft"),
        ("warn", "warn-soft"),
        ("muted", "sunk"),
        ("text", "sunk"),
    ]
    pairs += [("text", "accent-soft"), ("text", "warn-soft"), ("muted", "accent-soft")]
    pairs += [("muted", "bad-soft"), ("text", "bad-soft"), ("page", "accent")]
    for palette in (light, dark):
        for text, ground in pairs:
            a, b = sorted((luminance(palette[text]), luminance(palette[ground])), reverse=True)
            assert (a + 0.05) / (b + 0.05) >= 4.5, (text, ground, palette[text])


# Other people's text


def test_text_from_data_is_escaped_everywhere(full: ReportData) -> None:
    clean = render_report(full)
    hostile = full.answers[0].model_copy(
        update=dict.fromkeys(("id", "question", "reference", "topic", "baseline", "tuned", "shipped"), ATTACK)
    )
    check = CheckView(
        name=ATTACK, observed=ATTACK, threshold=ATTACK, comparison=ATTACK, passed=False, detail=ATTACK
    )
    data = full.model_copy(
        update={
            "name": ATTACK,
            "headline": ATTACK,
            "config_text": ATTACK,
            "answers": (hostile, *full.answers[1:]),
            "gates": (
                GateView(gate="dataset-validated", status="waived", checks=(check,), waiver_reason=ATTACK),
            ),
            "versions": {ATTACK: ATTACK},
            "links": {ATTACK: ATTACK},
            "blocked_at": ATTACK,
            "status": "blocked",
        }
    )
    html = render_report(data)
    assert "<script>alert" not in html and "<img" not in html
    assert Reader(html).text.count("<script>alert('x')</script>") >= 15
    assert html.count("<script") == clean.count("<script") == 1
    assert "{{ 7*7 }}" in html
    assert [tag for tag, attrs in Reader(html).elements if any(name.startswith("on") for name in attrs)] == []


def test_links_that_are_no_web_addresses_are_text() -> None:
    html = render_report(
        minimal(links={"MLflow run": "javascript:alert(1)", "Prefect run": "http://localhost:4200/r"})
    )
    assert "javascript:alert(1)" in Reader(html).text
    assert [link for link in Reader(html).values("href") if "javascript" in link] == []
    assert 'href="http://localhost:4200/r"' in html


# Blocked, failed, waived, partial


def test_blocked_page_names_gate_numbers_and_the_way_out(blocked: ReportData) -> None:
    html = render_report(blocked)
    text = words(html)
    assert "What to do" in text
    assert "The run stopped at model-performance" in text
    assert "gain is 0.0345 and must be ≥ 0.2" in text
    assert "factory run CONFIG -o 'gates.waivers=[{gate: model-performance, reason: \"...\"}]'" in text
    assert "factory run CONFIG -o gates.model_performance.min_improvement=VALUE" in text
    assert "gates.model_performance.max_eval_loss_rise" in text
    assert "Quantized files: nothing was quantized" in text and "Bundle: nothing was bundled" in text
    assert 'href="#bundle"' not in html


def test_failing_numbers_are_visible_without_opening_anything(blocked: ReportData) -> None:
    visible = re.sub(r"<details>.*?</details>", "", render_report(blocked), flags=re.S)
    card = next(part for part in visible.split('<li class="gate ') if part.startswith("blocked"))
    text = " ".join(re.sub(r"<[^>]+>", " ", card).split())
    assert "gain 0.0345, needs ≥ 0.2" in text and "gain, lower end −0.012, needs ≥ 0.2" in text


def test_waiver_shows_reason_and_what_failed() -> None:
    check = CheckView(name="examples", observed=42, threshold=50, comparison=">=", passed=False)
    gate = GateView(
        gate="baseline-established", status="waived", checks=(check,), waiver_reason="a person reads all"
    )
    text = words(render_report(minimal(status="passed", gates=(gate,))))
    assert "Waived: a person reads all" in text and "examples 42, needs ≥ 50" in text


def test_failed_page_shows_the_error() -> None:
    text = words(render_report(minimal(error="TrainingFailed: step 12")))
    assert "What went wrong" in text and "TrainingFailed: step 12" in text


def test_partial_page_says_how_to_go_on() -> None:
    assert "without --until" in words(render_report(minimal(status="partial")))


def test_blocked_at_an_unknown_or_unnamed_gate_still_renders() -> None:
    assert "The run stopped at a gate" in words(render_report(minimal(status="blocked")))
    assert "custom-gate" in words(render_report(minimal(status="blocked", blocked_at="custom-gate")))


PARTS = ("ingest", "formatted", "split", "learning", "training", "baseline", "tuned", "quantized", "bundle")


@pytest.mark.parametrize(
    "part", [*PARTS, "test_uses", "curve", "answers", "phases", "gates", "links", "versions"]
)
def test_any_part_may_be_missing(full: ReportData, part: str) -> None:
    empty = ReportData.model_fields[part].default
    html = render_report(full.model_copy(update={part: empty}))
    Reader(html)
    assert "None" not in words(html)


def test_any_part_may_be_the_only_one(full: ReportData) -> None:
    for part in (*PARTS, "curve", "answers", "phases"):
        Reader(render_report(minimal(**{part: getattr(full, part)})))


def test_empty_reports_divide_by_nothing(full: ReportData) -> None:
    assert full.formatted and full.ingest and full.split and full.training and full.tuned
    data = full.model_copy(
        update={
            "formatted": full.formatted.model_copy(
                update={"rows": 0, "kept": 0, "rejected": 0, "reasons": {}}
            ),
            "ingest": full.ingest.model_copy(update={"rows": 0}),
            "split": full.split.model_copy(update={"train": 0, "val": 0, "test": 0}),
            "training": full.training.model_copy(update={"seconds": 0.0, "parameters": 0, "eval_losses": ()}),
            "tuned": full.tuned.model_copy(update={"value": 0.0, "metrics": {}}),
        }
    )
    assert "No row was rejected." in words(render_report(data))


# Answers


def test_rows_beyond_the_first_are_marked_and_the_rest_is_asked_for(full: ReportData) -> None:
    html = render_report(full)
    assert len(full.answers) == 260
    assert html.count('class="rest"') == 260 - page.FIRST_ROWS
    assert 'id="show-all"' in html and "the first 200 are shown" in words(html)


def test_filters_work_in_css_alone(full: ReportData) -> None:
    html = render_report(full)
    for kind in FILTERS:
        assert f'id="kind-{kind}"' in html
        assert f'.answers:has(#kind-{kind}:checked) tr[data-kinds]:not([data-kinds~="{kind}"])' in html


def test_filter_counts_agree_with_flips(full: ReportData) -> None:
    found = flips(full.answers)
    text = words(render_report(full))
    assert f"Broken by tuning {len(found.broken)}" in text
    assert f"Fixed by tuning {len(found.fixed)}" in text
    assert f"Broken by quantization {len(found.quantization_broke)}" in text


def test_empty_and_missing_answers_are_told_apart(blocked: ReportData) -> None:
    asked = row(tuned="  ", shipped=None)
    text = words(render_report(blocked.model_copy(update={"answers": (asked,)})))
    assert "(empty)" in text and "not asked" in text


def test_importing_the_page_loads_no_torch() -> None:
    code = "import sys, tasks.report.page; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
