"""The same training with hf and with fused: what can be asked of an adapter, and being killed on the way."""

import warnings
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from core.data.batches import Batch, collate
from core.data.chat import IGNORE_INDEX, Encoded
from core.errors import ConfigError
from core.models.adapters import adapter_parity, attach
from core.models.config import LoraConfig, ModelConfig
from core.models.frameworks import FrameworkNotice
from core.models.fused.state import FusedNotice, fused_state
from core.models.loading import framework_of, load_model
from core.quantization.aware import prepare
from core.sinks import ListSink
from core.training.config import TrainingConfig
from core.training.language import mean_loss
from core.training.rows import SftInputs
from core.training.sft import Tuned, finetune
from tests.core.training.test_resume import FAST as LONG
from tests.core.training.test_resume import Killed, Run, same
from tests.families import build

STEPS = 4
FAST = {"per_device_train_batch_size": 3, "gradient_accumulation_steps": 2, "optim": "adamw_torch", "eval_steps": 2,
        "learning_rate": 5e-3, "save_steps": 9, "warmup_steps": 1, "max_steps": STEPS}  # fmt: skip
LORA: dict[str, Any] = {"r": 8, "lora_alpha": 16}
ALL = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@pytest.fixture(scope="module")
def base_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    root = tmp_path_factory.mktemp("bases")

    def made(family: str) -> Path:
        folder = root / family
        return folder if folder.is_dir() else build(family, folder)

    return made


def inputs() -> SftInputs:
    """Make rows of very different lengths."""
    generator = torch.Generator().manual_seed(3)
    rows = []
    for number in range(28):
        ids = torch.randint(6, 200, (5 + 7 * number % 24,), generator=generator).tolist()
        rows.append(Encoded(ids, [IGNORE_INDEX] * 3 + ids[3:]))
    return SftInputs(rows[:24], rows[24:], pad_id=1, window=32)


class Trained(NamedTuple):
    """What a training left."""

    model: Any
    tuned: Tuned
    notices: list[str]
    """What was said of layers that run by the model's own code."""

    @property
    def tensors(self) -> dict[str, Tensor]:
        return {n: p.detach() for n, p in self.model.named_parameters() if p.requires_grad}


def train(base: Path, folder: Path, framework: str, held: dict, lora: dict, training: dict) -> Trained:
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        settings = ModelConfig(
            **{"name": str(base), "framework": framework, "dtype": "float32", "load_in_4bit": False, **held}
        )
        model = attach(load_model(settings, trainable=True), LoraConfig(**{**LORA, **lora}))
        tuned = finetune(
            model, inputs(), TrainingConfig(**{**FAST, **training}), checkpoints=folder / framework,
            fingerprint="f", sink=ListSink(), on_checkpoint=lambda: None, on_start=lambda progress: None,
        )  # fmt: skip
    told = [str(each.message) for each in said if issubclass(each.category, FusedNotice)]
    assert framework_of(model) == framework
    return Trained(model, tuned, told)


def both(base: Path, folder: Path, held: dict, lora: dict, training: dict) -> tuple[Trained, Trained]:
    one, other = (train(base, folder, name, held, lora, training) for name in ("hf", "fused"))
    return one, other


class Kind(NamedTuple):
    """What is asked for, and what fused says about it."""

    family: str = "qwen2.5"
    lora: dict = {}
    held: dict = {}
    training: dict = {}
    notice: str | None = None


WITH_HEAD = {"target_modules": (*ALL, "lm_head")}
KINDS = {
    "plain": Kind(),
    "recomputed": Kind(lora={"use_gradient_checkpointing": True}),
    "packed": Kind("qwen3", training={"packing": True, "per_device_train_batch_size": 1}),
    "packed in windows": Kind("gemma-3", training={"packing": True, "per_device_train_batch_size": 2}),
    "budget": Kind("llama-3.1", training={"activation_budget": 0}),
    "nf4": Kind("llama-3.1", held={"load_in_4bit": True}),
    "fp4": Kind("qwen3", held={"load_in_4bit": True, "bnb_4bit_quant_type": "fp4", "bnb_4bit_use_double_quant": False}),
    "head": Kind("mistral", lora=WITH_HEAD),
    "head of 4 bits": Kind("mistral", lora=WITH_HEAD, held={"load_in_4bit": True}),
    "all-linear": Kind("llama-3.2", lora={"target_modules": "all-linear"}),
    "one projection": Kind("qwen3", lora={"target_modules": ("down_proj",)}),
    "rslora": Kind("mistral", lora={"use_rslora": True}),
    "no biases to train": Kind("llama-3.1", lora={"bias": "all"}),
    "all biases": Kind(lora={"bias": "all"}, notice="its base weights or biases are trained"),
    "adapted biases": Kind(lora={"bias": "lora_only"}, notice="its base weights or biases are trained"),
    "dora": Kind("qwen3", lora={"use_dora": True}, notice="another kind than plain LoRA"),
    "dora over nf4": Kind("llama-3.1", lora={"use_dora": True}, held={"load_in_4bit": True}, notice="another kind"),
    "dropout": Kind("qwen3", lora={"lora_dropout": 0.2}, notice="its adapter has dropout"),
    "int8": Kind("llama-3.1", held={"load_in_8bit": True}, notice="a Linear8bitLt"),
    "phi": Kind("phi-3", notice="models of type phi3 have no fused layers"),
    "phi, kept": Kind("phi-3", lora={"use_gradient_checkpointing": False}, notice="phi3 have no fused layers"),
    "phi in 4 bits": Kind("phi-4", held={"load_in_4bit": True}, notice="models of type phi3 have no fused layers"),
}  # fmt: skip


@pytest.mark.parametrize("name", KINDS)
def test_whatever_is_asked_of_an_adapter_fused_trains_what_hf_trains(
    name: str, base_of: Callable[[str], Path], tmp_path: Path
):
    kind = KINDS[name]
    hf, fused = both(base_of(kind.family), tmp_path, kind.held, kind.lora, kind.training)
    assert adapter_parity(fused.model, hf.model) == ()
    found, wanted = fused.tuned.progress, hf.tuned.progress
    assert found.losses == pytest.approx(wanted.losses, rel=1e-5, abs=0)
    assert [loss for _, loss in found.eval_losses] == pytest.approx(
        [e for _, e in wanted.eval_losses], rel=1e-5
    )
    assert wanted.losses[-1] != wanted.losses[0]
    assert found.tokens == wanted.tokens and fused.tuned.base_format == hf.tuned.base_format
    for key, tensor in hf.tensors.items():
        assert torch.allclose(fused.tensors[key], tensor, rtol=1e-2, atol=1e-4), key
    assert apart(fused.tensors, hf.tensors) < 1e-3
    if kind.notice is None:
        assert fused.notices == []
        assert len(fused_state(fused.model).sites()) == len(fused_state(fused.model).layers)
    else:
        assert len(fused.notices) == 1, fused.notices
        assert kind.notice in fused.notices[0]


def apart(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> float:
    """Return the relative distance of all trained tensors as one vector."""
    one, other = (torch.cat([each[key].flatten() for key in wanted]) for each in (found, wanted))
    return float((one - other).norm() / other.norm())


def test_a_head_that_is_the_embedding_too_is_refused_by_both(base_of: Callable[[str], Path]):
    for framework in ("hf", "fused"):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FrameworkNotice)
            settings = ModelConfig(name=str(base_of("gemma-3")), framework=framework, load_in_4bit=False)
            model = load_model(settings, trainable=True)
        with pytest.raises(ConfigError, match="shares its weights with the input embedding"):
            attach(model, LoraConfig(r=8, target_modules=("q_proj", "lm_head")))


# Killed


def fused_model(base: Path, **held: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FrameworkNotice)
        settings = ModelConfig(**{"name": str(base), "framework": "fused", "load_in_4bit": False, **held})
        return attach(load_model(settings, trainable=True), LoraConfig(**LORA))


@pytest.mark.parametrize(
    ("family", "held", "settings"),
    [
        ("qwen2.5", {}, {}),
        ("llama-3.1", {"load_in_4bit": True}, {}),
        ("llama-3.1", {}, {"fp16": True}),
        ("qwen3", {}, {"packing": True, "per_device_train_batch_size": 1, "gradient_accumulation_steps": 2}),
    ],
    ids=["float32", "nf4", "float16", "packed"],
)
def test_fused_training_resumes_bit_for_bit(
    family: str, held: dict, settings: dict, base_of: Callable[[str], Path], tmp_path: Path
):
    base, chosen = base_of(family), {**LONG, "learning_rate": 5e-3, **settings}
    whole = Run(base, tmp_path / "a", chosen, fused_model(base, **held)).go()
    with pytest.raises(Killed):
        Run(base, tmp_path / "b", chosen, fused_model(base, **held)).go(1)
    resumed = Run(base, tmp_path / "b", chosen, fused_model(base, **held)).go()
    assert resumed.start.step == 3
    assert resumed.tuned.progress == whole.tuned.progress
    assert resumed.tuned.framework == "fused"
    assert same(whole, resumed)


# Layers that were given another forward function


def test_layers_that_round_their_weights_are_not_fused_over(base_of: Callable[[str], Path]):
    # Settings refuse this. Were they not to, the rounding must not be lost without a word.
    found = []
    for framework in ("hf", "fused"):
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            settings = ModelConfig(name=str(base_of("qwen3")), framework=framework, load_in_4bit=False)
            model = attach(load_model(settings, trainable=True), LoraConfig(**LORA))
            model.get_base_model().loaded_by_engine = "hf"
            plain = float(mean_loss(model, batches(), torch.device("cpu"), nullcontext))
            prepare(model, "Q8_0")
            found.append(float(mean_loss(model, batches(), torch.device("cpu"), nullcontext)))
        assert found[-1] != plain
    told = [str(each.message) for each in said if issubclass(each.category, FusedNotice)]
    assert told == [
        "some layers run by the model's own code: one of its modules has been given another forward function"
    ]
    assert found[1] == pytest.approx(found[0], rel=1e-6)


def batches() -> list[Batch]:
    return [collate(inputs().val, 1)]
