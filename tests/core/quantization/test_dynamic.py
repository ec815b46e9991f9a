"""8-bit networks against arithmetic done by hand, and language models against their float selves and their files."""

import gc
import json
import warnings
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from core.data.chat import ChatTokenizer
from core.data.templates import template_for
from core.errors import ModelError, ResourceError
from core.evaluation.generation import TorchResponder
from core.quantization.byte_model import (
    FORMAT,
    INPUT_TOP,
    NARROW_TOP,
    WEIGHTS_FILE,
    ByteEmbedding,
    ByteLinear,
    Rows,
    input_top,
    round_rows,
)
from core.quantization.dynamic import (
    load_dynamic,
    quantize_dynamic,
    quantize_language_model,
    save_dynamic,
)
from tests.families.models import random_model
from tests.families.vocabularies import tokenizer_for

hub: Any = transformers


def drawn(*shape: int, seed: int = 0, scale: float = 1.0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * scale


def correlation(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(np.corrcoef(a.detach().numpy().ravel(), b.detach().numpy().ravel())[0, 1])


# One linear layer


@pytest.mark.parametrize("inputs", [1, 63, 127, 256])
def test_no_weight_moves_by_more_than_half_a_step_and_the_largest_not_at_all(inputs: int) -> None:
    weight = drawn(9, inputs, scale=0.3)
    weight[4] = 0
    levels, scales = round_rows(weight)
    assert levels.dtype == torch.int8
    assert int(levels.abs().max()) == 127
    restored = levels.double() * scales.double()[:, None]
    assert (abs(restored - weight) <= scales[:, None] * 0.5001).all()
    assert (levels[4] == 0).all()
    assert scales[4] == 0
    assert torch.equal(levels.abs().amax(1)[scales > 0], torch.full((8,), 127, dtype=torch.int8))


def by_hand(rows: Rows, inputs: np.ndarray, top: int) -> np.ndarray:
    """Round every input row by its own largest number and multiply integers."""
    flat = inputs.reshape(-1, inputs.shape[-1]).astype(np.float32)
    largest = np.maximum(np.abs(flat).max(1, keepdims=True), np.float32(1e-12))
    levels = np.rint((flat / largest).astype(np.float64) * top).astype(np.int64)
    product = levels @ rows.levels.numpy().astype(np.int64).T
    exact = product * rows.scales.numpy().astype(np.float64) * (largest.astype(np.float64) / top)
    return exact.reshape(*inputs.shape[:-1], -1)


@pytest.mark.parametrize("top", [INPUT_TOP, NARROW_TOP])
@pytest.mark.parametrize("sizes", [(63, 127), (256, 33), (1, 1), (1000, 63)])
def test_a_linear_layer_is_the_product_of_integers(top: int, sizes: tuple[int, int]) -> None:
    n_in, n_out = sizes
    rows = round_rows(drawn(n_out, n_in, scale=0.2))
    bias, inputs = drawn(n_out, seed=1), drawn(3, 5, n_in, seed=2, scale=4.0)
    found = ByteLinear(rows, bias, top)(inputs)
    wanted = by_hand(rows, inputs.numpy(), top) + bias.numpy()
    assert found.shape == (3, 5, n_out)
    assert np.abs(found.numpy() - wanted).max() <= 2e-6 * max(1.0, np.abs(wanted).max())


def test_the_largest_products_do_not_overflow() -> None:
    """All levels at their ends: what two products added in 16 bits could not hold."""
    rows = Rows(torch.full((4, 512), 127, dtype=torch.int8), torch.ones(4))
    layer = ByteLinear(rows, None)
    for sign in (1.0, -1.0):
        assert torch.allclose(layer(torch.full((2, 512), sign)), torch.full((2, 4), sign * 127 * 512))


def test_processors_that_would_overflow_get_fewer_levels(monkeypatch: pytest.MonkeyPatch) -> None:
    for known, top in (({"avx512_vnni": True}, 127), ({"avx512_vnni": False}, 63), ({}, 63)):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda known=known: known)
        assert input_top() == top
    monkeypatch.setattr(torch.backends.quantized, "engine", "qnnpack")
    assert input_top() == 127


def test_an_answer_does_not_depend_on_the_rows_beside_it() -> None:
    layer, inputs = ByteLinear(round_rows(drawn(31, 64)), drawn(31, seed=3)), drawn(6, 64, seed=4)
    inputs[3] *= 1000
    together = layer(inputs)
    assert torch.equal(together, torch.cat([layer(row[None]) for row in inputs]))
    assert torch.equal(layer(inputs.view(2, 3, 64)).view(6, 31), together)


def test_one_loud_row_costs_the_others_nothing_unlike_in_pytorchs_own_layer() -> None:
    from torch.ao.quantization import quantize_dynamic as stock

    exact, inputs = nn.Linear(64, 31), drawn(6, 64, seed=4)
    inputs[3] *= 1000
    quiet, (mine,) = inputs[:3], quantize_dynamic(nn.Sequential(exact)).children()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = stock(nn.Sequential(nn.Linear(64, 31)), {nn.Linear})
        theirs[0].set_weight_bias(
            torch.quantize_per_tensor(exact.weight.detach(), 0.001, 0, torch.qint8), exact.bias
        )
    assert correlation(mine(inputs)[:3], exact(quiet)) > 0.9995
    assert correlation(theirs(inputs)[:3], exact(quiet)) < 0.9


def test_zeros_give_the_bias_and_what_is_no_number_stays_none() -> None:
    layer = ByteLinear(round_rows(drawn(5, 8)), drawn(5, seed=1))
    assert torch.equal(layer(torch.zeros(2, 8)), layer.bias.expand(2, 5))
    for odd in (float("nan"), float("inf")):
        inputs = drawn(2, 8, seed=2)
        inputs[0, 3] = odd
        found = layer(inputs)
        assert not found[0].isfinite().any()
        assert found[1].isfinite().all()


def test_packed_integers_come_out_as_they_went_in() -> None:
    rows = round_rows(drawn(127, 63))
    again = ByteLinear(rows, None).rows()
    assert torch.equal(again.levels, rows.levels)
    assert torch.equal(again.scales, rows.scales)


@pytest.fixture
def _arm_engine() -> Iterator[None]:
    before = torch.backends.quantized.engine
    torch.backends.quantized.engine = "qnnpack"
    yield
    torch.backends.quantized.engine = before


@pytest.mark.usefixtures("_arm_engine")
def test_the_engine_of_arm_processors_computes_the_same_but_for_rounding() -> None:
    rows, inputs = round_rows(drawn(33, 128)), drawn(7, 128, seed=2)
    layer = ByteLinear(rows, drawn(33, seed=1))
    assert not layer.is_direct
    assert torch.equal(layer.rows().levels, rows.levels)
    wanted = by_hand(rows, inputs.numpy(), INPUT_TOP) + drawn(33, seed=1).numpy()
    assert np.abs(layer(inputs).numpy() - wanted).max() < 0.01 * np.abs(wanted).max()


# Recurrent layers, which are PyTorch's


def rounded_inputs(inputs: np.ndarray) -> tuple[np.ndarray, float]:
    """Return levels around zero and their step, as PyTorch takes them for a whole tensor in 7 bits."""
    low, high = min(float(inputs.min()), 0.0), max(float(inputs.max()), 0.0)
    step = (high - low) / 127
    zero = int(np.clip(np.rint(-low / step), 0, 127))
    levels = np.clip(np.rint(inputs.astype(np.float64) / step) + zero, 0, 127)
    return levels - zero, step


def product(inputs: np.ndarray, weight: torch.Tensor) -> np.ndarray:
    """Multiply with one step per matrix: levels from -128 to 127, the outermost at the largest weight."""
    whole = weight.detach().numpy().astype(np.float64)
    step = max(np.abs(whole).max() / 127.5, 1e-12)
    levels = np.clip(np.rint(whole / step), -128, 127)
    given, scale = rounded_inputs(inputs)
    return given @ levels.T * step * scale


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def lstm_by_hand(net: nn.LSTM, inputs: np.ndarray) -> np.ndarray:
    from_input = product(inputs, net.weight_ih_l0) + net.bias_ih_l0.detach().numpy()
    h = c = np.zeros((inputs.shape[1], net.hidden_size))
    said = []
    for step in from_input:
        gates = step + product(h, net.weight_hh_l0) if h.any() else step
        i, f, g, o = np.split(gates + net.bias_hh_l0.detach().numpy(), 4, axis=-1)
        c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
        h = sigmoid(o) * np.tanh(c)
        said.append(h)
    return np.stack(said)


def gru_by_hand(net: nn.GRU, inputs: np.ndarray) -> np.ndarray:
    from_input = product(inputs, net.weight_ih_l0) + net.bias_ih_l0.detach().numpy()
    h, said = np.zeros((inputs.shape[1], net.hidden_size)), []
    for step in from_input:
        from_state = (product(h, net.weight_hh_l0) if h.any() else 0) + net.bias_hh_l0.detach().numpy()
        (ri, zi, ni), (rh, zh, nh) = (
            np.split(np.broadcast_to(x, step.shape), 3, axis=-1) for x in (step, from_state)
        )
        r, z = sigmoid(ri + rh), sigmoid(zi + zh)
        h = (1 - z) * np.tanh(ni + r * nh) + z * h
        said.append(h)
    return np.stack(said)


class Recurrent(nn.Module):
    """A recurrent layer and what reads it."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer, self.head = layer, nn.Linear(48, 7)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.head(self.layer(inputs)[0])


@pytest.mark.parametrize(("kind", "by_hand"), [(nn.LSTM, lstm_by_hand), (nn.GRU, gru_by_hand)])
def test_recurrent_layers_compute_what_integers_by_hand_do(kind: Any, by_hand: Any) -> None:
    torch.manual_seed(1)
    exact, inputs = kind(32, 48), drawn(6, 3, 32, seed=5)
    wanted = by_hand(exact, inputs.numpy())
    quantized = quantize_dynamic(nn.Sequential(exact))[0]
    assert "quantized" in type(quantized).__module__
    # A level that falls on the other side of a tie moves a gate by a hundredth of a percent.
    assert np.abs(quantized(inputs)[0].numpy() - wanted).max() < 2e-4


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
@pytest.mark.parametrize("settings", [{}, {"num_layers": 2, "batch_first": True}])
def test_recurrent_networks_hardly_change(kind: Any, settings: dict[str, Any]) -> None:
    torch.manual_seed(2)
    net, inputs = Recurrent(kind(32, 48, **settings)), drawn(6, 4, 32, seed=6)
    exact = net(inputs)
    assert quantize_dynamic(net) is net
    assert isinstance(net.head, ByteLinear)
    assert not net.training
    assert correlation(net(inputs), exact) > 0.999


def test_other_layers_stay_and_a_single_layer_is_returned_anew() -> None:
    net = nn.Sequential(nn.Embedding(5, 8), nn.LayerNorm(8), nn.Linear(8, 3), nn.Conv1d(3, 2, 1))
    kept = [net[0], net[1], net[3]]
    quantize_dynamic(net)
    assert [net[0], net[1], net[3]] == kept
    alone = quantize_dynamic(nn.Linear(8, 3, bias=False))
    assert isinstance(alone, ByteLinear)
    assert alone.bias is None


def test_float_weights_are_gone_as_soon_as_they_are_packed() -> None:
    net = nn.Sequential(nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8)))
    kept = [weakref.ref(layer.weight) for layer in net[0]]
    gc.disable()
    try:
        quantize_dynamic(net)
        assert [ref() for ref in kept] == [None, None]
    finally:
        gc.enable()


def test_nobody_is_told_of_deprecations_that_this_room_knows() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        net = quantize_dynamic(nn.Sequential(nn.LSTM(4, 4), nn.Linear(4, 4)))
        net[1](drawn(2, 4))


# Language models

FAMILIES = ("llama-3.2", "gemma-3", "phi-3", "qwen2.5")
IDS = torch.tensor([[7, 11, 200, 31, 45, 9, 80, 123, 54, 19, 222, 13, 5, 99, 150, 33]])


def logits(model: Any, ids: torch.Tensor = IDS) -> torch.Tensor:
    with torch.inference_mode():
        return model(input_ids=ids).logits


def chat_for(family: str) -> ChatTokenizer:
    tokenizer = tokenizer_for(family)
    return ChatTokenizer(tokenizer, template_for(tokenizer, "chatml"))


class Quantized:
    """A model's logits before, after, and after a way through a file."""

    def __init__(self, family: str, folder: Path) -> None:
        self.model = random_model(family, tokenizer_for(family), hidden=128).eval()
        self.is_tied = self.model.config.tie_word_embeddings
        self.exact = logits(self.model)
        self.weights = sum(p.numel() for p in self.model.parameters())
        quantize_language_model(self.model)
        self.file = save_dynamic(self.model, folder)
        self.folder = folder


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Quantized]:
    return {family: Quantized(family, tmp_path_factory.mktemp("made")) for family in FAMILIES}


@pytest.fixture(params=FAMILIES)
def one(request: pytest.FixtureRequest, made: dict[str, Quantized]) -> Quantized:
    return made[request.param]


def test_logits_hardly_change(one: Quantized) -> None:
    # Gemma's tiny model has three times the layers of the others.
    assert correlation(logits(one.model), one.exact) > (0.998 if len(one.model.model.layers) > 2 else 0.999)
    assert not torch.equal(logits(one.model), one.exact)


def test_a_loaded_model_computes_the_saved_ones_logits_bit_for_bit(one: Quantized) -> None:
    again = load_dynamic(one.folder)
    assert torch.equal(logits(again), logits(one.model))
    assert not again.training
    assert {p.dtype for p in again.parameters()} == {torch.float32}
    kinds = {type(module) for module in again.modules()}
    assert ByteLinear in kinds
    assert not {nn.Linear, nn.Embedding} & kinds


def test_a_weight_takes_a_byte_and_a_shared_table_is_stored_once(one: Quantized) -> None:
    tensors = load_file(one.file)
    assert sum(t.numel() for t in tensors.values()) < one.weights * 1.05
    assert one.file.stat().st_size < one.weights * 1.2
    rows = one.model.config.vocab_size
    tables = [name for name, t in tensors.items() if t.dtype == torch.int8 and len(t) == rows]
    assert len(tables) == (1 if one.is_tied else 2)
    with safe_open(str(one.file), framework="pt") as file:
        assert file.metadata().get("tied") == ("lm_head" if one.is_tied else None)


def test_models_with_and_without_a_shared_table_were_tried(made: dict[str, Quantized]) -> None:
    assert {one.is_tied for one in made.values()} == {True, False}
    assert any(
        module.bias is not None
        for module in made["qwen2.5"].model.modules()
        if isinstance(module, ByteLinear)
    )


def test_what_is_generated_comes_from_the_file_as_from_memory_alone_or_in_a_batch(
    made: dict[str, Quantized],
) -> None:
    one, chat = made["llama-3.2"], chat_for("llama-3.2")
    asked = [
        [{"role": "user", "content": text}] for text in ("What is 3 + 4?", "Say it again, slowly.", "no")
    ]
    answers = {
        (where, size): [
            a.text for a in TorchResponder(model, chat, size).answer(asked, 12, lambda a, b: None)
        ]
        for where, model in (("memory", one.model), ("file", load_dynamic(one.folder)))
        for size in (1, 3)
    }
    assert len({tuple(said) for said in answers.values()}) == 1
    assert any(answers["file", 1])


def test_likelihoods_are_those_of_the_model_in_memory(made: dict[str, Quantized]) -> None:
    one, chat = made["gemma-3"], chat_for("gemma-3")
    asked, right = [[{"role": "user", "content": "1 + 1?"}]], {"role": "assistant", "content": "2"}
    (mine,), (theirs,) = (
        TorchResponder(model, chat, 1).score(asked, [right], lambda a, b: None)
        for model in (one.model, load_dynamic(one.folder))
    )
    assert mine == theirs


# Files that cannot be loaded


@pytest.fixture
def copy(made: dict[str, Quantized], tmp_path: Path) -> Path:
    for file in made["llama-3.2"].folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    return tmp_path


def rewrite(folder: Path, change: Any, header: dict[str, str] | None = None) -> None:
    with safe_open(str(folder / WEIGHTS_FILE), framework="pt") as file:
        told = dict(file.metadata())
    tensors = load_file(folder / WEIGHTS_FILE)
    change(tensors)
    save_file(tensors, folder / WEIGHTS_FILE, metadata=told | (header or {}))


NORM, PROJECTION = "model.norm.weight", "model.layers.0.self_attn.q_proj"


def test_each_unfit_file_is_refused_in_one_sentence(copy: Path) -> None:
    whole = {file.name: file.read_bytes() for file in copy.iterdir()}

    def refused(match: str) -> None:
        with pytest.raises(ModelError, match=match) as caught:
            load_dynamic(copy)
        assert caught.value.where == str(copy)
        assert "quantization.pytorch" in caught.value.fix
        for name, content in whole.items():
            (copy / name).write_bytes(content)

    for name in ("config.json", WEIGHTS_FILE):
        (copy / name).unlink()
        refused(f"there is no {name}")
    (copy / WEIGHTS_FILE).write_bytes(whole[WEIGHTS_FILE][:-100])
    refused("cannot load the 8-bit model")
    (copy / WEIGHTS_FILE).write_bytes(b"")
    refused("cannot load the 8-bit model")
    save_file({"a": torch.zeros(2)}, copy / WEIGHTS_FILE, metadata={"format": "pt"})
    refused("does not hold 8-bit rows of version 1")
    rewrite(copy, lambda t: None, {"version": "2"})
    refused("does not hold 8-bit rows of version 1")
    rewrite(copy, lambda t: t.pop(NORM))
    refused(f"lacks 1 tensors of the model, such as {NORM}")
    rewrite(copy, lambda t: t.pop(f"{PROJECTION}.scales"))
    refused("cannot load the 8-bit model")
    rewrite(copy, lambda t: t.update(other=torch.zeros(1)))
    refused("holds tensors that the model has not, such as other")
    rewrite(copy, lambda t: t.update({NORM: torch.zeros(3)}))
    refused("does not have the shape")
    rewrite(copy, lambda t: t.update({f"{PROJECTION}.scales": torch.ones(3)}))
    refused("3 steps for")
    rewrite(copy, lambda t: t.update({f"{PROJECTION}.levels": t[f"{PROJECTION}.levels"].float()}))
    refused("are not 8-bit integers")
    config = json.loads(whole["config.json"])
    (copy / "config.json").write_text(json.dumps(config | {"hidden_size": 64}), encoding="utf-8")
    refused("does not fit the model that config.json describes")
    (copy / "config.json").write_text("{", encoding="utf-8")
    refused("cannot load the 8-bit model")
    load_dynamic(copy)


def test_a_processor_without_an_engine_is_refused(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Without:
        engine, supported_engines = "none", ("none",)

    monkeypatch.setattr(torch.backends, "quantized", Without)
    for work in (lambda: load_dynamic(copy), lambda: quantize_dynamic(nn.Linear(2, 2))):
        with pytest.raises(ResourceError, match="no engine for 8-bit integers") as caught:
            work()
        assert caught.value.where == "quantization.pytorch"


def test_transformers_does_not_take_the_folder_for_a_model_of_its_own(copy: Path) -> None:
    with pytest.raises(OSError, match="model.safetensors"):
        hub.AutoModelForCausalLM.from_pretrained(copy)


def test_recurrent_layers_are_not_saved(made: dict[str, Quantized], tmp_path: Path) -> None:
    model = random_model("llama-3.2", tokenizer_for("llama-3.2"))
    model.model.more = nn.LSTM(4, 4)
    quantize_language_model(model)
    with pytest.raises(ModelError, match="LSTM and GRU layers cannot be saved"):
        save_dynamic(model, tmp_path)
    assert not list(tmp_path.iterdir())


def test_an_embedding_of_another_kind_is_left_alone() -> None:
    class Doubled(nn.Embedding):
        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            return 2 * super().forward(ids)

    model = random_model("phi-3", tokenizer_for("phi-3"))
    own = Doubled(*model.get_input_embeddings().weight.shape)
    model.set_input_embeddings(own)
    quantize_language_model(model)
    assert model.get_input_embeddings() is own
    assert not any(isinstance(module, ByteEmbedding) for module in model.modules())


def test_the_header_names_the_layout() -> None:
    assert FORMAT["version"] == "1"
    assert "int8" in FORMAT["layout"]
