"""The PyTorch rung at work on a tiny model: made, loaded from its file, asked, judged, reported."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import pytest

from core.artifacts import path_digest, scratch_beside
from core.errors import ModelError
from core.evaluation.generation import TorchResponder
from core.quantization.config import QuantizationConfig
from core.quantization.dynamic import load_dynamic
from core.quantization.reports import OnnxBenchmark, OnnxFile, PytorchFile, QuantReport
from gates.quantization_verified import quantization_verified
from tasks.chat_tokens import chat_tokenizer
from tasks.context import RunContext, running
from tasks.file_story import scored_line
from tasks.ladder import Bench, ask, set_up
from tasks.pytorch_files import make_pytorch
from tasks.quantize import figures, make_others, summed_up
from tasks.test_uses import count_uses
from tests.tasks.test_ladder import CONFIG, LAX, Made, climbed, fresh


class Finished(NamedTuple):
    context: RunContext
    bench: Bench
    file: PytorchFile
    rows: list
    report: QuantReport
    made: Made


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    root = tmp_path_factory.mktemp("pytorch")
    made, context = Made(root), fresh(root)
    report = climbed(context, made, formats=["Q8_0"])
    target = context.workspace.root / "models/pytorch"
    with running(context), scratch_beside(target) as work:
        bench = set_up(made.merged, made.scored, made.splits / "test.jsonl", CONFIG, 4, work)
        settings = QuantizationConfig(pytorch=("int8",))
        whole, (answers,) = make_others(context, made.merged, settings, bench, report)
    rows = [json.loads(line) for line in answers.read_text(encoding="utf-8").splitlines()]
    assert answers.name == "quantization-pytorch-int8-answers.jsonl"
    return Finished(context, bench, whole.pytorch[0], rows, whole, made)


def test_the_model_is_measured_as_its_file_and_the_gate_opens(finished: Finished) -> None:
    file, made = finished.file, finished.made
    folder = finished.context.workspace.root / file.path
    assert (file.type, file.path) == ("int8", "models/pytorch/int8")
    assert path_digest(folder) == file.digest == file.evaluation.model_digest
    assert file.bytes == (folder / "int8.safetensors").stat().st_size < 0.4 * finished.report.merged_bytes
    assert file.evaluation.arm == "pytorch-int8"
    assert file.evaluation.decoding.prompt_digest == made.report.decoding.prompt_digest
    assert 0 < file.distance.kl < 0.05
    assert file.distance.tokens == sum(len(r.ids) - r.first for r in finished.bench.references)
    same = sum(
        row["answer"] == before["answer"] for row, before in zip(finished.rows, made.rows, strict=True)
    )
    assert file.text_agreement == pytest.approx(same / 9)
    assert file.evaluation.weights["perplexity"] == made.report.weights["perplexity"]
    verdict = quantization_verified(made.report, finished.report, LAX)
    assert verdict.passed, verdict.summary
    assert {"PyTorch int8 drop", "PyTorch int8 drop, upper end"} <= {check.name for check in verdict.tried}


def test_its_numbers_are_tracked_and_its_answers_kept(finished: Finished) -> None:
    found = dict(figures(finished.file))
    assert {"token_f1", "bytes", "kl", "text_agreement", "tokens_per_second"} <= set(found)
    assert len(finished.rows) == 9
    assert {"answer", "prompt_ids", "token_f1"} <= set(finished.rows[0])
    assert "test questions it scored token_f1" in scored_line(finished.file)
    score, size = finished.file.evaluation.value, finished.file.bytes / 1e6
    assert summed_up(finished.report).endswith(f"pytorch int8 {score:.3f} ({size:.1f} MB)")


def test_a_file_that_is_asked_counts_as_a_use_of_the_test_set(finished: Finished, tmp_path: Path) -> None:
    ledger, run = tmp_path / "uses.jsonl", SimpleNamespace(run_id="r")
    context = replace(finished.context, test_uses=ledger, tracker=run)
    model = TorchResponder(load_dynamic(finished.context.workspace.root / finished.file.path),
                           chat_tokenizer(finished.made.merged, "chatml"), 4)  # fmt: skip
    with running(context):
        result = ask(context, model, "pytorch-int8", finished.file.digest, finished.bench)
    assert count_uses(ledger, result.report.split_digest).evaluations == 1
    assert '"phase":"quantize","arm":"pytorch-int8"' in ledger.read_text().replace(" ", "")


def test_models_that_are_no_longer_asked_for_are_gone(finished: Finished, tmp_path: Path) -> None:
    target = tmp_path / "pytorch"
    for stale in (target / "int8", target / "int4"):
        stale.mkdir(parents=True)
        (stale / "int8.safetensors").write_bytes(b"")
    (target / "stray").write_bytes(b"")
    assert make_pytorch(finished.context, finished.made.merged, target, (), finished.bench) == []
    assert not list(target.iterdir())
    assert make_pytorch(finished.context, finished.made.merged, tmp_path / "none", (), finished.bench) == []
    assert not (tmp_path / "none").exists()


def test_logits_that_are_no_numbers_stop_it(finished: Finished, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    broken = tmp_path / "merged"
    broken.mkdir()
    for file in finished.made.merged.iterdir():
        (broken / file.name).write_bytes(file.read_bytes())
    weights = load_file(broken / "model.safetensors")
    weights["model.norm.weight"][0] = float("nan")
    save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})
    target = finished.context.workspace.root / "other"
    with running(finished.context), scratch_beside(target) as work:
        bench = set_up(
            finished.made.merged, finished.made.scored, finished.made.splits / "test.jsonl", CONFIG, 2, work
        )
        with pytest.raises(ModelError, match="no numbers"):
            make_pytorch(finished.context, broken, target, ("int8",), bench)


def test_an_onnx_model_that_was_asked_nothing_has_its_other_numbers_tracked(finished: Finished) -> None:
    timed = OnnxBenchmark(
        provider="CPU",
        prompt_tokens=4,
        mean_ms=1,
        std_ms=0,
        min_ms=1,
        max_ms=1,
        tokens_per_second=9,
        iterations=3,
    )
    apart = finished.file.distance
    file = OnnxFile(
        type="int8", path="models/onnx/int8", digest="sha256:0", bytes=5, distance=apart, decode_distance=apart,
        text_agreement=0.5, benchmark=timed,
    )  # fmt: skip
    found = dict(figures(file))
    assert found["bytes"] == 5 and found["text_agreement"] == 0.5 and found["kl"] == apart.kl
    assert "tokens_per_second" not in found
