"""What is wrong with a model folder, found before anything heavy is loaded; and the message for each."""

import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from core.errors import ModelError
from core.models.architectures import causal_classes
from core.models.config import ModelConfig
from core.models.files import count_ids, folder_flaws
from core.models.loading import load_folder, load_model, load_tokenizer
from core.models.weight_files import BrokenFile, read_header
from tests.families import FAMILIES, VARIANTS, build

PLAIN = {"load_in_4bit": False}


@pytest.fixture
def folder(base_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(base_folder, tmp_path / "model"))


def rewrite(folder: Path, **changes) -> None:
    config = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps({k: v for k, v in config.items() if v is not None}))


def cut(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1])


def cut_in_header(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:40])


def pickle(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    torch.save({"x": torch.zeros(1)}, folder / "pytorch_model.bin")


def shard(folder: Path) -> None:
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def rename_weights(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "consolidated.safetensors")


def point(folder: Path) -> None:
    (folder / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid x\n")


def only_an_adapter(folder: Path) -> None:
    (folder / "config.json").unlink()
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "Qwen/Qwen3-4B"}))


def drop_a_tensor(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors.pop("model.layers.1.self_attn.q_proj.weight")
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def shrink_embedding(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors["model.embed_tokens.weight"] = tensors["model.embed_tokens.weight"][:300].clone()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    rewrite(folder, vocab_size=300)


MODEL_FLAWS: list[tuple[Callable[[Path], None], str]] = [
    (cut, r"has model\.safetensors, which is truncated: its header describes \d+ bytes, it has \d+"),
    (cut_in_header, "which is truncated or no safetensors file"),
    (pickle, "only pickled weights"),
    (shard, r"lacks 1 weight files: model-00002-of-00002"),
    (rename_weights, r"has consolidated\.safetensors, but neither model\.safetensors nor"),
    (point, r"is a Git LFS pointer(.|\n)*git -C .* lfs pull"),
    (only_an_adapter, r"holds an adapter, not a model(.|\n)*Qwen/Qwen3-4B"),
    (lambda f: (f / "config.json").write_text("[]"), r"config\.json: it is not a JSON object"),
    (lambda f: rewrite(f, model_type="warp-drive"), r"is a warp-drive, of which Transformers \d.* knows no"),
    (lambda f: rewrite(f, model_type=None), "without a model_type"),
    (lambda f: rewrite(f, model_type="clip", architectures=["CLIPModel"]), "is a clip, of which"),
    (lambda f: rewrite(f, model_type="evil", auto_map={"AutoConfig": "evil.Config"}), "needs remote code"),
    (lambda f: rewrite(f, architectures=["LlamaForSequenceClassification"]), "which is no causal language model"),
    (lambda f: rewrite(f, model_type="bert", architectures=["BertForMaskedLM"]), "BertForMaskedLM, which is no"),
    (lambda f: rewrite(f, vocab_size=300), "says vocab_size 300 in config.json, but its embedding has 400 rows"),
    (shrink_embedding, r"has a tokenizer of \d+ tokens and a model of only 300"),
]  # fmt: skip


@pytest.mark.parametrize(("spoil", "words"), MODEL_FLAWS, ids=[words[:40] for _, words in MODEL_FLAWS])
def test_a_folder_that_is_no_base_model_is_refused_with_its_reason(folder: Path, spoil, words: str):
    spoil(folder)
    with pytest.raises(ModelError, match=words) as caught:
        load_model(ModelConfig(name=str(folder), **PLAIN))
    assert str(folder) in str(caught.value)
    assert caught.value.fix
    # validate says the same, and says it without loading anything
    assert caught.value.what in [flaw.what for flaw in folder_flaws(folder)]


@pytest.mark.parametrize("content", ["{", "{}", "[]", '{"model": {"type": "BPE"}}', '{"added_tokens": []}'])
def test_a_broken_tokenizer_is_one_message(folder: Path, content: str):
    (folder / "tokenizer.json").write_text(content)
    with pytest.raises(ModelError, match=r"has a tokenizer\.json (that is not|without)"):
        load_tokenizer(str(folder))
    assert any("tokenizer.json" in flaw.what for flaw in folder_flaws(folder))


def test_a_tokenizer_that_only_its_library_sees_to_be_broken_is_one_message_too(folder: Path):
    content = json.loads((folder / "tokenizer.json").read_text())
    content["model"]["type"] = "Crystal"
    (folder / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(ModelError, match=r"tokenizer\.json is broken"):
        load_tokenizer(str(folder))


def test_a_folder_without_a_tokenizer_is_a_model_all_the_same(folder: Path):
    for file in folder.glob("tokenizer*"):
        file.unlink()
    load_folder(folder)
    with pytest.raises(ModelError, match="has no tokenizer"):
        load_tokenizer(str(folder))
    assert [flaw.what for flaw in folder_flaws(folder)] == ["has no tokenizer"]


def test_a_missing_tensor_is_never_drawn_at_random(folder: Path):
    drop_a_tensor(folder)
    with pytest.raises(ModelError, match=r"lack 1 tensors.*layers\.1\.self_attn\.q_proj"):
        load_folder(folder)


def test_weights_of_other_widths_are_refused(folder: Path):
    rewrite(folder, intermediate_size=96)
    with pytest.raises(ModelError, match="do not have the shapes that config.json describes"):
        load_folder(folder)


def test_padding_rows_above_the_vocabulary_are_fine(folder: Path):
    tensors = load_file(folder / "model.safetensors")
    rows = tensors["model.embed_tokens.weight"]
    tensors["model.embed_tokens.weight"] = torch.cat([rows, torch.zeros(48, rows.shape[1])])
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    rewrite(folder, vocab_size=448)
    assert not list(folder_flaws(folder))
    assert load_folder(folder).get_input_embeddings().weight.shape[0] == 448


@pytest.mark.parametrize("family", [*FAMILIES, *VARIANTS])
def test_every_family_is_found_sound(family: str, tmp_path: Path):
    folder = build(family, tmp_path / "m")
    assert not list(folder_flaws(folder))
    assert load_folder(folder).config.get_text_config()._attn_implementation == "sdpa"
    assert len(load_tokenizer(str(folder))) <= load_folder(folder).get_input_embeddings().weight.shape[0]


def test_a_header_says_what_a_file_holds_without_reading_it(tmp_path: Path):
    tensors = {"a": torch.zeros(2, 3), "b": torch.ones(5, dtype=torch.bfloat16)}
    save_file(tensors, tmp_path / "x.safetensors")
    found = read_header(tmp_path / "x.safetensors")
    assert {name: (info.dtype, info.shape) for name, info in found.items()} == {
        "a": ("F32", (2, 3)),
        "b": ("BF16", (5,)),
    }


@pytest.mark.parametrize("size", [0, 7, 8, 9, 100])
def test_any_prefix_of_a_weight_file_is_refused(tmp_path: Path, size: int):
    save_file({"a": torch.zeros(64, 3)}, tmp_path / "x.safetensors")
    whole = (tmp_path / "x.safetensors").read_bytes()
    (tmp_path / "x.safetensors").write_bytes(whole[:size])
    with pytest.raises(BrokenFile):
        read_header(tmp_path / "x.safetensors")
    (tmp_path / "x.safetensors").write_bytes(whole + b"\0")
    with pytest.raises(BrokenFile, match="describes"):
        read_header(tmp_path / "x.safetensors")


def test_a_header_that_claims_gigabytes_is_not_read(tmp_path: Path):
    (tmp_path / "x.safetensors").write_bytes(struct.pack("<Q", 1 << 40) + b"{}")
    with pytest.raises(BrokenFile, match="truncated"):
        read_header(tmp_path / "x.safetensors")


def test_the_table_of_architectures_is_that_of_transformers():
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as TABLE

    assert causal_classes() == {k: (v,) if isinstance(v, str) else tuple(v) for k, v in TABLE.items()}


def test_ids_are_counted_by_the_largest_one():
    added = [{"id": 7, "content": "<x>"}]
    assert count_ids({"model": {"vocab": {"a": 0, "b": 1}}, "added_tokens": added}) == 8
    assert count_ids({"model": {"vocab": [["a", -1.0], ["b", -2.0]]}}) == 2
    assert count_ids({}) == 0
