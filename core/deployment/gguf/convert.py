"""From a saved Hugging Face model to one GGUF file."""

import json
from pathlib import Path
from typing import Any

from gguf import GGUFWriter, LlamaFileType
from transformers import AutoTokenizer

from core.artifacts import atomic_path
from core.deployment.gguf.families import load_family
from core.deployment.gguf.metadata import write_identity, write_shape, write_tokenizer
from core.deployment.gguf.rope import write_rope
from core.deployment.gguf.tensors import Dtype, Weights, announce, embedding_rows, plan_tensors, stream
from core.deployment.gguf.vocab import read_vocab
from core.errors import ModelError

_FILE_TYPES: dict[Dtype, LlamaFileType] = {
    "f32": LlamaFileType.ALL_F32,
    "f16": LlamaFileType.MOSTLY_F16,
    "bf16": LlamaFileType.MOSTLY_BF16,
}


def write_gguf(model_dir: Path, target: Path, *, dtype: Dtype, name: str) -> None:
    """Write a checkpoint, its tokenizer and its chat template as one GGUF file.

    Exists because no installable package converts: see the README beside this file.
    Weights stream from the shards, so memory holds one tensor at a time.

    Args:
        model_dir: Folder as ``save_pretrained`` leaves it: config, tokenizer, safetensors.
        target: File to write; it appears whole or not at all.
        dtype: Type of the matrices; vectors are always float32.
        name: Name recorded in the file.

    Raises:
        ModelError: If the architecture, a setting or the tokenizer has no equal in llama.cpp.
    """
    family, config = load_family(model_dir)
    tokenizer = _load_tokenizer(model_dir)
    with Weights(model_dir) as weights, atomic_path(target) as part:
        planned = plan_tensors(weights, config, family)
        vocab = read_vocab(json.loads(tokenizer.backend_tokenizer.to_str()), embedding_rows(planned))
        writer = GGUFWriter(part, family.arch)
        try:
            write_identity(writer, name, int(_FILE_TYPES[dtype]), vocab)
            write_shape(writer, config, family)
            extra = write_rope(writer, config, family)
            write_tokenizer(writer, vocab, tokenizer, model_dir)
            announce(writer, planned, extra, dtype)
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_ti_data_to_file()
            for data in extra.values():
                writer.write_tensor_data(data)
            for data in stream(weights, planned, config, family, dtype):
                writer.write_tensor_data(data)
        finally:
            writer.close()


def _load_tokenizer(model_dir: Path) -> Any:
    try:
        tokenizer = AutoTokenizer.from_pretrained(model_dir, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise ModelError(f"cannot read the tokenizer: {error}", where=str(model_dir)) from error
    if not hasattr(tokenizer, "backend_tokenizer"):
        raise ModelError(
            f"{type(tokenizer).__name__} has no tokenizer.json form",
            where=str(model_dir),
            fix="use a fast tokenizer",
        )
    return tokenizer
