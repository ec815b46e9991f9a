"""Fine-tuning end to end on a tiny model: resume, epochs, optimizers, failures."""

import math
from pathlib import Path

import pytest
import torch

from core.data.chat import IGNORE_INDEX, Encoded
from core.errors import TrainingFailed
from core.models.adapters import attach
from core.models.config import LoraConfig, ModelConfig
from core.models.loading import load_folder, load_model
from core.sinks import ListSink
from core.training.config import TrainingConfig
from core.training.loop import Progress
from core.training.sft import SftInputs, autocast_dtype, finetune, plan_steps, save_adapter

LORA = LoraConfig(r=4, lora_dropout=0.1, use_gradient_checkpointing=False)
FAST = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2, "optim": "adamw_torch",
        "learning_rate": 1e-2, "eval_steps": 5, "save_steps": 5, "warmup_steps": 2}  # fmt: skip


def inputs() -> SftInputs:
    generator = torch.Generator().manual_seed(3)
    rows = []
    for _ in range(22):
        ids = torch.randint(6, 400, (8,), generator=generator).tolist()
        rows.append(Encoded(ids, [IGNORE_INDEX] * 4 + ids[4:]))
    return SftInputs(rows[:18], rows[18:], pad_id=1)


class Killed(Exception):
    pass


def train(
    base: Path,
    folder: Path,
    config: TrainingConfig,
    *,
    fingerprint="f",
    die_after: int | None = None,
    model=None,
):
    model = model or attach(load_folder(base), LORA)
    sink, starts, saves = ListSink(), [], []

    def saved() -> None:
        saves.append(1)
        if die_after is not None and len(saves) == die_after:
            raise Killed

    tuned = finetune(
        model, inputs(), config, checkpoints=folder, fingerprint=fingerprint, sink=sink,
        on_checkpoint=saved, on_start=starts.append,
    )  # fmt: skip
    return model, tuned, sink, starts[0]


def trainable(model) -> dict[str, torch.Tensor]:
    return {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad}


@pytest.mark.parametrize(
    "optim",
    ["adamw_torch", "adamw_8bit", "paged_adamw_8bit", "paged_adamw_32bit", "lion_8bit", "sgd", "adafactor"],
)
def test_every_optimizer_lowers_the_loss(base_folder: Path, tmp_path: Path, optim: str):
    config = TrainingConfig(**{**FAST, "optim": optim, "max_steps": 12})
    model, tuned, _, _ = train(base_folder, tmp_path, config)
    assert tuned.progress.step == 12
    assert all(math.isfinite(loss) for loss in tuned.progress.losses)
    moved = sum(float(p.abs().sum()) for n, p in trainable(model).items() if "lora_B" in n)
    assert moved > 0
    if optim != "sgd":
        assert tuned.progress.losses[-1] < tuned.progress.losses[0]


def test_resumed_training_equals_uninterrupted_training_bit_for_bit(base_folder: Path, tmp_path: Path):
    config = TrainingConfig(**FAST, max_steps=15)
    whole, uninterrupted, _, _ = train(base_folder, tmp_path / "a", config)
    with pytest.raises(Killed):
        train(base_folder, tmp_path / "b", config, die_after=2)
    resumed, continued, sink, start = train(base_folder, tmp_path / "b", config)
    assert start.step == 10
    assert min(step for step, _ in sink.rows) == 11
    assert continued.progress == uninterrupted.progress
    for name, tensor in trainable(whole).items():
        assert torch.equal(tensor, trainable(resumed)[name]), name


def test_a_finished_training_resumes_without_another_step(base_folder: Path, tmp_path: Path):
    config = TrainingConfig(**FAST, max_steps=6)
    _, first, _, _ = train(base_folder, tmp_path, config)
    _, again, sink, start = train(base_folder, tmp_path, config)
    assert start.step == 6
    assert again.progress == first.progress
    assert sink.rows == []


def test_another_fingerprint_starts_afresh(base_folder: Path, tmp_path: Path):
    config = TrainingConfig(**FAST, max_steps=5)
    train(base_folder, tmp_path, config)
    _, _, _, start = train(base_folder, tmp_path, config, fingerprint="other")
    assert start == Progress(0, 0, (), ())


def test_a_half_written_checkpoint_is_not_taken_for_a_whole_one(base_folder: Path, tmp_path: Path):
    config = TrainingConfig(**FAST, max_steps=5)
    train(base_folder, tmp_path, config)
    part = tmp_path / ".checkpoint-9.x.part" / "checkpoint-9"
    part.mkdir(parents=True)
    (part / "trainable.safetensors").write_bytes(b"half")
    _, _, _, start = train(base_folder, tmp_path, config)
    assert start.step == 5


def test_null_max_steps_means_epochs():
    config = TrainingConfig(per_device_train_batch_size=4, gradient_accumulation_steps=2, num_train_epochs=3)
    plan = plan_steps(18, config)
    assert (plan.steps_per_epoch, plan.total_steps) == (3, 9)
    assert plan_steps(18, config.model_copy(update={"max_steps": 4})).total_steps == 4
    assert plan_steps(18, config.model_copy(update={"num_train_epochs": 0.1})).total_steps == 1


def test_eval_loss_is_of_the_validation_rows_and_logged(base_folder: Path, tmp_path: Path):
    _, tuned, sink, _ = train(base_folder, tmp_path, TrainingConfig(**FAST, max_steps=10))
    assert [step for step, _ in tuned.progress.eval_losses] == [5, 10]
    assert [m["eval_loss"] for _, m in sink.rows if "eval_loss" in m] == [
        v for _, v in tuned.progress.eval_losses
    ]


def test_only_the_adapter_moves(base_folder: Path, tmp_path: Path):
    model, _, _, _ = train(base_folder, tmp_path, TrainingConfig(**FAST, max_steps=4))
    base = load_folder(base_folder).state_dict()
    for name, tensor in model.named_parameters():
        key = name.removeprefix("base_model.model.").replace(".base_layer", "")
        if key in base:
            assert torch.equal(tensor, base[key]), name


def test_a_loss_that_is_not_a_number_stops_training(base_folder: Path, tmp_path: Path):
    model = attach(load_folder(base_folder), LORA)
    with torch.no_grad():
        model.get_output_embeddings().weight.fill_(float("inf"))
    with pytest.raises(TrainingFailed, match=r"loss became nan at step 1.*learning_rate"):
        train(base_folder, tmp_path, TrainingConfig(**FAST, max_steps=4), model=model)


def test_the_adapter_folder_holds_the_adapter_and_which_base_it_is_for(base_folder: Path, tmp_path: Path):
    model, _, _, _ = train(base_folder, tmp_path / "c", TrainingConfig(**FAST, max_steps=2))
    save_adapter(model, tmp_path / "lora")
    assert sorted(p.name for p in (tmp_path / "lora").iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
        "base.json",
    ]


@pytest.mark.parametrize(
    ("dtype", "settings", "wanted"),
    [
        ("float32", {}, None),
        ("bfloat16", {}, torch.bfloat16),
        ("bfloat16", {"bf16": False, "fp16": False}, None),
        ("float32", {"bf16": True}, torch.bfloat16),
        ("float32", {"fp16": True}, torch.float16),
    ],
)
@pytest.mark.parametrize("held", [{"load_in_4bit": False}, {"load_in_4bit": True}, {"load_in_8bit": True}])
def test_autocast_follows_the_settings_then_the_weights(base_folder, dtype, settings, wanted, held: dict):
    config = ModelConfig(name=str(base_folder), dtype=dtype, **held)
    model = attach(load_model(config, trainable=True), LORA)
    assert autocast_dtype(TrainingConfig(**settings), model) == wanted


def test_a_4_bit_base_trains_and_stays_as_it_was(base_folder: Path, tmp_path: Path):
    model = attach(load_model(ModelConfig(name=str(base_folder)), trainable=True), LORA)
    before = {n: p.detach().clone() for n, p in model.named_parameters() if not p.requires_grad}
    tuned = finetune(
        model, inputs(), TrainingConfig(**FAST, max_steps=8), checkpoints=tmp_path, fingerprint="q", sink=ListSink(),
        on_checkpoint=lambda: None, on_start=lambda progress: None,
    )  # fmt: skip
    assert tuned.progress.losses[-1] < tuned.progress.losses[0]
    after = dict(model.named_parameters())
    assert all(torch.equal(after[n], p) for n, p in before.items())
    assert {p.dtype for n, p in after.items() if "layers" in n and "base_layer" in n} == {torch.uint8}
