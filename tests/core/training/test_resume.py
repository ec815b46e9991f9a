"""Kill training anywhere, start it again, and end with the same bytes: every optimizer, precision and packing."""

import json
from pathlib import Path

import pytest
import torch

from core.data.chat import IGNORE_INDEX, Encoded
from core.errors import ConfigError
from core.models.adapters import attach
from core.models.config import LoraConfig, ModelConfig
from core.models.loading import load_folder, load_model
from core.sinks import ListSink
from core.training.checkpoints import TrainingCheckpoints, discard_finished
from core.training.config import TrainingConfig
from core.training.loop import Progress
from core.training.optim import build_optimizer
from core.training.rows import SftInputs
from core.training.sft import finetune
from core.training.stopping import best_step

# r = 128: the adapter's matrices are large enough (4096 numbers) to be held in 8 bits.
LORA = LoraConfig(
    r=128,
    lora_alpha=1024,
    lora_dropout=0.1,
    use_gradient_checkpointing=False,
    target_modules=("q_proj", "up_proj"),
)
FAST = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 1, "optim": "adamw_torch",
        "learning_rate": 1e-2, "eval_steps": 2, "save_steps": 3, "warmup_steps": 2, "max_steps": 8}  # fmt: skip
OPTIMIZERS = [
    "adamw_torch",
    "adamw_8bit",
    "paged_adamw_8bit",
    "paged_adamw_32bit",
    "lion_8bit",
    "sgd",
    "adafactor",
]
EIGHT_BIT = {
    "adamw_8bit": ("state1", "state2"),
    "paged_adamw_8bit": ("state1", "state2"),
    "lion_8bit": ("state1",),
}


class Killed(Exception):
    pass


def inputs() -> SftInputs:
    """Make rows of few tokens in no order: which they are is learned first, then the rows by heart.

    So the validation loss falls, and rises again.
    """
    generator = torch.Generator().manual_seed(3)
    rows = []
    for number in range(18):
        ids = torch.randint(6, 40, (6 + number % 5,), generator=generator).tolist()
        rows.append(Encoded(ids, [IGNORE_INDEX] * 3 + ids[3:]))
    return SftInputs(rows[:14], rows[14:], pad_id=1, window=24)


class Run:
    """One process's part of a training."""

    def __init__(self, base: Path, folder: Path, settings: dict, model=None) -> None:
        self.model = model or attach(load_folder(base), LORA)
        self.folder, self.config, self.sink = folder, TrainingConfig(**settings), ListSink()
        self.saves, self.start = 0, None

    def go(self, die_after: int | None = None, fingerprint: str = "f"):
        def saved() -> None:
            self.saves += 1
            if self.saves == die_after:
                raise Killed

        self.tuned = finetune(
            self.model, inputs(), self.config, checkpoints=self.folder, fingerprint=fingerprint, sink=self.sink,
            on_checkpoint=saved, on_start=lambda progress: setattr(self, "start", progress),
        )  # fmt: skip
        return self

    @property
    def tensors(self) -> dict[str, torch.Tensor]:
        return {n: p.detach().clone() for n, p in self.model.named_parameters() if p.requires_grad}


def same(one: Run, two: Run) -> bool:
    return all(torch.equal(tensor, two.tensors[name]) for name, tensor in one.tensors.items())


def interrupted(base: Path, folder: Path, settings: dict, die_after: int = 1) -> Run:
    with pytest.raises(Killed):
        Run(base, folder, settings).go(die_after)
    return Run(base, folder, settings).go()


@pytest.mark.parametrize("optim", OPTIMIZERS)
def test_every_optimizer_resumes_bit_for_bit(base_folder: Path, tmp_path: Path, optim: str):
    settings = {**FAST, "optim": optim}
    whole = Run(base_folder, tmp_path / "a", settings).go()
    resumed = interrupted(base_folder, tmp_path / "b", settings)
    assert resumed.start.step == 3
    assert resumed.tuned.progress == whole.tuned.progress
    assert same(whole, resumed)
    state = torch.load(tmp_path / "b/checkpoint-8/optimizer.pt", weights_only=True)["optimizer"]["state"]
    held = [tensor for entry in state.values() for tensor in flattened(entry)]
    eight = [tensor for tensor in held if tensor.dtype == torch.uint8]
    # A state of 8 bits is really one: a byte for every trained number and every moment.
    assert sum(t.numel() for t in eight) == whole.tuned.trainable_parameters * len(EIGHT_BIT.get(optim, ()))


def flattened(entry: dict):
    for name, value in entry.items():
        if isinstance(value, dict):
            yield from flattened(value)
        elif isinstance(value, torch.Tensor) and "qmap" not in name:
            yield value


def test_paged_optimizers_compute_what_their_plain_twins_do(base_folder: Path, tmp_path: Path):
    plain, paged = (
        Run(base_folder, tmp_path / optim, {**FAST, "optim": optim}).go()
        for optim in ("adamw_8bit", "paged_adamw_8bit")
    )
    assert same(plain, paged)


def test_only_matrices_are_pulled_towards_zero():
    matrix, bias = torch.nn.Parameter(torch.ones(4, 4)), torch.nn.Parameter(torch.ones(4))
    frozen = torch.nn.Parameter(torch.ones(4, 4), requires_grad=False)
    optimizer = build_optimizer([matrix, bias, frozen], TrainingConfig(optim="sgd", weight_decay=0.5))
    assert [(g["weight_decay"], len(g["params"])) for g in optimizer.param_groups] == [(0.5, 1), (0.0, 1)]


def test_packed_training_resumes_bit_for_bit(base_folder: Path, tmp_path: Path):
    settings = {**FAST, "packing": True, "per_device_train_batch_size": 1, "gradient_accumulation_steps": 2}
    whole = Run(base_folder, tmp_path / "a", settings).go()
    resumed = interrupted(base_folder, tmp_path / "b", settings)
    assert whole.tuned.plan.steps_per_epoch == 3
    assert resumed.tuned.progress == whole.tuned.progress
    assert same(whole, resumed)


@pytest.mark.parametrize("held", [{"load_in_4bit": True}, {"load_in_8bit": True}], ids=["nf4", "int8"])
def test_training_on_a_quantized_base_resumes_bit_for_bit(base_folder: Path, tmp_path: Path, held: dict):
    def model():
        return attach(load_model(ModelConfig(name=str(base_folder), **held), trainable=True), LORA)

    whole = Run(base_folder, tmp_path / "a", FAST, model()).go()
    with pytest.raises(Killed):
        Run(base_folder, tmp_path / "b", FAST, model()).go(1)
    resumed = Run(base_folder, tmp_path / "b", FAST, model()).go()
    assert same(whole, resumed)
    assert whole.tuned.base_format == ("int8" if "load_in_8bit" in held else "nf4+double")
    assert whole.tuned.framework == "hf"


def test_float16_training_resumes_with_its_loss_scale(base_folder: Path, tmp_path: Path, monkeypatch):
    # The scale doubles after every good step instead of after 2000.
    made = torch.amp.GradScaler
    monkeypatch.setattr(
        torch.amp, "GradScaler", lambda device: made(device, init_scale=2.0**6, growth_interval=1)
    )
    settings = {**FAST, "fp16": True}
    whole = Run(base_folder, tmp_path / "a", settings).go()
    resumed = interrupted(base_folder, tmp_path / "b", settings)
    assert resumed.start.step == 3
    assert resumed.tuned.progress == whole.tuned.progress
    assert same(whole, resumed)
    scales = [
        torch.load(tmp_path / run / "checkpoint-8/optimizer.pt", weights_only=True)["scaler"] for run in "ab"
    ]
    assert scales[0] == scales[1]
    assert scales[0]["scale"] == 2.0**14


# The best adapter


RISING = {**FAST, "learning_rate": 5e-3, "eval_steps": 2, "save_steps": 3, "max_steps": 14, "warmup_steps": 0,
          "lr_scheduler_type": "constant"}  # fmt: skip


@pytest.fixture(scope="module")
def whole(base_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Train without an interruption."""
    return Run(base_folder, tmp_path_factory.mktemp("whole"), RISING).go()


def at_step(base: Path, folder: Path, step: int, **changes) -> Run:
    """Train without keeping the best, and stop when ``step`` is saved."""
    settings = {**RISING, **changes, "load_best_model_at_end": False, "save_steps": 1}
    run = Run(base, folder, settings)
    with pytest.raises(Killed):
        run.go(step)
    return run


def test_the_best_adapter_is_kept_and_not_the_last(base_folder: Path, tmp_path: Path, whole: Run):
    run = whole
    evals = run.tuned.progress.eval_losses
    lowest = min(evals, key=lambda each: each[1])
    assert lowest[0] < evals[-1][0] == 14, "the rows must be learned by heart for this test to say anything"
    assert run.tuned.kept_step == lowest[0]
    assert same(run, at_step(base_folder, tmp_path / "b", lowest[0]))
    last = Run(base_folder, tmp_path / "c", {**RISING, "max_steps": 8, "load_best_model_at_end": False}).go()
    assert last.tuned.kept_step == 8 > best_step(last.tuned.progress.eval_losses)
    assert same(last, at_step(base_folder, tmp_path / "d", 8))
    assert not list((tmp_path / "c").glob("best-*"))


def test_without_a_validation_split_the_last_adapter_is_kept(base_folder: Path, tmp_path: Path):
    model = attach(load_folder(base_folder), LORA)
    tuned = finetune(
        model, inputs()._replace(val=[]), TrainingConfig(**FAST), checkpoints=tmp_path, fingerprint="f",
        sink=ListSink(), on_checkpoint=lambda: None, on_start=lambda progress: None,
    )  # fmt: skip
    assert (tuned.kept_step, tuned.progress.eval_losses) == (8, ())


@pytest.mark.parametrize("die_after", [1, 2, 3, 4, 5])
def test_killed_at_any_save_the_best_adapter_is_the_same(base_folder, tmp_path, whole: Run, die_after: int):
    resumed = interrupted(base_folder, tmp_path / "b", RISING, die_after)
    assert resumed.tuned.progress == whole.tuned.progress
    assert resumed.tuned.kept_step == whole.tuned.kept_step
    assert same(whole, resumed)
    assert [p.name for p in (tmp_path / "b").glob("best-*")] == [f"best-{whole.tuned.kept_step}"]


@pytest.mark.parametrize("step", [2, 4, 6])
def test_killed_right_after_a_best_adapter_was_stored(
    base_folder: Path, tmp_path: Path, monkeypatch, step: int
):
    whole = Run(base_folder, tmp_path / "a", RISING).go()
    keep = TrainingCheckpoints.keep_best

    def keep_and_die(self, number: int) -> None:
        keep(self, number)
        if number == step:
            raise Killed

    monkeypatch.setattr(TrainingCheckpoints, "keep_best", keep_and_die)
    run = Run(base_folder, tmp_path / "b", RISING)
    assert step in running_bests(whole.tuned.progress)
    with pytest.raises(Killed):
        run.go()
    monkeypatch.undo()
    resumed = Run(base_folder, tmp_path / "b", RISING).go()
    assert resumed.tuned.progress == whole.tuned.progress
    assert same(whole, resumed)


def running_bests(progress: Progress) -> list[int]:
    """Return the steps whose loss was the lowest when it was measured."""
    evals = progress.eval_losses
    return [step for n, (step, _) in enumerate(evals, 1) if best_step(evals[:n]) == step]


def test_a_best_adapter_that_no_state_knows_yet_replaces_none(base_folder: Path, tmp_path: Path, monkeypatch):
    # Stored at step 4 and killed there: the run goes on from step 3, whose best is that of step 2.
    keep = TrainingCheckpoints.keep_best

    def keep_and_die(self, number: int) -> None:
        keep(self, number)
        if number == 4:
            raise Killed

    monkeypatch.setattr(TrainingCheckpoints, "keep_best", keep_and_die)
    with pytest.raises(Killed):
        Run(base_folder, tmp_path, RISING).go()
    assert sorted(p.name for p in tmp_path.glob("*-*")) == ["best-2", "best-4", "checkpoint-3"]


def test_the_best_adapter_of_another_run_is_not_taken(base_folder: Path, tmp_path: Path):
    run = Run(base_folder, tmp_path, RISING).go()
    record = next(tmp_path.glob("best-*")) / "progress.json"
    content = json.loads(record.read_text())
    record.write_text(json.dumps({**content, "fingerprint": "other"}))
    with pytest.raises(FileNotFoundError, match="another training run"):
        Run(base_folder, tmp_path, RISING).go()
    assert run.tuned.kept_step == content["step"]


# Early stopping


def test_training_stops_when_the_validation_loss_no_longer_falls(base_folder: Path, tmp_path: Path):
    settings = {**RISING, "max_steps": 60, "early_stopping_patience": 2}
    run = Run(base_folder, tmp_path, settings).go()
    progress = run.tuned.progress
    assert progress.stopped_early
    best = best_step(progress.eval_losses)
    # Two more looks after the best one, two steps apart.
    assert progress.step == best + 4 < 60
    assert run.tuned.kept_step == best
    assert [step for step, _ in run.sink.rows][-1] == progress.step


def test_a_run_that_stopped_early_does_not_train_on(base_folder: Path, tmp_path: Path):
    settings = {**RISING, "max_steps": 60, "early_stopping_patience": 2}
    first = Run(base_folder, tmp_path, settings).go()
    again = Run(base_folder, tmp_path, settings).go()
    assert again.start == first.tuned.progress
    assert again.sink.rows == []
    assert again.tuned.progress == first.tuned.progress
    assert again.tuned.kept_step == first.tuned.kept_step
    assert same(first, again)


@pytest.mark.parametrize("die_after", [1, 2, 3])
def test_a_killed_run_stops_where_the_uninterrupted_one_does(
    base_folder: Path, tmp_path: Path, die_after: int
):
    settings = {**RISING, "max_steps": 60, "early_stopping_patience": 2, "save_steps": 2}
    whole = Run(base_folder, tmp_path / "a", settings).go()
    resumed = interrupted(base_folder, tmp_path / "b", settings, die_after)
    assert resumed.tuned.progress == whole.tuned.progress
    assert same(whole, resumed)


def test_a_fall_smaller_than_the_threshold_is_none(base_folder: Path, tmp_path: Path):
    settings = {**RISING, "max_steps": 60, "early_stopping_patience": 3, "early_stopping_threshold": 100.0}
    run = Run(base_folder, tmp_path, settings).go()
    assert run.tuned.progress.step == 8
    assert run.tuned.kept_step == best_step(run.tuned.progress.eval_losses)


def test_patience_that_ends_with_the_plan_is_no_early_stop(base_folder: Path, tmp_path: Path):
    settings = {**RISING, "max_steps": 8, "early_stopping_patience": 3, "early_stopping_threshold": 100.0}
    run = Run(base_folder, tmp_path, settings).go()
    assert (run.tuned.progress.step, run.tuned.progress.stopped_early) == (8, False)


def test_patience_without_validation_rows_is_refused(base_folder: Path, tmp_path: Path):
    model = attach(load_folder(base_folder), LORA)
    with pytest.raises(ConfigError, match="no validation rows") as caught:
        finetune(
            model, inputs()._replace(val=[]), TrainingConfig(early_stopping_patience=2), checkpoints=tmp_path,
            fingerprint="f", sink=ListSink(), on_checkpoint=lambda: None, on_start=lambda progress: None,
        )  # fmt: skip
    assert caught.value.where == "training.early_stopping_patience"


def test_asked_to_train_anew_a_finished_or_stopped_state_is_dropped(base_folder: Path, tmp_path: Path):
    Run(base_folder, tmp_path / "a", FAST).go()
    discard_finished(tmp_path / "a", 8)
    assert not list((tmp_path / "a").glob("checkpoint-*"))
    Run(base_folder, tmp_path / "b", {**RISING, "max_steps": 60, "early_stopping_patience": 2}).go()
    discard_finished(tmp_path / "b", 60)
    assert not list((tmp_path / "b").glob("checkpoint-*"))
    with pytest.raises(Killed):
        Run(base_folder, tmp_path / "c", FAST).go(1)
    discard_finished(tmp_path / "c", 8)
    assert len(list((tmp_path / "c").glob("checkpoint-*"))) == 1


def test_what_interrupted_parts_cost_is_added_up(base_folder: Path, tmp_path: Path):
    whole = Run(base_folder, tmp_path / "a", FAST).go()
    resumed = interrupted(base_folder, tmp_path / "b", FAST)
    read = [
        json.loads((tmp_path / run / "checkpoint-8/progress.json").read_text())["spent"]["tokens"]
        for run in "ab"
    ]
    # Two epochs: steps of 4, 4, 4 and 2 rows.
    assert read[0] == read[1] == 2 * sum(len(row.input_ids) for row in inputs().train)
    assert whole.tuned.tokens_per_second > 0
    assert resumed.tuned.tokens_per_second > 0
    assert resumed.tuned.seconds > 0
    assert resumed.tuned.peak_memory > 1 << 20
