"""Every family, written as GGUF, computes the logits transformers computes."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from gguf import GGUFReader
from safetensors.torch import load_file, save_file

from core.deployment.gguf import write_gguf
from core.errors import ModelError
from tests.core.deployment.gguf import tiny
from tests.families.logits import compare_logits

THETA = {"rope_theta": 10_000.0}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64, **THETA}
LONG = {"rope_type": "longrope", "original_max_position_embeddings": 256, **THETA}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
    **THETA,
}
GEMMA = {"num_hidden_layers": 7, "head_dim": 16, "query_pre_attn_scalar": 16, "sliding_window": 16}
GEMMA_SCALED = {
    "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
    "sliding_attention": {"rope_type": "default", "rope_theta": 5_000.0},
}


def long_factors(pairs: int) -> dict[str, Any]:
    return LONG | {
        "long_factor": [1 + 0.5 * n for n in range(pairs)],
        "short_factor": [1 + 0.1 * n for n in range(pairs)],
    }


CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama, llama3 rope, tied": ("Llama", {"tie_word_embeddings": True, "rope_parameters": LLAMA3}),
    "llama, biases, wide heads": ("Llama", {"attention_bias": True, "mlp_bias": True, "head_dim": 32}),
    "llama, linear rope": ("Llama", {"rope_parameters": {"rope_type": "linear", "factor": 3.0, **THETA}}),
    "llama, yarn": ("Llama", {"rope_parameters": YARN}),
    "llama, yarn, own attention": ("Llama", {"rope_parameters": YARN | {"attention_factor": 1.5}}),
    "llama, yarn, mscale": ("Llama", {"rope_parameters": YARN | {"mscale": 1.0, "mscale_all_dim": 0.5}}),
    "mistral": ("Mistral", {"sliding_window": None}),
    "qwen2, tied": ("Qwen2", {"tie_word_embeddings": True}),
    "qwen2, yarn": ("Qwen2", {"rope_parameters": YARN}),
    "qwen3": ("Qwen3", {"head_dim": 32, "tie_word_embeddings": False}),
    "phi3": ("Phi3", {"sliding_window": None}),
    "phi3, partial rotary": (
        "Phi3",
        {"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.75, **THETA}},
    ),
    "gemma3": ("Gemma3", GEMMA),
    "gemma3, scaled": ("Gemma3", GEMMA | {"rope_parameters": GEMMA_SCALED}),
}


@pytest.fixture(scope="session")
def tokenizer() -> Any:
    return tiny.byte_level()


@pytest.fixture
def llama(tmp_path: Path, tokenizer: Any) -> Path:
    return tiny.save(tmp_path / "llama", "Llama", tokenizer)


def convert(folder: Path, dtype: Any = "f32") -> Path:
    target = folder / f"{dtype}.gguf"
    write_gguf(folder, target, dtype=dtype, name="tiny")
    return target


def stored(path: Path) -> dict[str, np.ndarray]:
    return {tensor.name: np.array(tensor.data) for tensor in GGUFReader(path).tensors}


@pytest.mark.parametrize("case", CASES)
def test_float32_logits_equal_the_checkpoint(case: str, tmp_path: Path, tokenizer: Any) -> None:
    kind, settings = CASES[case]
    folder = tiny.save(tmp_path / "model", kind, tokenizer, **settings)
    report = compare_logits(folder, convert(folder), tokens=72)
    # llama.cpp evaluates Gemma's GELU in half precision; everything else is float32 arithmetic.
    assert report.max_abs < (1e-2 if kind == "Gemma3" else 1e-4)
    assert report.kl < 1e-6
    assert report.argmax_agreement == 1


def test_gemma_is_exact_apart_from_its_activation(tmp_path: Path, tokenizer: Any) -> None:
    folder = tiny.save(tmp_path / "model", "Gemma3", tokenizer, **(GEMMA | {"rope_parameters": GEMMA_SCALED}))
    ups = [f"model.layers.{n}.mlp.up_proj.weight" for n in range(7)]
    edit_weights(folder, {name: torch.zeros(96, 64) for name in ups})
    assert compare_logits(folder, convert(folder), tokens=72).max_abs < 1e-4


@pytest.mark.parametrize(("kind", "pairs", "share"), [("Llama", 8, 1.0), ("Phi3", 6, 0.75)])
def test_longrope_is_exact_below_and_beyond_the_original_context(
    kind: str, pairs: int, share: float, tmp_path: Path, tokenizer: Any
) -> None:
    rope = long_factors(pairs) | {"partial_rotary_factor": share}
    settings: dict[str, Any] = {"max_position_embeddings": 1024, "rope_parameters": rope}
    if kind == "Phi3":
        settings["original_max_position_embeddings"] = 256
    folder = tiny.save(tmp_path / "model", kind, tokenizer, **settings)
    path = convert(folder)
    assert compare_logits(folder, path, tokens=48, context_length=256).max_abs < 1e-4
    assert compare_logits(folder, path, tokens=300, context_length=512).max_abs < 1e-4


@pytest.mark.parametrize(("dtype", "limit"), [("f16", 1e-6), ("bf16", 1e-4)])
def test_half_precision_stays_close(dtype: str, limit: float, llama: Path) -> None:
    report = compare_logits(llama, convert(llama, dtype))
    assert 0 < report.kl < limit


def test_a_bfloat16_checkpoint_is_stored_bit_for_bit(tmp_path: Path, llama: Path) -> None:
    model = transformers.AutoModelForCausalLM.from_pretrained(llama, dtype=torch.bfloat16)
    folder = tmp_path / "bf16"
    model.save_pretrained(folder)
    for extra in llama.glob("*token*"):
        shutil.copy(extra, folder)
    name, source = "blk.1.ffn_down.weight", "model.layers.1.mlp.down_proj.weight"
    wanted = load_file(folder / "model.safetensors")[source].view(torch.uint8).numpy()
    assert (stored(convert(folder, "bf16"))[name].view(np.uint8) == wanted).all()


def test_shards_give_the_same_tensors_as_one_file(tmp_path: Path, llama: Path) -> None:
    folder = tmp_path / "shards"
    model = transformers.AutoModelForCausalLM.from_pretrained(llama)
    model.save_pretrained(folder, max_shard_size="60KB")
    for extra in llama.glob("*token*"):
        shutil.copy(extra, folder)
    assert len(list(folder.glob("*.safetensors"))) > 2
    whole, parts = stored(convert(llama)), stored(convert(folder))
    assert whole.keys() == parts.keys()
    assert all((whole[name] == parts[name]).all() for name in whole)


def test_settings_written_by_older_transformers_mean_the_same(tmp_path: Path, tokenizer: Any) -> None:
    new = tiny.save(tmp_path / "new", "Llama", tokenizer, rope_parameters=LLAMA3)
    old = shutil.copytree(new, tmp_path / "old")
    config = json.loads((old / "config.json").read_text())
    rope = config.pop("rope_parameters")
    config["rope_theta"] = rope.pop("rope_theta")
    config["rope_scaling"] = rope
    (old / "config.json").write_text(json.dumps(config))
    assert convert(new).read_bytes() == convert(old).read_bytes()


def test_the_text_part_of_a_multimodal_gemma_is_written(tmp_path: Path, tokenizer: Any) -> None:
    plain = tiny.save(tmp_path / "plain", "Gemma3", tokenizer, **GEMMA)
    text = transformers.AutoConfig.from_pretrained(plain)
    vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.Gemma3Config(
        text_config=text.to_dict(),
        vision_config=vision | {"image_size": 28, "patch_size": 14},
        mm_tokens_per_image=4,
    )
    model = transformers.Gemma3ForConditionalGeneration(config)
    own = transformers.AutoModelForCausalLM.from_pretrained(plain)
    model.model.language_model.load_state_dict(own.model.state_dict())
    folder = tmp_path / "multimodal"
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    one, other = stored(convert(plain)), stored(convert(folder))
    assert one.keys() == other.keys()
    assert all((one[name] == other[name]).all() for name in one)


def rewrite(folder: Path, **settings: Any) -> Path:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))
    return folder


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"architectures": ["MambaForCausalLM"]}, "MambaForCausalLM"),
        ({"hidden_act": "relu"}, "relu"),
        ({"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, **THETA}}, "dynamic"),
        ({"rope_parameters": YARN | {"beta_fast": 16}}, "beta_fast"),
    ],
)
def test_what_llama_cpp_cannot_run_is_refused(settings: dict[str, Any], named: str, llama: Path) -> None:
    with pytest.raises(ModelError, match=named) as caught:
        convert(rewrite(llama, **settings))
    if "architectures" in settings:
        assert "Qwen3ForCausalLM" in str(caught.value)
    assert not list(llama.glob("*.gguf"))
    assert not list(llama.glob(".*.part"))


def test_gemma_settings_that_llama_cpp_hard_codes_are_refused(tmp_path: Path, tokenizer: Any) -> None:
    folder = tiny.save(tmp_path / "model", "Gemma3", tokenizer, **GEMMA)
    with pytest.raises(ModelError, match="query_pre_attn_scalar"):
        convert(rewrite(folder, query_pre_attn_scalar=64))
    with pytest.raises(ModelError, match="every sixth"):
        convert(rewrite(folder, query_pre_attn_scalar=16, layer_types=["full_attention"] * 7))


def test_an_empty_folder_and_missing_weights_are_named(tmp_path: Path, llama: Path) -> None:
    with pytest.raises(ModelError, match=r"config\.json"):
        convert(tmp_path)
    (llama / "model.safetensors").write_bytes(b"\x10")
    with pytest.raises(ModelError, match="cannot read the weights"):
        convert(llama)
    (llama / "model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"model\.safetensors"):
        convert(llama)


def edit_weights(folder: Path, changes: dict[str, Any]) -> None:
    path = folder / "model.safetensors"
    weights = load_file(path) | changes
    save_file({name: w for name, w in weights.items() if w is not None}, path, metadata={"format": "pt"})


def test_weights_without_a_place_or_an_output_layer_are_refused(llama: Path) -> None:
    edit_weights(llama, {"model.layers.0.extra.weight": torch.zeros(3)})
    with pytest.raises(ModelError, match=r"model\.layers\.0\.extra\.weight"):
        convert(llama)
    edit_weights(llama, {"model.layers.0.extra.weight": None, "lm_head.weight": None})
    with pytest.raises(ModelError, match=r"output\.weight"):
        convert(llama)


def test_weights_too_large_for_f16_are_refused_not_turned_into_infinity(llama: Path) -> None:
    edit_weights(llama, {"lm_head.weight": torch.full((len(tiny.byte_level()) + 5, 64), 1e5)})
    with pytest.raises(ModelError, match="lm_head"):
        convert(llama, "f16")
    assert np.isfinite(stored(convert(llama, "f32"))["output.weight"]).all()


def test_a_tokenizer_larger_than_the_embedding_is_refused(llama: Path) -> None:
    tokenizer = tiny.byte_level()
    tokenizer.add_tokens([f"extra{n}" for n in range(9)])
    tokenizer.save_pretrained(llama)
    with pytest.raises(ModelError, match="embedding"):
        convert(llama)
