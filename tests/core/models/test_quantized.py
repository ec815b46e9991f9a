"""4 and 8 bits: how close they are, that the base stays what it is, and that every adapter learns, on the CPU."""

import hashlib
import logging
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from core.models.adapters import attach
from core.models.config import LoraConfig, ModelConfig
from core.models.loading import load_folder, load_model
from core.models.quantized import base_format, count_weights, quantization_of

IDS = torch.arange(6, 30)[None]
LORA = LoraConfig(r=4, use_gradient_checkpointing=False)
BLOCK = 64

# NormalFloat: quantiles of N(0, 1), scaled to [-1, 1] (arXiv:2305.14314, appendix E).
NF4 = (-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635,
       -0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725,
       0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941,
       0.7229568362236023, 1.0)  # fmt: skip
# 1 sign, 2 exponent and 1 mantissa bit over its largest value of 12: 0, 1/16 (below normal), 4, 6, 8, 12, 2, 3.
FP4 = tuple(sorted({sign * v / 12 for sign in (1, -1) for v in (0, 0.0625, 2, 3, 4, 6, 8, 12)}))

FORMATS = {
    "nf4+double": {},
    "nf4": {"bnb_4bit_use_double_quant": False},
    "fp4+double": {"bnb_4bit_quant_type": "fp4"},
    "fp4": {"bnb_4bit_quant_type": "fp4", "bnb_4bit_use_double_quant": False},
    "int8": {"load_in_8bit": True},
}


@pytest.fixture(scope="module")
def wide_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose layers are wide enough for a quantization error to average out."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64, hidden_size=256, intermediate_size=512, num_hidden_layers=1, num_attention_heads=4,
        num_key_value_heads=4, max_position_embeddings=64, tie_word_embeddings=False,
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("wide")
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def held(folder: Path, **settings):
    return load_model(ModelConfig(name=str(folder), **settings), trainable=True)


def digest(model) -> dict[str, str]:
    """Digest the stored bytes of everything that is frozen."""
    return {
        name: hashlib.sha256(tensor.detach().contiguous().view(torch.uint8).numpy().tobytes()).hexdigest()
        for name, tensor in model.named_parameters()
        if not tensor.requires_grad
    }


@pytest.mark.parametrize(("name", "settings"), FORMATS.items())
def test_the_format_is_told_by_the_layers_themselves(base_folder: Path, name: str, settings):
    model = held(base_folder, **settings)
    assert base_format(model) == name
    assert base_format(attach(model, LORA)) == name
    assert type(model.lm_head) is torch.nn.Linear  # the head keeps full precision


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_an_unquantized_base_is_told_by_its_dtype(base_folder: Path, dtype: str):
    assert base_format(held(base_folder, load_in_4bit=False, dtype=dtype)) == dtype


def test_llm_int8_keeps_outliers_apart_beyond_six(base_folder: Path):
    layer = held(base_folder, load_in_8bit=True).model.layers[0].self_attn.q_proj
    assert layer.state.threshold == 6.0
    assert quantization_of(ModelConfig(name="x"), torch.float16).bnb_4bit_compute_dtype == torch.float16
    assert quantization_of(ModelConfig(name="x", load_in_4bit=False), torch.float32) is None


def test_an_8_bit_layer_points_where_the_original_does(wide_folder: Path):
    full, small = load_folder(wide_folder), held(wide_folder, load_in_8bit=True)
    torch.manual_seed(1)
    inputs = torch.randn(32, 256)
    inputs[:, 7] *= 20  # an outlier column, beyond the threshold
    for name in ("q_proj", "o_proj"):
        original = getattr(full.model.layers[0].self_attn, name)
        quantized = getattr(small.model.layers[0].self_attn, name)
        with torch.no_grad():
            cos = torch.cosine_similarity(
                original(inputs).flatten(), quantized(inputs).float().flatten(), dim=0
            )
        assert cos > 0.999


@pytest.mark.parametrize(("kind", "levels"), [("nf4", NF4), ("fp4", FP4)])
def test_4_bit_weights_are_the_nearest_of_16_levels_times_their_blocks_largest(
    wide_folder: Path, kind, levels
):
    from bitsandbytes.functional import dequantize_4bit

    original = load_folder(wide_folder).model.layers[0].mlp.up_proj.weight.detach()
    layer = (
        held(wide_folder, bnb_4bit_quant_type=kind, bnb_4bit_use_double_quant=False)
        .model.layers[0]
        .mlp.up_proj
    )
    assert layer.weight.dtype == torch.uint8
    assert layer.weight.numel() * 2 == original.numel()
    got = dequantize_4bit(layer.weight.data, layer.weight.quant_state).float().reshape(-1, BLOCK)
    blocks = original.float().reshape(-1, BLOCK)
    top = blocks.abs().amax(dim=1, keepdim=True)
    table = torch.tensor(levels)
    assert len(table) == (16 if kind == "nf4" else 15)  # fp4 has a zero of either sign
    distance = (blocks / top)[..., None] - table
    best = distance.abs().amin(dim=-1) * top
    # Every number lies on a level, no farther from its original than the nearest level, up to rounding at a tie.
    assert torch.all(((got / top)[..., None] - table).abs().amin(dim=-1) < 1e-6)
    assert torch.all((got - blocks).abs() <= best + 2e-3 * top)
    assert torch.all((got - blocks).abs() <= top * float(table.diff().max()) / 2 * 1.01)


@pytest.mark.parametrize(("double", "limit"), [(False, 1e-6), (True, 0.02)])
def test_double_quantization_touches_only_the_scales(wide_folder: Path, double: bool, limit: float):
    from bitsandbytes.functional import dequantize_4bit

    plain = held(wide_folder, bnb_4bit_use_double_quant=False).model.layers[0].mlp.up_proj.weight
    other = held(wide_folder, bnb_4bit_use_double_quant=double).model.layers[0].mlp.up_proj.weight
    assert torch.equal(plain.data, other.data)
    one, two = (dequantize_4bit(w.data, w.quant_state).reshape(-1, BLOCK) for w in (plain, other))
    ratio = two.abs().amax(dim=1) / one.abs().amax(dim=1)
    assert (ratio - 1).abs().max() <= limit
    assert double is bool((ratio != 1).any())


@pytest.mark.parametrize(("name", "settings"), FORMATS.items())
@pytest.mark.parametrize("checkpointing", [False, True])
def test_adapters_learn_and_the_base_keeps_its_bytes(
    base_folder: Path, name: str, settings, checkpointing: bool
):
    lora = LORA.model_copy(update={"use_gradient_checkpointing": checkpointing})
    model = attach(held(base_folder, **settings), lora)
    trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
    assert all("lora_A" in n or "lora_B" in n for n in trained)
    assert len(trained) == 2 * 2 * 7  # A and B of seven layers in two blocks
    assert {p.dtype for p in trained.values()} == {torch.float32}
    before, optimizer = digest(model), torch.optim.SGD(trained.values(), lr=0.5)
    losses = []
    for step in range(4):
        loss = model.train()(input_ids=IDS, labels=IDS).loss
        optimizer.zero_grad()
        loss.backward()
        losses.append(float(loss.detach()))
        grads = {n: float(p.grad.abs().sum()) for n, p in trained.items()}
        # B is zero at first, so nothing reaches A; from the second step on everything learns.
        silent = [n for n, size in grads.items() if size == 0 and ("lora_B" in n or step)]
        assert not silent, (name, step, silent)
        optimizer.step()
        with torch.no_grad():  # a look at the validation loss in between must not change training
            model.eval()(input_ids=IDS)
    assert losses[-1] < losses[0]
    assert digest(model) == before


def test_a_quantized_model_agrees_with_the_original(base_folder: Path):
    with torch.no_grad():
        full = load_folder(base_folder)(IDS).logits.flatten()
        for name, settings in FORMATS.items():
            small = held(base_folder, **settings)(IDS).logits.float().flatten()
            assert torch.corrcoef(torch.stack([full, small]))[0, 1] > (0.999 if name == "int8" else 0.97)


def test_the_note_that_int8_repeats_on_every_call_is_dropped_and_no_other(base_folder: Path, caplog):
    model = held(base_folder, load_in_8bit=True)
    logger = logging.getLogger("bitsandbytes.autograd._functions")
    with caplog.at_level(logging.WARNING), torch.no_grad():
        model(IDS)
        # What runs where there are tensor cores logs for each multiplication.
        logger.warning("MatMul8bitLt: inputs will be cast from %s to float16 during quantization", "float32")
        logger.warning("something else")
    assert [record.message for record in caplog.records if "bitsandbytes" in record.name] == [
        "something else"
    ]
    held(base_folder, load_in_8bit=True)
    assert len(logger.filters) == 1


def test_packed_weights_are_counted_as_what_they_stand_for(wide_folder: Path):
    whole = sum(p.numel() for p in load_folder(wide_folder).parameters())
    packed = load_model(ModelConfig(name=str(wide_folder), max_seq_length=256), trainable=True)
    assert (
        sum(count_weights(p) for p in packed.parameters())
        == whole
        > sum(p.numel() for p in packed.parameters())
    )
