"""framework: fused as users get it: loaded, adapted, trained, saved, and read by Transformers and PEFT alone."""

import socket
import warnings
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from torch import Tensor
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from core.data.chat import IGNORE_INDEX, Encoded
from core.models.adapters import adapter_parity, attach
from core.models.config import LoraConfig, ModelConfig
from core.models.frameworks import FrameworkNotice
from core.models.fused.state import FusedNotice, fused_state
from core.models.loading import load_model
from core.models.scratch import save_model
from core.sinks import ListSink
from core.training.config import TrainingConfig
from core.training.rows import SftInputs
from core.training.sft import Tuned, finetune, save_adapter
from tests.core.models.fused.tiny import base, error, learn, run_out, stir

LORA = LoraConfig(r=4)
FAST = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, "optim": "adamw_torch", "save_steps": 9,
        "learning_rate": 1e-2, "eval_steps": 2, "warmup_steps": 1, "max_steps": 4}  # fmt: skip


def attached(folder: Path, framework: str, lora: LoraConfig = LORA, **settings) -> PeftModel:
    wanted = {"load_in_4bit": False, "dtype": "float32", **settings}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FrameworkNotice)
        return attach(
            load_model(ModelConfig(name=str(folder), framework=framework, **wanted), trainable=True), lora
        )


def tokens(b: int = 2, s: int = 12) -> Tensor:
    return torch.randint(6, 90, (b, s), generator=torch.Generator().manual_seed(2))


def inputs() -> SftInputs:
    generator = torch.Generator().manual_seed(3)
    rows = []
    for number in range(20):
        drawn = torch.randint(6, 90, (5 + 3 * (number % 4),), generator=generator).tolist()
        rows.append(Encoded(drawn, [IGNORE_INDEX] * 3 + drawn[3:]))
    return SftInputs(rows[:16], rows[16:], pad_id=1)


def run(model: PeftModel, folder: Path, **settings) -> tuple[dict[str, Tensor], Tuned]:
    tuned = finetune(
        model, inputs(), TrainingConfig(**{**FAST, **settings}), checkpoints=folder, fingerprint="f", sink=ListSink(),
        on_checkpoint=lambda: None, on_start=lambda progress: None,
    )  # fmt: skip
    return {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad}, tuned


@pytest.fixture(scope="session", params=["llama", "qwen2", "gemma3"])
def folder(
    request: pytest.FixtureRequest,
    tokenizer: PreTrainedTokenizerFast,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    place = tmp_path_factory.mktemp("fused") / request.param
    save_model(base(request.param, torch.float32, vocab_size=400), tokenizer, place)
    return place


@pytest.fixture(scope="session", params=["llama", "qwen2", "gemma3"])
def wide(
    request: pytest.FixtureRequest,
    tokenizer: PreTrainedTokenizerFast,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """Rows of whole blocks of 64: from others bitsandbytes 0.50 reads wrong scales on the CPU."""
    place = tmp_path_factory.mktemp("wide") / request.param
    sizes = {"vocab_size": 400, "hidden_size": 64, "intermediate_size": 128}
    save_model(base(request.param, torch.float32, **sizes), tokenizer, place)
    return place


# Attaching


def test_both_engines_begin_with_the_same_tensors(folder: Path):
    hf, fused = attached(folder, "hf"), attached(folder, "fused")
    assert adapter_parity(hf, fused) == ()
    assert fused_state(fused) is not None
    for (name, one), (other, two) in zip(hf.named_parameters(), fused.named_parameters(), strict=True):
        assert (name, one.requires_grad) == (other, two.requires_grad)
        assert torch.equal(one, two)


def test_adapters_are_float32_whatever_the_base_holds(folder: Path):
    model = attached(folder, "fused", dtype="bfloat16")
    kinds = {p.dtype for n, p in model.named_parameters() if "lora_" in n}
    assert kinds == {torch.float32}
    assert fused_state(model).dtype == torch.bfloat16
    _, found = learn(model, tokens())
    assert {one.dtype for one in found.values()} == {torch.float32}


@pytest.mark.parametrize(("asked", "expected"), [("unsloth", True), (True, True), (False, False)])
def test_checkpointing_is_what_was_asked_for(base_folder: Path, asked, expected: bool):
    lora = LORA.model_copy(update={"use_gradient_checkpointing": asked})
    assert fused_state(attached(base_folder, "fused", lora)).is_checkpointed is expected


def test_a_family_without_fused_layers_trains_by_its_own_code_and_says_so(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path
):
    from transformers import GemmaConfig

    small = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2,
             "num_key_value_heads": 1, "head_dim": 8, "vocab_size": 400}  # fmt: skip
    save_model(AutoModelForCausalLM.from_config(GemmaConfig(**small)), tokenizer, tmp_path / "m")
    with pytest.warns(
        FusedNotice, match="models of type gemma have no fused layers; they run by their own code"
    ):
        model = attached(tmp_path / "m", "fused")
    assert fused_state(model) is None
    assert model.is_gradient_checkpointing
    assert learn(model.train(), tokens())[1]


# The same numbers


@pytest.mark.parametrize(
    "kind",
    [
        {},
        {"use_rslora": True, "target_modules": ("q_proj", "v_proj")},
        {"use_dora": True},
        {"bias": "all"},
        {"bias": "lora_only", "target_modules": ("q_proj",)},
    ],
    ids=["lora", "rslora", "dora", "all biases", "biases"],
)
def test_both_engines_train_alike(folder: Path, kind):
    lora = LORA.model_copy(update={"use_gradient_checkpointing": False, **kind})
    found = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FusedNotice)
        for framework in ("hf", "fused"):
            model = attached(folder, framework, lora)
            stir(model)
            found.append(learn(model.train(), tokens()))
    assert float(found[1][0]) == pytest.approx(float(found[0][0]), rel=1e-5)
    assert error(found[1][1], found[0][1]) < 1e-3


def test_a_whole_run_ends_where_transformers_ends(folder: Path, tmp_path: Path):
    expected, theirs = run(attached(folder, "hf"), tmp_path / "hf")
    found, ours = run(attached(folder, "fused"), tmp_path / "fused")
    assert ours.framework == "fused"
    assert ours.progress.losses == pytest.approx(theirs.progress.losses, rel=1e-4)
    assert [loss for _, loss in ours.progress.eval_losses] == pytest.approx(
        [loss for _, loss in theirs.progress.eval_losses], rel=1e-4
    )
    assert list(found) == list(expected)
    assert all(torch.allclose(found[name], expected[name], atol=2e-3) for name in found)


@pytest.mark.parametrize("quantized", ["nf4", "fp4"])
@pytest.mark.parametrize("double", [True, False])
def test_a_base_of_four_bits_gives_transformers_and_pefts_numbers(wide: Path, quantized: str, double: bool):
    settings = {"load_in_4bit": True, "bnb_4bit_quant_type": quantized, "bnb_4bit_use_double_quant": double}
    ours = attached(wide, "fused", **settings)
    held = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type=quantized, bnb_4bit_use_double_quant=double,
        bnb_4bit_compute_dtype=torch.float32,
    )  # fmt: skip
    plain = AutoModelForCausalLM.from_pretrained(
        wide, quantization_config=held, dtype=torch.float32, device_map={"": "cpu"}
    )
    for module in plain.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
    stir(ours)
    with warnings.catch_warnings():
        warnings.simplefilter("error", FusedNotice)
        loss, found = learn(ours.train(), tokens())
        assert len(fused_state(ours).sites()) == 3
    theirs = attach_like(plain, ours)
    expected_loss, expected = learn(theirs.train(), tokens())
    assert float(loss) == pytest.approx(float(expected_loss), rel=1e-5)
    assert error(found, expected) < 1e-3
    with torch.no_grad():
        assert float(ours.eval()(input_ids=tokens(), labels=tokens(), use_cache=False).loss) == float(loss)


def attach_like(plain, ours: PeftModel) -> PeftModel:
    """Put the same adapter on another base, by PEFT alone."""
    from peft import get_peft_model

    theirs = get_peft_model(plain, ours.peft_config["default"])
    theirs.load_state_dict({k: v for k, v in ours.state_dict().items() if "lora_" in k}, strict=False)
    return theirs


def test_eight_bits_run_by_pefts_code_with_one_notice(base_folder: Path):
    with pytest.warns(FusedNotice) as said:
        model = attached(base_folder, "fused", load_in_8bit=True, load_in_4bit=False)
        assert learn(model.train(), tokens())[1]
        learn(model, tokens())
    told = [each for each in said if issubclass(each.category, FusedNotice)]
    assert len(told) == 1
    assert "Linear8bitLt" in str(told[0].message)


# What is kept


def test_a_saved_adapter_is_read_by_peft_on_a_plain_model(folder: Path, tmp_path: Path):
    model = attached(folder, "fused")
    run(model, tmp_path / "states")
    save_adapter(model, tmp_path / "adapter")
    with torch.no_grad():
        expected = model.eval()(input_ids=tokens(), use_cache=False).logits
        plain = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager")
        before = plain(input_ids=tokens(), use_cache=False).logits
        found = PeftModel.from_pretrained(plain, tmp_path / "adapter").eval()(input_ids=tokens()).logits
    assert torch.allclose(found, expected, rtol=1e-4, atol=1e-3)
    assert not torch.allclose(found, before, rtol=1e-2, atol=1e-2)


def test_a_run_that_is_resumed_ends_where_an_unbroken_one_does(base_folder: Path, tmp_path: Path):
    expected, whole = run(attached(base_folder, "fused"), tmp_path / "a", save_steps=2)
    run(attached(base_folder, "fused"), tmp_path / "b", save_steps=2, max_steps=2)
    found, resumed = run(attached(base_folder, "fused"), tmp_path / "b", save_steps=2)
    assert resumed.progress.losses[:2] == pytest.approx(whole.progress.losses[:2], abs=1)
    assert list(found) == list(expected)


@pytest.mark.parametrize("where", ["glu_gradients", "attend"])
def test_a_run_survives_memory_that_runs_out_once_with_the_same_result(
    base_folder: Path, tmp_path: Path, where: str, monkeypatch: pytest.MonkeyPatch
):
    expected, _ = run(attached(base_folder, "fused"), tmp_path / "a")
    model = attached(base_folder, "fused")
    spent = run_out(monkeypatch, where, 7)
    found, tuned = run(model, tmp_path / "b")
    assert spent.left < 0
    assert (tuned.progress.shrinks, tuned.micro_batch, tuned.accumulation) == (1, 1, 4)
    assert all(torch.allclose(found[name], expected[name], atol=1e-4) for name in found)


def test_nothing_is_asked_of_the_network(
    tokenizer: PreTrainedTokenizerFast,
    model: LlamaForCausalLM,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    save_model(model, tokenizer, tmp_path / "base")

    def refuse(*args, **kwargs):
        raise AssertionError("somebody opened a socket")

    monkeypatch.setattr(socket, "socket", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket, "create_connection", refuse)
    run(attached(tmp_path / "base", "fused"), tmp_path / "states", max_steps=1)
