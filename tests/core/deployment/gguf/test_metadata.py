"""What a GGUF file says about its model."""

from pathlib import Path
from typing import Any

import pytest
from gguf import GGUFReader

from core.deployment.gguf import write_gguf
from tests.core.deployment.gguf import tiny


def fields(folder: Path, name: str = "tiny") -> dict[str, Any]:
    write_gguf(folder, folder / "model.gguf", dtype="f16", name=name)
    return {key: field.contents() for key, field in GGUFReader(folder / "model.gguf").fields.items()}


def test_shape_special_tokens_and_template(tmp_path: Path) -> None:
    found = fields(tiny.save(tmp_path / "model", "Qwen3", tiny.byte_level(), head_dim=32), "my tutor")
    assert found["general.architecture"] == "qwen3"
    assert found["general.name"] == "my tutor"
    assert found["general.file_type"] == 1
    assert found["qwen3.attention.head_count_kv"] == 2
    assert found["qwen3.attention.key_length"] == found["qwen3.rope.dimension_count"] == 32
    assert found["qwen3.context_length"] == 256
    assert found["tokenizer.ggml.bos_token_id"] == 0
    assert found["tokenizer.ggml.padding_token_id"] == 1
    assert found["tokenizer.ggml.eos_token_id"] == 2
    assert "generation %}" not in found["tokenizer.chat_template"]
    assert found["tokenizer.chat_template"].startswith("{{ bos_token }}")


def test_further_stop_tokens_are_recorded(tmp_path: Path) -> None:
    folder = tiny.save(tmp_path / "model", "Llama", tiny.byte_level())
    (folder / "generation_config.json").write_text('{"eos_token_id": [2, 4, 5]}')
    found = fields(folder)
    assert found["tokenizer.ggml.eos_token_id"] == 2
    assert found["tokenizer.ggml.eot_token_id"] == 4
    assert found["tokenizer.ggml.eom_token_id"] == 5


@pytest.mark.parametrize(("kind", "limit"), [("Mistral", 64), ("Phi3", 64), ("Gemma3", 256)])
def test_the_context_ends_where_llama_cpp_ignores_the_window(kind: str, limit: int, tmp_path: Path) -> None:
    settings = {"head_dim": 16, "query_pre_attn_scalar": 16} if kind == "Gemma3" else {}
    folder = tiny.save(tmp_path / "model", kind, tiny.byte_level(), sliding_window=64, **settings)
    found = fields(folder)
    assert next(value for key, value in found.items() if key.endswith(".context_length")) == limit
    assert ("gemma3.attention.sliding_window" in found) is (kind == "Gemma3")
