"""Every gate closed in turn on the way through one workspace; then open, then unchanged.

Each step closes the next gate, so every phase is worked on exactly once over the whole chain,
and what lies behind a closed gate has provably not been started.
"""

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import pytest

from core.artifacts import path_digest
from tests.thimble.conftest import LIMIT, ROOT, Factory, Ran, flow_states

PHASES = ("ingest", "format", "split", "baseline", "finetune", "evaluate", "quantize", "deploy")
CLOSING = {
    "dataset-validated": ("gates.dataset_validated.min_rows=100000", 3),
    "baseline-established": ("gates.baseline_established.min_examples=101", 4),
    "model-performance": ("gates.model_performance.min_improvement=5", 6),
    "quantization-verified": ("gates.quantization_verified.max_size_mb=0.001", 7),
    "deployment-ready": ("gates.deployment_ready.max_memory_gb=0.001", 8),
}
BLOCKED = ("FAILED", "GateBlocked")
LEFT_BEHIND = {
    "dataset-validated": "metrics/baseline.json",
    "baseline-established": "models",
    "model-performance": "models/quantized",
    "quantization-verified": "bundle",
    "deployment-ready": "bundle",
}


class Before(NamedTuple):
    """How things stood before the chain: other files of tests share the home."""

    milliseconds: float
    blocked: int


@pytest.fixture(scope="module")
def before(factory: Factory) -> Before:
    return Before(time.time() * 1000, flow_states(factory).count(BLOCKED))


@pytest.fixture(scope="module")
def workspace(before: Before, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("chain") / "ws"


@pytest.mark.parametrize("gate", CLOSING)
def test_a_closed_gate_stops_the_run(factory: Factory, workspace: Path, gate: str):
    override, reached = CLOSING[gate]
    ran = factory.run(workspace, "-o", override)
    assert ran.code == 3, ran.stderr
    assert ran.result["status"] == "blocked"
    assert gate in ran.result["message"]
    assert "Traceback" not in ran.stderr
    assert tuple(ran.phases) == PHASES[:reached]
    assert list(ran.gates.values()) == ["passed"] * (len(ran.gates) - 1) + ["blocked"]
    assert not (workspace / LEFT_BEHIND[gate]).exists()
    record = json.loads((workspace / f"gates/{gate}.json").read_text())
    assert record["passed"] is False
    assert any(not check["passed"] for check in record["checks"])
    assert {"name", "observed", "threshold", "comparison", "passed"} <= set(record["checks"][0])
    shown = factory.warm("gates", str(workspace))
    assert shown.returncode == 3
    assert gate in shown.stdout
    assert "blocked" in (workspace / "report.html").read_text().lower()


def test_blocked_runs_are_failed_runs_named_so_in_prefect_and_mlflow(factory: Factory, before: Before):
    runs = [run for run in mlflow_runs(factory) if run.info.start_time >= before.milliseconds]
    blocked = [run for run in runs if run.data.tags.get("status") == "blocked"]
    assert len(blocked) == len(CLOSING)
    assert {run.info.status for run in blocked} == {"FAILED"}
    assert sorted(g for r in blocked for g in CLOSING if r.data.tags.get(f"gate.{g}") == "blocked") == sorted(
        CLOSING
    )
    assert all(run.info.run_name.startswith("BLOCKED thimble") for run in blocked)
    assert flow_states(factory).count(BLOCKED) - before.blocked == len(CLOSING)


def test_open_gates_release_the_model(factory: Factory, workspace: Path):
    ran = factory.run(workspace)
    assert ran.code == 0, ran.stderr
    assert set(ran.gates.values()) == {"passed"}
    assert list(ran.phases.values()) == ["reused"] * 8
    for path in (
        "data/splits/train.jsonl", "data/splits/val.jsonl", "data/splits/test.jsonl", "metrics/baseline.json",
        "metrics/evaluation.json", "metrics/quantization.json", "metrics/training-stats.json", "logs/training.log",
        ".factory/training-status.json", "models/checkpoints/lora/adapter_config.json",
        "models/checkpoints/lora/adapter_model.safetensors", "models/checkpoints/merged/model.safetensors",
        "models/quantized/model-Q8_0.gguf", "docs/model-card.md", "docs/inference-api.md", "report.html",
        "manifest.json", "bundle/Modelfile",
    ):  # fmt: skip
        assert (workspace / path).is_file(), path
    assert factory.warm("gates", str(workspace)).returncode == 0


def test_manifest_holds_the_digest_of_every_file(factory: Factory, workspace: Path):
    listed = json.loads((workspace / "manifest.json").read_text())["files"]
    assert "models/quantized/model-Q8_0.gguf" in listed
    assert not any(name.startswith(".") for name in listed)
    for name, entry in listed.items():
        assert path_digest(workspace / name) == entry["digest"], name


def test_the_improvement_is_real_and_the_file_holds_it(workspace: Path):
    scores = [json.loads((workspace / f"metrics/{n}.json").read_text()) for n in ("baseline", "evaluation")]
    assert scores[1]["value"] - scores[0]["value"] > 0.2
    assert scores[0]["split_digest"] == scores[1]["split_digest"]
    assert scores[0]["decoding"] == scores[1]["decoding"]
    for head in (*scores, json.loads((workspace / "metrics/quantization.json").read_text())):
        wanted = {"metric", "value", "n", "interval", "timestamp", "split_digest", "model_digest", "decoding"}
        assert wanted <= head.keys()
    quantized = json.loads((workspace / "metrics/quantization.json").read_text())["files"][0]
    assert quantized["prompt_mismatches"] == 0
    assert quantized["evaluation"]["decoding"]["prompt_digest"] == scores[1]["decoding"]["prompt_digest"]


def test_a_second_unchanged_run_judges_gates_only(factory: Factory, workspace: Path):
    before = {p: p.stat().st_mtime_ns for p in workspace.rglob("*") if p.is_file() and "models" in p.parts}
    release = (workspace / ".factory/release.json").read_bytes()
    # A new seed of hashes finds the same keys.
    ran = factory.run(workspace, cold=True)
    assert ran.code == 0
    assert list(ran.phases.values()) == ["reused"] * 8
    assert len(ran.gates) == 5
    assert before == {p: p.stat().st_mtime_ns for p in before}
    assert (workspace / ".factory/release.json").read_bytes() == release


def test_the_released_model_answers(factory: Factory, workspace: Path):
    answered = factory.command("chat", str(workspace), "--prompt", "Convert 24 l to ml.")
    assert answered.returncode == 0, answered.stderr
    assert answered.stdout.strip() == "24000 ml"


def test_the_base_answers_with_the_adapter_that_was_trained_and_without_it(factory: Factory, workspace: Path):
    adapter = workspace / "models/checkpoints/lora"
    assert json.loads((adapter / "base.json").read_text())["name"].endswith("data/tutor_base/model")
    done = subprocess.run(
        [sys.executable, "-m", "flows.cli", "chat", str(workspace), "--adapter", f"tutor={adapter}"],
        cwd=ROOT, env=factory.environment, capture_output=True, text=True, check=False, timeout=LIMIT,
        input="Convert 24 l to ml.\n/clear\n/adapter none\nConvert 24 l to ml.\n/clear\n/adapter tutor\nConvert 24 l to ml.\n",
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    said = [line.removeprefix("> ").strip() for line in done.stdout.splitlines()]
    assert said.count("24000 ml") == 2 and "tutor  [none]" in done.stdout


def test_nothing_but_the_answer_of_an_adapter_is_printed(factory: Factory, workspace: Path):
    adapters = [f"--adapter={name}={workspace / 'models/checkpoints/lora'}" for name in ("one", "two")]
    done = factory.warm("chat", str(workspace), *adapters, "--prompt", "Convert 24 l to ml.")
    assert (done.returncode, done.stdout, done.stderr) == (0, "24000 ml\n", "")


def test_the_registry_points_at_the_release(factory: Factory, workspace: Path):
    from mlflow import MlflowClient

    version = MlflowClient(factory.mlflow_uri).get_model_version_by_alias("thimble", "champion")
    assert version.tags["gguf_digest"] == path_digest(workspace / "models/quantized/model-Q8_0.gguf")
    copied = Path(version.source.removeprefix("file://")) / "model-Q8_0.gguf"
    assert path_digest(copied) == version.tags["gguf_digest"]


def test_edited_evidence_makes_its_gates_stale_and_the_next_run_mends_it(factory: Factory, workspace: Path):
    scores = workspace / "metrics/baseline.json"
    scores.write_text(scores.read_text().replace('"value": ', '"value":  ', 1))
    shown = factory.warm("gates", str(workspace))
    assert shown.returncode == 3
    assert "STALE" in shown.stdout
    assert "metrics/baseline.json" in shown.stdout
    answers = workspace / "metrics/baseline-zero_shot-answers.jsonl"
    answers.write_text(answers.read_text() + "\n")
    ran = factory.run(workspace)
    assert ran.code == 0
    assert ran.phases["baseline"] == "done"
    assert ran.phases["finetune"] == "reused"
    assert '"value":  ' not in scores.read_text()
    assert factory.warm("gates", str(workspace)).returncode == 0


@pytest.fixture(scope="module")
def waived(factory: Factory, workspace: Path) -> Ran:
    """One run with a gate that is closed and waived, after the model was deleted."""
    (workspace / "models/quantized/model-Q8_0.gguf").unlink()
    closed = "gates.baseline_established.min_examples=101"
    waiver = 'gates.waivers=[{gate: baseline-established, reason: "pilot with one class"}]'
    return factory.run(workspace, "-o", closed, "-o", waiver)


def test_a_deleted_model_is_made_again_and_nothing_before_it(waived: Ran):
    assert waived.code == 0
    assert waived.phases["evaluate"] == "reused"
    assert waived.phases["quantize"] == "done"


def test_a_waiver_by_name_and_reason_lets_the_run_pass_and_is_recorded(
    factory: Factory, workspace: Path, waived: Ran
):
    assert waived.code == 0, waived.stderr
    assert waived.gates["baseline-established"] == "waived"
    record = json.loads((workspace / "gates/baseline-established.json").read_text())
    assert record["passed"] is False
    assert record["waiver"]["reason"] == "pilot with one class"
    tags = mlflow_runs(factory)[0].data.tags
    assert tags["gate.baseline-established"] == "waived"
    assert tags["gate.baseline-established.waiver"] == "pilot with one class"


def test_until_stops_after_a_phase_and_from_runs_anew(factory: Factory, workspace: Path):
    ran = factory.run(workspace, "--from", "format", "--until", "split")
    assert ran.code == 0
    assert ran.phases == {"ingest": "reused", "format": "done", "split": "done"}


def test_mlflow_holds_parameters_metrics_datasets_and_files(factory: Factory, workspace: Path):
    from mlflow import MlflowClient

    client = MlflowClient(factory.mlflow_uri)
    parent = next(run for run in mlflow_runs(factory) if run.data.tags["status"] == "passed")
    assert parent.data.params["training.learning_rate"] == "0.005"
    assert parent.data.metrics["gate.model-performance"] == 1.0
    assert parent.data.tags["phase.finetune"].startswith("reused from run ")
    training = client.get_run(parent.data.tags["phase.finetune"].rsplit(" ", 1)[1])
    history = client.get_metric_history(training.info.run_id, "loss")
    assert len(history) == 20
    assert {i.dataset.name for i in training.inputs.dataset_inputs} >= {"train.jsonl"}
    names = {f.path for f in client.list_artifacts(parent.info.run_id)}
    assert {"report.html", "gates"} <= names


def mlflow_runs(factory: Factory):
    from mlflow import MlflowClient

    client = MlflowClient(factory.mlflow_uri)
    experiment = client.get_experiment_by_name("thimble")
    return [
        run for run in client.search_runs([experiment.experiment_id], order_by=["attributes.start_time DESC"])
        if "mlflow.parentRunId" not in run.data.tags
    ]  # fmt: skip
