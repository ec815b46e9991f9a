"""The base asked in three ways: measured once, and held against whichever the gate names."""

import json
from pathlib import Path

from tests.thimble.conftest import Factory

ARMS = ("zero_shot", "few_shot", "prompted")
ALL = (
    "-o", f"evaluation.baseline.arms=[{', '.join(ARMS)}]", "-o", "evaluation.metrics=[exact_match, perplexity, mine]",
    "-o", "evaluation.max_examples=60",
)  # fmt: skip


def read(workspace: Path, name: str) -> dict:
    return json.loads((workspace / "metrics" / name).read_text())


def test_every_arm_is_measured_once_and_the_gate_chooses_anew(factory: Factory, tmp_path: Path):
    workspace = tmp_path / "arms"
    (tmp_path / "mine.py").write_text(
        "import helper\ndef grade(answer, reference, metadata): return helper.HALF\n"
    )
    (tmp_path / "helper.py").write_text("HALF = 0.5\n")
    own = ("-o", f"evaluation.graders={{mine: {{type: callable, path: '{tmp_path / 'mine.py'}:grade'}}}}")
    ran = factory.run(workspace, *ALL, *own, "--until", "baseline")
    assert ran.code == 0, ran.stderr
    scores = read(workspace, "baseline.json")
    arms = {arm["arm"]: arm for arm in scores["arms"]}
    assert tuple(arms) == ARMS
    assert scores["arm"] == max(arms, key=lambda arm: arms[arm]["value"])
    assert len({arm["decoding"]["prompt_digest"] for arm in arms.values()}) == 3
    assert len({(arm["split_digest"], tuple(arm["ids"])) for arm in arms.values()}) == 1
    assert arms["zero_shot"]["suites"][0]["name"] == "general"
    rows = {arm: first_row(workspace, arm) for arm in ARMS}
    assert len({len(row["prompt_ids"]) for row in rows.values()}) == 3
    assert all({"exact_match", "perplexity"} <= row.keys() and row["mine"] == 0.5 for row in rows.values())
    judged = next(e for e in ran.events if e["event"] == "gate" and e["gate"] == "baseline-established")
    assert {f"{arm} test file" for arm in ARMS} <= {check["name"] for check in judged["checks"]}
    assert "Base, instructed" in (workspace / "report.html").read_text()
    other = next(arm for arm in ARMS if arm != scores["arm"])
    ran = factory.run(
        workspace, *ALL, *own, "-o", f"gates.model_performance.compare_to={other}", "--until", "baseline"
    )
    assert ran.phases["baseline"] == "reused"
    assert read(workspace, "baseline.json")["arm"] == other
    uses = [json.loads(line) for line in (factory.home / "test-uses.jsonl").read_text().splitlines()]
    mine = [use for use in uses if use["workspace"] == "arms" and use["digest"] == scores["split_digest"]]
    assert sorted(use["arm"] for use in mine if use["arm"] != "zero_shot") == ["few_shot", "prompted"]


def first_row(workspace: Path, arm: str) -> dict:
    lines = (workspace / f"metrics/baseline-{arm}-answers.jsonl").read_text().splitlines()
    return json.loads(lines[0])


def test_a_judge_without_its_key_stops_before_anything_runs(factory: Factory, tmp_path: Path):
    judge = (
        "-o", "evaluation.metrics=[exact_match, judge]",
        "-o", "evaluation.judge={url: 'http://127.0.0.1:9/v1', key_variable: NO_SUCH_KEY}",
    )  # fmt: skip
    ran = factory.run(tmp_path / "ws", *judge)
    assert ran.code == 2
    assert "NO_SUCH_KEY is not set" in ran.stderr
    assert ran.phases == {}
