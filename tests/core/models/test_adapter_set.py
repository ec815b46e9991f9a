"""Several adapters on one base: each answers as if it were alone, and the base comes back."""

from pathlib import Path

import pytest
import torch
from peft import PeftModel

from core.errors import ModelError
from core.models.adapter_set import AdapterSet
from core.models.config import ModelConfig
from core.models.loading import load_folder, load_model
from core.models.merging import fold
from tests.core.models.test_merging import IDS, logits, trained
from tests.families import build

KINDS = {
    "plain": {},
    "narrow": {"target_modules": ("q_proj", "down_proj"), "lora_alpha": 64},
    "by length": {"use_dora": True},
    "the.dotted one": {"use_rslora": True, "random_state": 9},
}


@pytest.fixture
def adapters(base_folder: Path, tmp_path: Path) -> dict[str, Path]:
    return {
        name: trained(base_folder, tmp_path / str(i), **kind) for i, (name, kind) in enumerate(KINDS.items())
    }


def test_each_adapter_answers_as_if_it_were_alone_and_the_base_comes_back(base_folder: Path, adapters):
    base = logits(load_folder(base_folder))
    alone = {n: logits(PeftModel.from_pretrained(load_folder(base_folder), f)) for n, f in adapters.items()}
    assert len({float(each.sum()) for each in [base, *alone.values()]}) == 5
    together = AdapterSet.load(load_folder(base_folder), adapters)
    assert together.names == tuple(KINDS)
    assert torch.equal(logits(together.model), base)
    for name in [*KINDS, None, *reversed(KINDS), "plain", "plain", None, None, "narrow"]:
        wanted = alone[name] if name else base
        assert torch.equal(logits(together.use(name)), wanted), name


def test_generated_text_is_that_of_the_adapter_in_use(base_folder: Path, adapters):
    def answer(model) -> list[int]:
        return model.generate(input_ids=IDS, max_new_tokens=8, do_sample=False)[0, IDS.shape[1] :].tolist()

    together = AdapterSet.load(load_folder(base_folder), adapters)
    for name, folder in adapters.items():
        alone = PeftModel.from_pretrained(load_folder(base_folder), folder).eval()
        assert answer(together.use(name)) == answer(alone)
    assert answer(together.use(None)) == answer(load_folder(base_folder))


def test_adapters_switch_on_a_4_bit_base_too(base_folder: Path, adapters):
    def base():
        return load_model(ModelConfig(name=str(base_folder)), trainable=True).eval()

    together = AdapterSet.load(base(), adapters)
    assert torch.equal(
        logits(together.use("narrow")), logits(PeftModel.from_pretrained(base(), adapters["narrow"]))
    )
    assert torch.equal(logits(together.use(None)), logits(base()))


def test_nothing_is_trained_in_a_set(base_folder: Path, adapters):
    together = AdapterSet.load(load_folder(base_folder), adapters)
    for name in KINDS:
        assert not any(p.requires_grad for p in together.use(name).parameters())


def test_an_unknown_adapter_is_named_with_those_there_are(base_folder: Path, adapters):
    together = AdapterSet.load(load_folder(base_folder), adapters)
    with pytest.raises(ModelError, match=r"no adapter named nobody(.|\n)*plain, narrow"):
        together.use("nobody")
    with pytest.raises(ModelError, match="no adapter was given"):
        AdapterSet.load(load_folder(base_folder), {})


def other_widths(tmp_path: Path) -> Path:
    return build("llama-3.2", tmp_path / "other")


def more_layers(tmp_path: Path) -> Path:
    return build("llama-3.2", tmp_path / "deep", layers=3)


def fewer_layers(tmp_path: Path) -> Path:
    return build("llama-3.2", tmp_path / "flat", layers=1)


@pytest.mark.parametrize(
    ("of", "on", "words"),
    [
        ("base", other_widths, r"layers\.0\.mlp\.down_proj has \d+ inputs, its lora_A \d+"),
        (other_widths, more_layers, r"it has nothing for layer model\.layers\.2\.\S+"),
        (other_widths, fewer_layers, r"no layer model\.layers\.1\.\S+ here"),
        ("base", lambda path: build("phi-3", path / "phi"), r"no layer model\.layers\.0\.\S+ here|has \d+"),
    ],
    ids=["other widths", "more layers", "fewer layers", "another family"],
)
def test_an_adapter_for_another_base_is_refused_by_its_first_mismatch(
    base_folder: Path, tmp_path: Path, of, on, words: str
):
    adapter = trained(base_folder if of == "base" else of(tmp_path), tmp_path / "lora")
    base = load_folder(on(tmp_path))
    before = logits(base)
    for attempt in (lambda: AdapterSet.load(base, {"x": adapter}), lambda: fold(base, adapter, IDS)):
        with pytest.raises(ModelError, match=rf"the adapter is for another base(.|\n)*{words}"):
            attempt()
    assert torch.equal(logits(base), before)
    assert not any("lora" in name for name, _ in base.named_modules())


def test_an_adapter_that_replaces_biases_cannot_be_switched(tmp_path: Path):
    base = build("qwen2.5", tmp_path / "base")
    adapter = trained(base, tmp_path / "lora", bias="lora_only")
    with pytest.raises(ModelError, match="cannot be taken off again"):
        AdapterSet.load(load_folder(base), {"x": adapter})
    with_adapter = logits(PeftModel.from_pretrained(load_folder(base), adapter))
    merged, errors = fold(load_folder(base), adapter, IDS)
    error = errors.logits
    assert error < 1e-4
    assert torch.allclose(logits(merged), with_adapter, atol=1e-4)
