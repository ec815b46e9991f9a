"""What `factory validate` sees of the tokens: rows straight from the sources, and what it prints of them."""

import io
import json
import subprocess
import sys
from pathlib import Path

import pytest
from huggingface_hub import constants
from rich.console import Console
from safetensors import safe_open

from core.data.learning_reports import LearnReport, MaskedExample, Token
from core.data.records import Conversation, Document
from core.data.reports import Histogram
from core.models.config import LoraConfig, ModelConfig
from core.training.config import TrainingConfig
from flows.preflight.learning import learning, sample_sources
from flows.preflight.learning_view import histogram_lines, mask_text, show_learning, sparkline
from flows.run_config import RunConfig
from tasks.learnable import Setup, count_stored, learn_report, sample_file

ROOT = Path(__file__).parents[2]
BASE = ROOT / "data/tutor_base/model"
CONFIG = Path("run.yaml")


@pytest.fixture(autouse=True)
def _project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Give every test an empty folder and an empty Hub cache."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))


def write(path: str, rows: list[dict]) -> Path:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text(
        "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8"
    )
    return Path(path)


def pairs(n: int, question: str = "What is 3 + {}?") -> list[dict]:
    return [{"id": f"p{k}", "prompt": question.format(k), "completion": str(3 + k)} for k in range(n)]


def config(sources: list[dict], model: str = str(BASE), **blocks) -> RunConfig:
    settings = {
        "model": {"name": model, "max_seq_length": 256, "load_in_4bit": False},
        "lora": {"use_gradient_checkpointing": False},
        "training": {"optim": "adamw_torch", "learning_rate": 0.005},
        "sources": sources,
        **blocks,
    }
    return RunConfig.model_validate(settings)


def printed(report: LearnReport, **options) -> str:
    console = Console(file=io.StringIO(), width=120, **options)
    show_learning(console, report)
    return console.file.getvalue()


# From the sources to the report


def test_the_real_model_learns_real_rows() -> None:
    write("rows.jsonl", pairs(30))
    found = learning(config([{"path": "rows.jsonl"}]), CONFIG)
    assert (found.findings, found.skipped) == ((), "")
    assert found.report is not None and found.report.overfit is not None
    assert found.report.overfit.verdict == "learned"
    assert found.report.counts.rows == 30


def test_fast_leaves_the_batch_out() -> None:
    write("rows.jsonl", pairs(5))
    found = learning(config([{"path": "rows.jsonl"}]), CONFIG, fast=True)
    assert found.report is not None and found.report.overfit is None


def looked_with(**model) -> LearnReport:
    write("rows.jsonl", pairs(30))
    run = config([{"path": "rows.jsonl"}])
    run = run.model_copy(update={"model": run.model.model_copy(update=model)})
    found = learning(run, CONFIG)
    assert found.report is not None and found.report.overfit is not None
    return found.report


def test_a_batch_is_learned_by_the_engine_that_takes_anothers_place() -> None:
    report = looked_with(framework="unsloth", fall_back=True)
    assert report.overfit.verdict == "learned"


def test_hf_learns_a_batch_in_the_place_of_fused_which_computes_the_same() -> None:
    assert looked_with(framework="fused").overfit.verdict == "learned"


def test_an_engine_that_is_not_here_is_the_reason_why_nothing_is_learned() -> None:
    report = looked_with(framework="unsloth")
    assert (report.overfit.verdict, "unsloth is not installed" in report.overfit.reason) == ("skipped", True)


def test_every_file_of_a_folder_is_looked_into() -> None:
    write("rows/a.jsonl", pairs(300))
    write("rows/b.jsonl", [{"text": "Accra lies on the coast."}] * 300)
    sample = sample_sources(config([{"path": "rows"}]), size=100)
    kinds = [type(record) for record in sample.records]
    assert (kinds.count(Conversation), kinds.count(Document), sample.read) == (50, 50, 100)


def test_rows_are_converted_and_levelled_as_the_format_phase_does() -> None:
    write("rows.jsonl", [{"frage": "a\u00a0b?\u200b", "antwort": "c"}])
    fields = {"user": "frage", "assistant": "antwort"}
    record = sample_sources(config([{"path": "rows.jsonl", "format": "mapped", "fields": fields}])).records[0]
    assert isinstance(record, Conversation)
    assert [turn.content for turn in record.messages] == ["a b?", "c"]


def test_rows_that_cannot_be_used_are_counted_and_told() -> None:
    path = write("rows.jsonl", [*pairs(9), {"nothing": 1}])
    path.write_text(path.read_text() + "not json\n")
    sample = sample_sources(config([{"path": "rows.jsonl"}]))
    assert (len(sample.records), sample.read, sample.reasons.total()) == (9, 11, 2)
    found = learning(config([{"path": "rows.jsonl"}]), CONFIG, fast=True)
    assert found.report is not None
    assert any("2 of the first 11 rows cannot be used" in each.what for each in found.report.findings)


def test_rows_of_no_known_shape_stop_the_look_with_a_fix() -> None:
    write("rows.jsonl", [{"nothing": 1}] * 3)
    found = learning(config([{"path": "rows.jsonl"}]), CONFIG)
    assert found.report is None
    assert found.findings[0].what.startswith("none of the first 3 rows can be used")
    assert found.findings[0].fix


def test_sources_on_a_network_are_left_alone() -> None:
    write("rows.jsonl", pairs(3))
    both = config(
        [{"path": "rows.jsonl"}, {"path": "hf:nobody/nothing"}, {"path": "https://localhost:1/x.jsonl"}]
    )
    found = learning(both, CONFIG, fast=True)
    assert found.report is not None
    assert any("2 sources are not on this machine" in each.what for each in found.report.findings)
    assert learning(config([{"path": "hf:nobody/nothing"}]), CONFIG).skipped


def test_without_the_tokenizer_it_is_skipped_with_the_reason() -> None:
    write("rows.jsonl", pairs(3))
    found = learning(config([{"path": "rows.jsonl"}], model="google/gemma-3-4b-it"), CONFIG)
    assert (found.report, found.findings) == (None, ())
    assert "tokenizer is not on this machine" in found.skipped


def test_a_tokenizer_without_weights_is_enough_for_the_tokens() -> None:
    write("rows.jsonl", pairs(3))
    Path("half").mkdir()
    for file in BASE.iterdir():
        if file.suffix != ".safetensors":
            (Path("half") / file.name).write_bytes(file.read_bytes())
    report = learning(config([{"path": "rows.jsonl"}], model="half"), CONFIG).report
    assert report is not None and report.overfit is not None
    assert report.overfit.reason == "the model's weights are not on this machine"


def test_a_fault_that_makes_training_pointless_is_an_error_of_the_preflight() -> None:
    write("rows.jsonl", [{"prompt": "Read this. " * 300, "completion": "Yes."}] * 3)
    found = learning(config([{"path": "rows.jsonl"}]), CONFIG, fast=True)
    error = found.findings[0]
    assert (error.level, error.kind, error.where) == ("error", "setting", "model.max_seq_length")
    assert "max_seq_length: " in error.fix


def test_a_broken_tokenizer_is_an_error_and_no_traceback() -> None:
    write("rows.jsonl", pairs(3))
    Path("bad").mkdir()
    for name in ("config.json", "model.safetensors"):
        (Path("bad") / name).write_bytes((BASE / name).read_bytes())
    (Path("bad") / "tokenizer.json").write_text("{}")
    found = learning(config([{"path": "rows.jsonl"}], model="bad"), CONFIG)
    assert (found.report, found.findings[0].kind) == (None, "model")


def test_importing_it_loads_no_framework() -> None:
    code = "import sys, flows.preflight.learning, flows.preflight.learning_view, tasks.learnable\n"
    code += "assert not {'torch', 'transformers', 'peft', 'mlflow', 'prefect'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


# After the split


def test_the_report_of_a_split_is_written_and_always_the_same() -> None:
    rows = [{"id": f"r{k}", "metadata": {}, "origin": {}, "conversations": [
        {"role": "user", "content": f"What is 3 + {k}?"}, {"role": "assistant", "content": str(3 + k)}]}
        for k in range(50)]  # fmt: skip
    split = write("splits/train.jsonl", rows)
    setup = Setup(ModelConfig(name=str(BASE), max_seq_length=256), LoraConfig(), TrainingConfig(), "gemma-3")
    target = Path("metrics/learning.json")
    target.parent.mkdir()
    first = learn_report(BASE, split, setup, overfit=False, target=target)
    assert LearnReport.model_validate_json(target.read_text(encoding="utf-8")) == first
    assert learn_report(BASE, split, setup, overfit=False) == first
    assert (first.sampled, first.of_rows) == (50, 50)


@pytest.mark.parametrize(
    ("rows", "size", "taken"), [(0, 10, 0), (9, 10, 9), (10, 10, 10), (11, 10, 6), (95, 10, 10)]
)
def test_a_sample_is_spread_over_the_file(rows: int, size: int, taken: int) -> None:
    path = write("train.jsonl", [{"id": f"r{k}", "text": "x"} for k in range(rows)])
    records, total = sample_file(path, size)
    assert (len(records), total) == (taken, rows)
    stride = -(-rows // size) if rows else 1
    assert [record.id for record in records] == [f"r{k}" for k in range(0, rows, stride)]


def test_parameters_are_counted_without_opening_the_weights() -> None:
    with safe_open(BASE / "model.safetensors", framework="np") as weights:
        expected = sum(weights.get_tensor(name).size for name in weights.keys())  # noqa: SIM118
    assert count_stored(BASE) == expected


# On the screen


def example(**changes) -> MaskedExample:
    tokens = tuple(
        Token(text=text, id=n, trained=trained, special=text.startswith("<"))
        for n, (text, trained) in enumerate(
            [("<u>", False), ("[red]hi\n", False), ("yes", True), ("<e>", True)]
        )
    )
    return MaskedExample(label="a row", id="r1", tokens=tokens, n_tokens=4, n_trained=2, **changes)


def test_the_mask_reads_without_colours() -> None:
    assert mask_text(example(), brackets=True).plain == "<u>[red]hi⏎\n⟦yes<e>⟧"
    plain = mask_text(example(), brackets=False)
    assert plain.plain == "<u>[red]hi⏎\nyes<e>"
    underlined = "".join(
        plain.plain[span.start : span.end] for span in plain.spans if "underline" in str(span.style)
    )
    assert underlined == "yes<e>"


def test_special_trained_prompt_and_lost_tokens_look_different() -> None:
    styles = [str(span.style) for span in mask_text(example(), brackets=False).spans]
    assert len(set(styles)) == 4
    assert all("green" in style for style in styles[2:])
    lost = mask_text(example(lost_from=3), brackets=False).spans[-1]
    assert "strike" in str(lost.style)


def test_what_is_left_out_is_said_where_it_is_missing() -> None:
    text = mask_text(example(omitted=7, omitted_at=2), brackets=False).plain
    assert text == "<u>[red]hi⏎\n … 7 tokens … yes<e>"


def test_everything_is_printed_with_its_fix() -> None:
    rows = [*pairs(20), {"prompt": "Tell [bold]me", "completion": "Once upon a time. " * 90}]
    write("rows.jsonl", rows)
    report = learning(config([{"path": "rows.jsonl"}]), CONFIG).report
    assert report is not None
    text = printed(report)
    for part in ("⟦", "answers whose end is trained", "100.0% (21 of 21)", "one batch by heart", "learned in", "█",
                 "warning model.max_seq_length: 1 of 21 examples lose trained tokens", "set model.max_seq_length: "):  # fmt: skip
        assert part in text, part
    coloured = printed(report, force_terminal=True, color_system="truecolor")
    assert "⟦" not in coloured.split("trained")[0]
    assert "\x1b[4;" in coloured


def test_bars_hold_every_count() -> None:
    lines = list(histogram_lines(Histogram(edges=tuple(range(26)), counts=tuple(range(25)))))
    assert len(lines) <= 10
    assert sum(int(line.rsplit(" ", 1)[1]) for line in lines) == sum(range(25))
    assert list(histogram_lines(Histogram(edges=(0, 1), counts=(0,))))


def test_a_line_of_losses_falls() -> None:
    assert sparkline((8.0, 4.0, 1.0)) == "█▅▂"
    assert (sparkline(()), sparkline((0.0,))) == ("", "")
    assert len(sparkline(tuple(map(float, range(1, 100))))) <= 16
