"""The ladder at work on a tiny model: files are made, measured as they are, from small to large, and chosen among."""

import json
import re
import time
from pathlib import Path
from typing import NamedTuple

import pytest
from gguf import GGUFReader

from core.artifacts import Evaluation, Splits, fingerprint, path_digest, scratch_beside, write_jsonl
from core.errors import ConfigError
from core.evaluation.config import EvaluationConfig
from core.evaluation.evaluate import evaluate
from core.evaluation.generation import TorchResponder
from core.models.loading import load_folder
from core.quantization.config import QuantizationConfig
from core.quantization.reports import QuantReport
from flows.display import Silent
from gates.quantization_verified import quantization_verified
from gates.rungs import shipped
from gates.thresholds import GatesConfig, QuantizationVerified
from tasks import shipping
from tasks.chat_tokens import chat_tokenizer
from tasks.context import RunContext, running
from tasks.file_story import file_story, scored_line
from tasks.gguf_files import training_texts, write_files
from tasks.ladder import (
    Bench,
    differing,
    examine,
    flips,
    measure_parity,
    opened_with,
    read_passages,
    serving_context,
    set_up,
)  # fmt: skip
from tasks.quantize import Enough, climb, figures, plan_for
from tasks.workspace import Workspace
from tests.core.deployment.gguf import tiny

CONFIG = EvaluationConfig(max_new_tokens=6, resamples=1000, metrics=("exact_match", "token_f1", "perplexity"),
                          primary_metric="token_f1")  # fmt: skip
LAX = QuantizationVerified(max_drop=1, max_drop_upper=2)


def talk(number: int) -> dict:
    question = f"What is {number} + {number}?"
    turns = [{"role": "user", "content": question}, {"role": "assistant", "content": f"GH₵{2 * number} ɛyɛ"}]
    return {"id": f"t{number}", "conversations": turns, "metadata": {}}


class Made:
    """What earlier phases would have left."""

    def __init__(self, root: Path) -> None:
        self.merged = tiny.save(
            root / "merged", "Llama", tiny.byte_level(), hidden_size=256, intermediate_size=512
        )
        self.splits = root / "splits"
        self.splits.mkdir()
        for name, count in (("train", 30), ("val", 2), ("test", 9)):
            write_jsonl(self.splits / f"{name}.jsonl", [talk(n) for n in range(1, count + 1)])
        # A random model says what it likes; its own answers become the right ones, so that a score can fall.
        model = TorchResponder(load_folder(self.merged), chat_tokenizer(self.merged, "chatml"), 8)
        rows = [talk(n) for n in range(1, 10)]
        said = model.answer([row["conversations"][:1] for row in rows], 6, lambda done, total: None)
        for row, answer in zip(rows, said, strict=True):
            row["conversations"][1]["content"] = answer.text or "nothing"
        write_jsonl(self.splits / "test.jsonl", rows)
        result = evaluate(
            model, self.splits / "test.jsonl", CONFIG, arm="tuned", model_digest=path_digest(self.merged),
            clock=time.monotonic, tick=lambda done, total: None,
        )  # fmt: skip
        self.report = result.report
        write_jsonl(root / "answers.jsonl", result.rows)
        self.scored = Evaluation.of(root / "answers.jsonl")
        self.rows = result.rows


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return Made(tmp_path_factory.mktemp("made"))


def fresh(root: Path) -> RunContext:
    run = RunContext(
        name="t", workspace=Workspace(root / "ws"), tracker=None, watcher=Silent(), base=root, gates=GatesConfig()
    )  # type: ignore[arg-type]  # fmt: skip
    run.workspace.metrics.mkdir(parents=True)
    return run


@pytest.fixture
def context(tmp_path: Path) -> RunContext:
    return fresh(tmp_path)


def climbed(context: RunContext, made: Made, enough: Enough | None = None, **settings: object) -> QuantReport:
    """Run the phase's body but for its bookkeeping."""
    chosen = QuantizationConfig.model_validate(settings)
    target = context.workspace.root / "models/quantized"
    splits = Splits.of(made.splits)
    with running(context), scratch_beside(target) as work:
        bench = set_up(made.merged, made.scored, splits.test, CONFIG, 4, work)
        written = write_files(context, made.merged, splits, target, work, chosen, "tiny")
        report = QuantReport(
            merged_digest=path_digest(made.merged),
            merged_bytes=(made.merged / "model.safetensors").stat().st_size,
            parity=measure_parity(context, written.source, bench),
            importance_tokens=written.importance_tokens,
            files=(),
        )
        return climb(context, report, written, bench, enough)[0]


class Finished(NamedTuple):
    """A phase that ran over three types."""

    context: RunContext
    report: QuantReport


@pytest.fixture(scope="module")
def finished(made: Made, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    context = fresh(tmp_path_factory.mktemp("finished"))
    return Finished(context, climbed(context, made, formats=["f16", "Q8_0", "Q4_K_M"]))


def test_every_file_is_measured_from_small_to_large_and_the_gate_can_choose(
    finished: Finished, made: Made
) -> None:
    context, report = finished
    assert [file.type for file in report.files] == ["Q4_K_M", "Q8_0", "f16"]
    assert report.parity is not None
    assert report.parity.kl < 1e-5
    assert report.parity.argmax_agreement == 1.0
    small, middle, whole = report.files
    assert small.bytes < middle.bytes < whole.bytes
    assert small.distance.kl > middle.distance.kl > whole.distance.kl >= 0
    assert whole.text_agreement == 1.0
    assert (whole.broken, whole.fixed, whole.prompt_mismatches) == (0, 0, 0)
    for file in report.files:
        path = context.workspace.root / file.path
        assert path_digest(path) == file.digest == file.evaluation.model_digest
        answers = context.workspace.metrics / f"quantization-{file.type}-answers.jsonl"
        rows = [json.loads(line) for line in answers.read_text(encoding="utf-8").splitlines()]
        same = sum(row["answer"] == before["answer"] for row, before in zip(rows, made.rows, strict=True))
        assert file.text_agreement == pytest.approx(same / 9)
        assert file.load_seconds > 0
    verdict = quantization_verified(made.report, report, LAX)
    assert verdict.passed, verdict.summary
    assert not list(context.workspace.root.rglob("*.part"))


def test_perplexity_through_llama_cpp_is_the_merged_models(finished: Finished, made: Made) -> None:
    mine, theirs = finished.report.files[-1].evaluation, made.report
    assert mine.scores["perplexity"] == pytest.approx(theirs.scores["perplexity"], rel=2e-3)
    assert mine.weights["perplexity"] == theirs.weights["perplexity"]
    assert mine.metrics["perplexity"].value == pytest.approx(theirs.metrics["perplexity"].value, rel=2e-3)


def test_the_climb_ends_at_the_first_file_that_may_ship(context: RunContext, made: Made) -> None:
    enough = Enough(tuned=made.report, limits=LAX, wanted="smallest")
    report = climbed(context, made, enough, formats=["Q8_0", "Q4_K_M", "f16"])
    assert [file.type for file in report.files] == ["Q4_K_M"]
    assert report.skipped == ("Q8_0", "f16")
    assert sorted(p.name for p in (context.workspace.root / "models/quantized").iterdir()) == [
        "model-Q4_K_M.gguf", "model-Q8_0.gguf", "model-f16.gguf",
    ]  # fmt: skip
    assert quantization_verified(made.report, report, LAX).passed


def test_the_climb_goes_on_past_bad_files_and_up_to_the_named_one(context: RunContext, made: Made) -> None:
    kl = QuantizationVerified(max_drop=1, max_drop_upper=2, max_kl=1e-3)
    enough = Enough(tuned=made.report, limits=kl, wanted="smallest")
    report = climbed(context, made, enough, formats=["Q8_0", "Q4_K_M", "f16"])
    assert report.files[0].type == "Q4_K_M"
    assert report.files[-1].type == shipped(made.report, report, kl).type != "Q4_K_M"
    named = Enough(tuned=made.report, limits=LAX, wanted="f16")
    report = climbed(context, made, named, formats=["Q4_K_M", "f16"])
    assert report.skipped == ()


def test_limits_are_in_the_key_only_if_they_decide_what_is_measured(made: Made) -> None:
    every = QuantizationConfig(formats=("Q8_0",))
    assert plan_for(every, made.report, LAX, "smallest") == plan_for(
        every, made.report, QuantizationVerified(), "Q8_0"
    )
    until = QuantizationConfig(formats=("Q8_0",), measure="until_good")
    assert plan_for(until, made.report, LAX, "smallest") != plan_for(until, made.report, LAX, "Q8_0")
    assert plan_for(every, made.report, LAX, "smallest").versions == ()
    slower = made.report.model_copy(update={"tokens_per_second": 1.0})
    keys = {fingerprint(plan_for(until, tuned, LAX, "smallest")) for tuned in (made.report, slower)}
    assert len(keys) == 1


def test_versions_of_the_extra_are_in_the_key_only_if_it_is_used(made: Made) -> None:
    plan = plan_for(QuantizationConfig(onnx=("int8",)), made.report, LAX, "smallest")
    assert [text.split()[0] for text in plan.versions] == ["onnx", "onnxscript", "onnxruntime"]


def test_the_importance_matrix_is_measured_on_training_rows_and_changes_the_file(
    context: RunContext, finished: Finished, made: Made
) -> None:
    plain = finished.report
    weighed = climbed(context, made, formats=["Q4_K_M"], imatrix=True, imatrix_rows=10)
    assert plain.importance_tokens == 0
    assert weighed.importance_tokens == sum(
        map(len, training_texts(made.merged, made.splits / "train.jsonl", 10))
    )
    assert plain.files[0].digest != weighed.files[0].digest
    assert plain.files[0].bytes == weighed.files[0].bytes


def test_calibration_rows_are_as_many_as_asked_and_spread_over_the_file(made: Made) -> None:
    chat = chat_tokenizer(made.merged, "chatml")
    for rows in (1, 7, 10, 30, 500):
        texts = [
            chat.tokenizer.decode(ids)
            for ids in training_texts(made.merged, made.splits / "train.jsonl", rows)
        ]
        assert len(texts) == min(rows, 30)
    spread = [
        chat.tokenizer.decode(ids) for ids in training_texts(made.merged, made.splits / "train.jsonl", 3)
    ]
    assert [re.search(r"(\d+) \+ \1", text)[0] for text in spread] == ["1 + 1", "11 + 11", "21 + 21"]


def test_weights_beyond_f16_make_the_source_bf16(context: RunContext, made: Made, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    loud = tmp_path / "loud"
    loud.mkdir()
    for file in made.merged.iterdir():
        (loud / file.name).write_bytes(file.read_bytes())
    weights = load_file(loud / "model.safetensors")
    # Scaling a gate's input up and its product down changes nothing but the numbers' range.
    weights["model.layers.0.mlp.up_proj.weight"] *= 1e6
    weights["model.layers.0.mlp.down_proj.weight"] /= 1e6
    save_file(weights, loud / "model.safetensors", metadata={"format": "pt"})
    settings = QuantizationConfig(formats=("Q8_0", "bf16"))
    target = tmp_path / "out"
    with running(context), scratch_beside(target) as work:
        written = write_files(context, loud, Splits.of(made.splits), target, work, settings, "loud")
        assert (written.source_type, written.source) == ("bf16", target / "model-bf16.gguf")
    types = {
        tensor.name: tensor.tensor_type.name for tensor in GGUFReader(target / "model-Q8_0.gguf").tensors
    }
    assert types["blk.0.ffn_up.weight"] == "Q8_0"


def test_types_of_an_earlier_run_are_gone(context: RunContext, made: Made) -> None:
    target, splits = context.workspace.root / "models/quantized", Splits.of(made.splits)
    for formats, names in (
        (("Q8_0", "f16"), {"model-Q8_0.gguf", "model-f16.gguf"}),
        (("Q8_0",), {"model-Q8_0.gguf"}),
    ):
        with scratch_beside(target) as work:
            write_files(context, made.merged, splits, target, work, QuantizationConfig(formats=formats), "t")
        assert {path.name for path in target.iterdir()} == names


def test_passages_are_questions_with_the_models_own_answers(made: Made) -> None:
    tokenizer = chat_tokenizer(made.merged, "chatml").tokenizer
    passages = read_passages(made.merged, made.rows, 3)
    assert len(passages) == 3
    for passage, row in zip(passages, made.rows[::3], strict=True):
        assert passage.ids[: passage.answer] == row["prompt_ids"]
        assert tokenizer.decode(passage.ids[passage.answer :]).strip() == row["answer"]
    text = {"prompt_ids": [], "answer": "", "reference": "What is 12 + 7?"}
    (passage,) = read_passages(made.merged, [text], 5)
    assert (passage.answer, tokenizer.decode(passage.ids)) == (1, "What is 12 + 7?")


def test_flips_count_what_got_worse_and_better_in_the_direction_of_the_metric() -> None:
    before = [{"m": 1.0, "perplexity": 2.0}, {"m": 0.0, "perplexity": 2.0}, {"m": 0.5, "perplexity": 2.0}]
    after = [{"m": 0.4, "perplexity": 2.5}, {"m": 1.0, "perplexity": 1.5}, {"m": 0.5, "perplexity": 3.0}]
    assert flips(before, after, "m") == (1, 1)
    assert flips(before, after, "perplexity") == (2, 1)
    assert differing(before, after, "m") == 2
    with pytest.raises(ValueError, match="shorter"):
        flips(before, after[:2], "m")


def test_the_scores_of_the_file_that_ships_stand_on_top(finished: Finished, made: Made) -> None:
    context, report = finished
    with running(context):
        small = shipping.choose(made.report, report, LAX, "smallest")
        path = context.workspace.metrics / "quantization.json"
        first = json.loads(path.read_text(encoding="utf-8"))
        assert (small.type, first["type"], first["value"]) == ("Q4_K_M", "Q4_K_M", small.evaluation.value)
        assert {
            "metric",
            "n",
            "interval",
            "timestamp",
            "split_digest",
            "model_digest",
            "decoding",
        } <= first.keys()
        assert [file["type"] for file in first["files"]] == ["Q4_K_M", "Q8_0", "f16"]
        before = path.stat().st_mtime_ns
        assert shipping.choose(made.report, report, LAX, "smallest") == small
        assert path.stat().st_mtime_ns == before
        assert shipping.choose(made.report, report, LAX, "Q8_0").type == "Q8_0"
        assert json.loads(path.read_text(encoding="utf-8"))["type"] == "Q8_0"
        assert context.evidence["metrics/quantization.json"] == path_digest(path)
        assert context.reports["shipped"].type == "Q8_0"


def test_advice_only_where_nothing_may_ship(finished: Finished, made: Made) -> None:
    report = finished.report
    assert shipping.advice_on(made.report, report, LAX, "smallest") == ()
    (advice,) = shipping.advice_on(made.report, report, QuantizationVerified(max_size_mb=1e-3), "smallest")
    assert "Q8_0" in advice
    (advice,) = shipping.advice_on(made.report, report, LAX, "Q6_K")
    assert "deployment.format: smallest" in advice


def test_numbers_of_each_file_have_names_of_their_own(finished: Finished, made: Made) -> None:
    report = finished.report
    found = dict(figures(report.files[0]))
    assert {
        "token_f1",
        "exact_match",
        "bytes",
        "kl",
        "argmax_agreement",
        "text_agreement",
        "tokens_per_second",
    } <= set(found)
    story = " ".join(file_story(report.files[0], report))
    assert "word for word" in story and "Measured beside it: Q8_0" in story
    assert "test questions it scored token_f1" in scored_line(report.files[0])


def test_a_file_whose_template_reads_prompts_differently_is_counted(
    context: RunContext, made: Made, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    other.mkdir()
    for file in made.merged.iterdir():
        (other / file.name).write_bytes(file.read_bytes())
    place = other / "chat_template.jinja"
    place.write_text(
        place.read_text(encoding="utf-8").replace("m['content']", "m['content'] + ' '"), encoding="utf-8"
    )
    target = context.workspace.root / "models/quantized"
    with running(context), scratch_beside(target) as work:
        bench: Bench = set_up(made.merged, made.scored, made.splits / "test.jsonl", CONFIG, 2, work)
        settings = QuantizationConfig(formats=("Q8_0",))
        written = write_files(context, other, Splits.of(made.splits), target, work, settings, "tiny")
        measured, _ = examine(context, written.files["Q8_0"], "Q8_0", bench)
    assert measured.prompt_mismatches == 9


# Angles that depend on the context


def long_rope(root: Path) -> Path:
    """Make a model whose angles change past 256 tokens."""
    rope = {"rope_type": "longrope", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 256,
            "short_factor": [1 + 0.1 * n for n in range(8)], "long_factor": [2 + n for n in range(8)]}  # fmt: skip
    return tiny.save(root, "Llama", tiny.byte_level(), max_position_embeddings=1024, rope_parameters=rope)


def test_only_models_with_two_sets_of_angles_care_for_the_context_they_are_served_with(
    made: Made, tmp_path: Path
) -> None:
    folder = long_rope(tmp_path / "long")
    assert (serving_context(made.merged, 512), serving_context(folder, 512)) == (None, 512)
    assert opened_with(made.merged, 136, 512) == opened_with(folder, 136, None) == 136
    assert opened_with(folder, 136, 256) == opened_with(folder, 136, 100) == 136
    assert opened_with(folder, 300, 512) == 300
    assert opened_with(folder, 136, 257) == 257
    with pytest.raises(ConfigError, match="cannot be measured with them") as caught:
        opened_with(folder, 300, 256)
    assert caught.value.where == "deployment.context_length"


def test_files_are_measured_with_the_angles_they_are_served_with(
    context: RunContext, made: Made, tmp_path: Path
) -> None:
    folder, target = long_rope(tmp_path / "long"), context.workspace.root / "models/quantized"
    settings, kl = QuantizationConfig(formats=("f16",)), []
    for serving in (256, 512):
        with running(context), scratch_beside(target) as work:
            bench = set_up(folder, made.scored, made.splits / "test.jsonl", CONFIG, 2, work, serving)
            written = write_files(context, folder, Splits.of(made.splits), target, work, settings, "long")
            assert bench.dtype == "float32"
            parity = measure_parity(context, written.source, bench)
            measured, _ = examine(context, written.files["f16"], "f16", bench)
        assert parity is not None and parity.kl < 1e-5
        assert measured.distance is not None
        kl.append(measured.distance.kl)
    assert kl[0] < 1e-5 < 1e-3 < kl[1]
