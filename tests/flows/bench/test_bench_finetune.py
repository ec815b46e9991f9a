"""The whole path on a processor, with toy sizes: base, reference, systems, report, exit code."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from core.training.benchmark.case import Case
from core.training.benchmark.reports import RULE
from flows.bench.children import Children
from flows.bench.report import RULES
from flows.cli import app, guarded

ROOT = Path(__file__).parents[3]


def factory(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "flows.cli", "bench", "finetune", *arguments], cwd=cwd, capture_output=True, text=True,
        check=False, timeout=300,
        env={**os.environ, "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": "", "FACTORY_CACHE": str(cwd / "cache")},
    )  # fmt: skip


def test_ours_is_compared_timed_profiled_and_reported(tmp_path: Path):
    done = factory("--peers", "liger,unsloth", "--rows", "2", "--profile", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    events = [json.loads(line) for line in done.stdout.splitlines()]
    assert [e["event"] for e in events][-1] == "result" and events[0]["event"] == "note"
    assert {e["system"] for e in events if e["event"] == "skipped"} == {"liger", "unsloth"}
    ours, liger, unsloth = events[-1]["comparisons"][0]["lines"]
    assert ours["system"] == "fused" and ours["problem"] is None and ours["tokens_per_second"] > 0
    assert ours["measured"]["parity"]["worst_cosine"] > 0.999 and ours["measured"]["profile"]["classes"]
    assert liger["problem"].startswith("skipped") and unsloth["problem"].startswith("skipped")
    text = (tmp_path / events[-1]["report"]).read_text()
    assert "no measurements" in text and "| fused |" in text and "### Where" in text
    assert list((tmp_path / "bench-reports").glob("trace-llama-1b-fused.json.gz"))
    # The base stays for the next time, and nothing else is left behind.
    assert (tmp_path / "cache/bench/llama-1b-tiny/model.safetensors.index.json").is_file()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["bench-reports", "cache"]


def test_bad_input_ends_with_2_and_one_message(tmp_path: Path):
    done = factory("--model", "no-such-model", cwd=tmp_path)
    assert done.returncode == 2 and not done.stdout
    assert "--model" in done.stderr and "llama-8b" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize("option", ["--out", "--scratch"])
def test_a_place_that_is_a_file_is_refused_before_anything_runs(
    option: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    (tmp_path / "file").write_text("mine")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FACTORY_CACHE", str(tmp_path / "cache"))
    command = ["bench", "finetune", "--peers", "", option, str(tmp_path / "file")]
    assert guarded(lambda: app(command)) == 2
    done = capsys.readouterr()
    assert "base ..." not in done.out
    assert option in done.err and "Fix:" in done.err and "Traceback" not in done.err
    assert not (tmp_path / "cache/bench/llama-1b-tiny").exists()


def test_what_goes_wrong_in_a_process_is_in_its_result(tmp_path: Path):
    found = Children(tmp_path, tmp_path, 120).measure(
        Case(system="unsloth", model=str(tmp_path), has_gpu=False)
    )
    assert found.speed is None and found.error and "unsloth" in found.error and "Traceback" not in found.error


def test_a_process_that_leaves_no_result_is_told_by_its_code_and_last_lines(tmp_path: Path):
    children = Children(tmp_path, tmp_path, 60)
    # Its case cannot be read.
    found = children.measure(Case.model_construct(**{**Case(system="hf", model="x").model_dump(), "rows": 0}))
    assert found.error and "ended with code 1" in found.error and "greater than or equal to 1" in found.error


def test_a_process_that_takes_too_long_is_ended(tmp_path: Path):
    found = Children(tmp_path, tmp_path, 1).measure(Case(system="hf", model=str(tmp_path), has_gpu=False))
    assert found.error == "not done after 1 seconds"


def test_help_names_the_options_and_the_rule_is_told_alike_there_in_the_report_and_in_the_readme(
    tmp_path: Path,
):
    shown = factory("--help", cwd=tmp_path).stdout
    assert all(word in shown for word in ("--peers", "--budget", "--profile"))
    for text in (shown, RULES, (ROOT / "core/training/README.md").read_text()):
        assert RULE in " ".join(text.split())
