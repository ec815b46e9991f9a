"""Training that rounds: the right weights forward, straight-through gradients backward, and a merge that changes nothing."""

import copy
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from torch import nn
from torch.nn.functional import linear
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from core.data.chat import IGNORE_INDEX, Encoded
from core.errors import ConfigError, ModelError
from core.models.adapters import attach
from core.models.config import LoraConfig, ModelConfig
from core.models.loading import load_folder, load_model
from core.models.merging import adapted_layers, exact_weight, fold
from core.quantization.aware import linear_layers, prepare
from core.quantization.aware_limits import check_aware
from core.quantization.grids import snap
from core.sinks import ListSink
from core.training.config import TrainingConfig
from core.training.rows import SftInputs
from core.training.sft import finetune, save_adapter, validation_loss
from tests.core.training import families

KINDS = ("Q4_0", "Q8_0", "int4", "int8")
IDS = torch.arange(6, 30)[None]
SOME = ("q_proj", "up_proj")


def adapted(base: Path, kind: str | None = None, **changes) -> PeftModel:
    """Attach an adapter whose B is not zero, and let it round."""
    given = {"r": 4, "use_gradient_checkpointing": False, "target_modules": SOME} | changes
    model = attach(load_folder(base, given.pop("dtype", None)), LoraConfig(**given))
    stir(model)
    if kind:
        prepare(model, kind)
    return model


def stir(model: PeftModel, scale: float = 0.1) -> None:
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            if "lora_" in name:
                tensor.copy_(torch.randn(tensor.shape, generator=draw) * scale)


def rounded_copy(model: PeftModel, kind: str) -> nn.Module:
    """Build, from an adapted model that does not round, the plain model that it should be when it does."""
    for layer in adapted_layers(model):
        layer.get_base_layer().weight.data = exact_weight(layer)
    plain = copy.deepcopy(model).unload()
    return snapped(plain, kind)


def snapped(plain, kind: str):
    """Put every matrix of a plain model on the grid on which files of a type hold it."""
    embedding, head = plain.get_input_embeddings(), plain.get_output_embeddings()
    shared = embedding.weight is head.weight
    for module in plain.modules():
        if isinstance(module, nn.Linear) and module is not head:
            module.weight.data = snap(module.weight, kind)
    if kind == "Q4_0" and not shared:
        embedding.weight.data = snap(embedding.weight, "Q4_0")
    elif kind != "Q4_0":
        table = "Q8_0" if kind == "Q8_0" else "int8"
        embedding.weight.data = snap(embedding.weight, table)
        head.weight = embedding.weight if shared else nn.Parameter(snap(head.weight, table))
    return plain


def logits(model: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(input_ids=IDS).logits.float()


# Forward


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rslora", [False, True])
def test_every_layer_computes_with_the_rounded_weight(base_folder: Path, kind, rslora):
    wanted = rounded_copy(adapted(base_folder, use_rslora=rslora), kind)
    model = adapted(base_folder, kind, use_rslora=rslora)
    assert torch.equal(logits(model), logits(wanted))
    assert not torch.equal(logits(model), logits(adapted(base_folder, use_rslora=rslora)))
    assert torch.equal(model.train()(input_ids=IDS).logits, logits(wanted))


@pytest.mark.parametrize("kind", ["Q4_0", "int4"])
@pytest.mark.parametrize("family", ["llama", "phi3", "gemma3", "qwen2"])
def test_fused_biased_and_wide_projections_of_the_families_are_rounded_as_well(family, kind):
    def made() -> PeftModel:
        settings = LoraConfig(r=4, use_gradient_checkpointing=False, target_modules="all-linear")
        model = attach(families.build(family), settings)
        stir(model)
        return model

    model = made()
    count = prepare(model, kind)
    per_block = 4 if family == "phi3" else 7
    # down_proj has 48 inputs here, which GGUF leaves in 16 bits.
    assert count == 2 * (per_block - (kind == "Q4_0"))
    found, wanted = logits(model), logits(rounded_copy(made(), kind))
    # A layer that is left alone adds its update as PEFT does, beside the product.
    assert torch.equal(found, wanted) if kind == "int4" else torch.allclose(found, wanted, atol=1e-4)
    assert not torch.allclose(found, logits(made()), atol=1e-2)


def test_what_a_q4_0_file_holds_in_finer_types_is_not_rounded(base_folder: Path):
    """Norms, and the one table of a model whose head is its embedding."""
    before = {n: p.clone() for n, p in load_folder(base_folder).named_parameters()}
    model = adapted(base_folder, "Q4_0")
    after = {n.replace(".base_layer", ""): p for n, p in model.get_base_model().named_parameters()}
    changed = {n for n, p in before.items() if not torch.equal(p, after[n])}
    # Adapted layers keep their weight: what is rounded is its sum with the update.
    assert changed == {n for n in before if n.endswith("_proj.weight") and not any(s in n for s in SOME)}
    assert model.get_base_model().get_output_embeddings() not in list(linear_layers(model))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("tied", [False, True])
def test_embedding_and_head_are_rounded_where_files_hold_them_on_a_grid(kind, tied):
    def made() -> PeftModel:
        base = LlamaForCausalLM(LlamaConfig(**families.SIZES, tie_word_embeddings=tied))
        return attach(base, LoraConfig(r=4, use_gradient_checkpointing=False, target_modules=SOME))

    torch.manual_seed(0)
    plain = made()
    model = copy.deepcopy(plain)
    prepare(model, kind)
    found, wanted = model.get_base_model(), rounded_copy(plain, kind)
    for one, other in (("get_input_embeddings",) * 2, ("get_output_embeddings",) * 2):
        assert torch.equal(getattr(found, one)().weight, getattr(wanted, other)().weight)
    assert (found.get_input_embeddings().weight is found.get_output_embeddings().weight) == tied


def with_head(base: PreTrainedModel) -> PeftModel:
    names = ("q_proj", "lm_head")
    model = attach(base, LoraConfig(r=4, use_gradient_checkpointing=False, target_modules=names))
    stir(model)
    return model


@pytest.mark.parametrize(
    ("kind", "table"), [("Q4_0", None), ("Q8_0", "Q8_0"), ("int4", "int8"), ("int8", "int8")]
)
def test_a_head_with_an_adapter_computes_with_the_weight_that_files_hold(kind, table):
    model = with_head(LlamaForCausalLM(LlamaConfig(**families.SIZES, tie_word_embeddings=False)))
    head = model.get_base_model().get_output_embeddings()
    before = head.get_base_layer().weight.clone()
    prepare(model, kind)
    assert torch.equal(head.get_base_layer().weight, before)
    x = torch.randn(2, 32)
    if table is None:  # Q4_0 files hold it in Q6_K, which training does not round to.
        assert torch.equal(head(x), type(head).forward(head, x))
        return
    update = head.lora_B["default"].weight @ head.lora_A["default"].weight
    wanted = snap(before + head.scaling["default"] * update, table)
    assert torch.allclose(head(x), linear(x, wanted), atol=1e-5)
    assert not torch.allclose(head(x), type(head).forward(head, x), atol=1e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_with_an_adapter_on_the_head_the_merged_model_is_the_one_that_was_trained(tmp_path: Path, kind):
    torch.manual_seed(0)
    plain = LlamaForCausalLM(LlamaConfig(**families.SIZES, tie_word_embeddings=False))
    plain.save_pretrained(tmp_path / "base")
    model = with_head(load_folder(tmp_path / "base"))
    prepare(model, kind)
    done = trained(model, tmp_path / "checkpoints")
    save_adapter(model, tmp_path / "lora")
    merged, errors = fold(
        load_folder(tmp_path / "base"), tmp_path / "lora", IDS, lambda again: prepare(again, kind)
    )
    # Q4_0 leaves the head its adapter beside it, which is added up in another order.
    assert errors.logits == 0.0 if kind != "Q4_0" else errors.logits < 1e-4
    assert torch.allclose(logits(merged), logits(model), atol=0 if kind != "Q4_0" else 1e-4)
    assert validation_loss(merged, rows(), 4) == pytest.approx(
        dict(done.progress.eval_losses)[done.kept_step], abs=0 if kind != "Q4_0" else 1e-5
    )
    table = {"Q4_0": None, "Q8_0": "Q8_0"}.get(kind, "int8")
    head = merged.get_output_embeddings().weight
    on_grid = [torch.allclose(snap(head, each), head, rtol=1e-6, atol=0) for each in ("Q4_0", "Q8_0", "int8")]
    assert on_grid == [False, table == "Q8_0", table == "int8"]


@pytest.mark.parametrize("checkpointed", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_multiplies_in_16_bits_with_weights_rounded_in_32(base_folder: Path, dtype, checkpointed):
    model = adapted(base_folder, "Q4_0", use_gradient_checkpointing=checkpointed)
    layer = next(adapted_layers(model))
    x = torch.randn(2, 5, 32)
    with torch.autocast("cpu", dtype=dtype):
        made = layer(x)
    weight = snap(exact_weight(layer), "Q4_0").to(dtype)
    assert made.dtype == dtype
    assert torch.equal(made, linear(x.to(dtype), weight))
    with torch.autocast("cpu", dtype=dtype):
        loss = model.train()(input_ids=IDS, labels=IDS).loss
    loss.backward()
    reached = [p.grad for p in model.parameters() if p.requires_grad]
    assert all(grad is not None and grad.dtype == torch.float32 and grad.abs().sum() > 0 for grad in reached)


def test_without_its_adapter_the_base_is_rounded_alone(base_folder: Path):
    model = adapted(base_folder, "Q4_0")
    with model.disable_adapter():
        found = logits(model)
    assert torch.equal(found, logits(snapped(load_folder(base_folder), "Q4_0")))


# Backward


@pytest.mark.parametrize("bias", ["none", "all"])
@pytest.mark.parametrize("kind", KINDS)
def test_gradients_are_those_of_autograd_with_rounding_taken_for_the_identity(kind, bias):
    model = attach(
        families.build("qwen2"),
        LoraConfig(r=4, use_gradient_checkpointing=False, target_modules=SOME, bias=bias, use_rslora=True),
    )
    stir(model)
    prepare(model, kind)
    for layer in adapted_layers(model):
        layer.double()
        x = torch.randn(3, 5, 32, dtype=torch.float64, requires_grad=True)
        dy = torch.randn(3, 5, layer.out_features, dtype=torch.float64)
        held = [layer.lora_A["default"].weight, layer.lora_B["default"].weight]
        own = layer.get_base_layer().bias
        held += [own] if own is not None and own.requires_grad else []
        found = torch.autograd.grad(layer(x), [x, *held], dy)
        whole = layer.get_base_layer().weight + layer.scaling["default"] * (held[1] @ held[0])
        through = whole + (snap(exact_weight(layer), kind).double() - whole).detach()
        wanted = torch.autograd.grad(linear(x, through, own), [x, *held], dy)
        for one, other in zip(found, wanted, strict=True):
            assert torch.allclose(one, other, rtol=1e-5, atol=1e-7)


def test_checkpointing_gives_the_same_gradients(base_folder: Path):
    def gradients(**changes) -> list[torch.Tensor]:
        model = adapted(base_folder, "Q4_0", **changes).train()
        model(input_ids=IDS, labels=IDS).loss.backward()
        return [p.grad for p in model.parameters() if p.grad is not None]

    plain, checkpointed = gradients(), gradients(use_gradient_checkpointing=True)
    assert len(plain) == 8
    assert all(torch.equal(one, two) for one, two in zip(plain, checkpointed, strict=True))


def test_no_rounded_weight_is_kept_for_the_backward_pass(base_folder: Path):
    model = adapted(base_folder, "Q4_0").train()
    layer = next(adapted_layers(model))
    kept: list[torch.Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda t: t):
        layer(torch.randn(2, 3, 32, requires_grad=True))
    matrices = [t for t in kept if t.shape == (32, 32)]
    assert [t.data_ptr() for t in matrices] == [layer.get_base_layer().weight.data_ptr()]


# Train


def rows(seed: int = 3) -> SftInputs:
    draw = torch.Generator().manual_seed(seed)
    made = []
    for number in range(18):
        ids = torch.randint(6, 40, (6 + number % 5,), generator=draw).tolist()
        made.append(Encoded(ids, [IGNORE_INDEX] * 3 + ids[3:]))
    return SftInputs(made[:14], made[14:], pad_id=1, window=24)


FAST = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 1, "optim": "adamw_torch",
        "learning_rate": 1e-2, "eval_steps": 2, "save_steps": 3, "warmup_steps": 2, "max_steps": 8}  # fmt: skip


class Killed(Exception):
    pass


def trained(model: PeftModel, folder: Path, *, die: bool = False, **changes):
    def saved() -> None:
        if die:
            raise Killed

    return finetune(
        model, rows(), TrainingConfig(**{**FAST, **changes}), checkpoints=folder, fingerprint="f", sink=ListSink(),
        on_checkpoint=saved, on_start=lambda progress: None,
    )  # fmt: skip


def tensors(model: PeftModel) -> list[torch.Tensor]:
    return [p.detach() for p in model.parameters() if p.requires_grad]


@pytest.mark.parametrize("settings", [{}, {"bf16": True}, {"fp16": True}], ids=["fp32", "bf16", "fp16"])
def test_a_killed_training_resumes_bit_for_bit(base_folder: Path, tmp_path: Path, settings):
    whole, first, second = (adapted(base_folder, "Q4_0", lora_alpha=32) for _ in range(3))
    done = trained(whole, tmp_path / "a", **settings)
    with pytest.raises(Killed):
        trained(first, tmp_path / "b", die=True, **settings)
    resumed = trained(second, tmp_path / "b", **settings)
    assert resumed.progress == done.progress
    assert all(torch.equal(one, two) for one, two in zip(tensors(whole), tensors(second), strict=True))
    assert done.progress.losses[-1] < done.progress.losses[0]


def test_accumulated_micro_batches_give_the_same_training(base_folder: Path, tmp_path: Path):
    one, four = (adapted(base_folder, "Q4_0") for _ in range(2))
    first = trained(one, tmp_path / "a")
    second = trained(four, tmp_path / "b", per_device_train_batch_size=1, gradient_accumulation_steps=4)
    # A weight near the middle between two levels may fall to either side after a step.
    assert second.progress.losses == pytest.approx(first.progress.losses, abs=5e-3)


# Convert


@pytest.mark.parametrize("kind", KINDS)
def test_the_merged_model_is_the_one_that_was_trained(base_folder: Path, tmp_path: Path, kind):
    model = adapted(base_folder, kind)
    done = trained(model, tmp_path / "checkpoints")
    save_adapter(model, tmp_path / "lora")
    merged, errors = fold(load_folder(base_folder), tmp_path / "lora", IDS, lambda m: prepare(m, kind))
    assert torch.equal(logits(merged), logits(model))
    assert errors.logits == 0.0
    assert errors.rounding == 0.0
    evals = dict(done.progress.eval_losses)
    assert validation_loss(merged, rows(), 4) == evals[done.kept_step]
    for name, layer in merged.named_modules():
        if isinstance(layer, nn.Linear) and name != "lm_head":
            assert torch.allclose(snap(layer.weight, kind), layer.weight, rtol=1e-6, atol=0), name
    # Without the rounding the same adapter gives another model, and not one of the grid.
    other, _ = fold(load_folder(base_folder), tmp_path / "lora", IDS)
    assert not torch.equal(logits(other), logits(merged))


def test_in_bfloat16_the_merged_weight_is_the_rounded_one_stored_in_16_bits(
    base_folder: Path, tmp_path: Path
):
    model = adapted(base_folder, "Q4_0", dtype=torch.bfloat16)
    save_adapter(model, tmp_path / "lora")
    merged, errors = fold(
        load_folder(base_folder, torch.bfloat16), tmp_path / "lora", IDS, lambda m: prepare(m, "Q4_0")
    )
    assert torch.equal(logits(merged), logits(model))
    for layer in adapted_layers(adapted(base_folder, "Q4_0", dtype=torch.bfloat16)):
        assert snap(exact_weight(layer), "Q4_0").equal(exact_weight(layer))
    assert errors.rounding <= 2**-8


# Refusals


@pytest.mark.parametrize(
    ("changes", "where"),
    [({"use_dora": True}, "lora.use_dora"), ({"lora_dropout": 0.1}, "lora.lora_dropout")],
)
def test_adapters_without_one_rounded_weight_are_refused(base_folder: Path, changes, where):
    with pytest.raises(ConfigError, match=where):
        adapted(base_folder, "Q4_0", **changes)


@pytest.mark.parametrize(
    ("held", "key"),
    [
        ({"load_in_4bit": True}, "model.load_in_4bit"),
        ({"load_in_4bit": False, "load_in_8bit": True}, "model.load_in_8bit"),
        ({"load_in_8bit": True}, "model.load_in_8bit"),
    ],
)
def test_a_base_that_bitsandbytes_rounded_is_refused_by_the_key_that_is_true(base_folder: Path, held, key):
    with pytest.raises(ConfigError) as stated:
        check_aware("Q4_0", ModelConfig(name="m", **held), LoraConfig(r=4, lora_dropout=0.0))
    base = load_model(ModelConfig(name=str(base_folder), **held), trainable=True)
    model = attach(base, LoraConfig(r=4, use_gradient_checkpointing=False))
    with pytest.raises(ConfigError, match="load_in_4bit: false and load_in_8bit: false") as seen:
        prepare(model, "Q4_0")
    assert seen.value.where == stated.value.where == key
    assert str(seen.value) == str(stated.value)
    assert f"held in {key[-4]} bits" in seen.value.what


@pytest.mark.parametrize("engine", ["unsloth", "fused"])
def test_another_engine_is_refused(base_folder: Path, engine: str):
    model = adapted(base_folder)
    model.get_base_model().loaded_by_engine = engine
    with pytest.raises(ConfigError, match="model.framework"):
        prepare(model, "Q4_0")


def test_a_model_without_a_layer_to_round_is_refused():
    shape = {**families.SIZES, "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 1}
    model = attach(LlamaForCausalLM(LlamaConfig(**shape)), LoraConfig(r=4, use_gradient_checkpointing=False))
    with pytest.raises(ModelError, match="no layer"):
        prepare(model, "Q4_0")
    assert prepare(model, "int4") == 7
