"""Bases of real shapes with random weights, drawn in the GPU's memory: seconds instead of a minute each.

    python -m tests.bench.h200.bases FOLDER --models llama-8b,qwen3-4b --storages nf4,bf16

writes every base as a folder for what can only load one, and beside it NAME-STORAGE.safetensors, the float32 reference
that others are compared with. The weights are a function of name and device alone, so another process that draws a
base computes with the same numbers, and needs no folder.
"""

import argparse
import copy
import importlib
import json
import time
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from core.artifacts import atomic_path
from core.models.adapters import attach
from core.models.config import Framework, ModelConfig
from core.models.devices import pick_device
from core.models.engines import engine_named, marked
from core.models.quantized import quantization_of, ready_for_training
from core.models.random_base.making import config_of, make_tokenizer
from core.models.random_base.shapes import SHAPES
from core.training.benchmark.adapter import fill, gradients
from core.training.benchmark.case import Case
from core.training.benchmark.parity import save_reference
from core.training.benchmark.reference import backward
from core.training.benchmark.rows import parity_batch
from core.training.memory import free_memory


def drawn(name: str, storage: str, framework: Framework = "hf", *, tiny: bool = False) -> PreTrainedModel:
    """Draw a base where it will compute, ready for an adapter.

    Args:
        name: A key of SHAPES.
        storage: ``nf4`` or ``bf16``; without a GPU the latter is float32.
        framework: Whose ``attach`` will be used.
        tiny: A size for trying this on a CPU.
    """
    device = pick_device()
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    torch.manual_seed(0)
    with torch.device(device):
        made: Any = AutoModelForCausalLM.from_config(config_of(name, tiny=tiny), dtype=dtype)
    made.requires_grad_(False)
    if storage == "nf4":
        pack(made, dtype)
    return marked(cast(PreTrainedModel, made), engine_named(framework))


def pack(model: Any, compute: torch.dtype) -> None:
    """Hold the linear layers of a model in 4 bits, all but its head, as loading it in 4 bits does."""
    bnb: Any = importlib.import_module("bitsandbytes").nn

    block = quantization_of(ModelConfig(name="drawn", load_in_4bit=True), compute)
    assert block is not None
    head = model.get_output_embeddings()
    for module in list(model.modules()):
        for name, layer in list(module.named_children()):
            if type(layer) is not nn.Linear or layer is head:
                continue
            packed = bnb.Linear4bit(
                layer.in_features, layer.out_features, layer.bias is not None, compute, block.bnb_4bit_use_double_quant,
                block.bnb_4bit_quant_type, device="meta",
            )  # fmt: skip
            packed.weight = bnb.Params4bit(
                layer.weight.data, requires_grad=False, quant_type=block.bnb_4bit_quant_type,
                compress_statistics=block.bnb_4bit_use_double_quant, module=packed,
            ).to(layer.weight.device)  # fmt: skip
            packed.bias = layer.bias
            setattr(module, name, packed)
    model.is_loaded_in_4bit, model.is_quantized = True, True
    model.config.quantization_config = block
    ready_for_training(model)


def save(model: PreTrainedModel, name: str, folder: Path) -> None:
    """Write an unquantized base as a folder that every engine can load; whole or not at all."""
    tokenizer = make_tokenizer(SHAPES[name][0])
    ids = {
        key: getattr(tokenizer, key) for key in ("bos_token_id", "eos_token_id", "pad_token_id")
    }  # None for no such token
    folder.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(folder) as part:
        model.save_pretrained(str(part), max_shard_size="4GB")
        tokenizer.save_pretrained(str(part))
        settings = json.loads((part / "config.json").read_text(encoding="utf-8")) | ids
        (part / "config.json").write_text(json.dumps(settings), encoding="utf-8")
        (part / "generation_config.json").write_text(json.dumps(ids), encoding="utf-8")


@torch.no_grad()
def widened(held: PreTrainedModel) -> PreTrainedModel:
    """Return a base in float32 with eager attention: the very numbers that its bytes stand for in a product."""
    config = copy.deepcopy(held.config)
    config.__dict__.pop("quantization_config", None)
    with torch.device(next(held.parameters()).device):
        made: Any = AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation="eager")
    for name, parameter in held.named_parameters():
        made.get_parameter(name).copy_(numbers(parameter))
    return cast(PreTrainedModel, made.requires_grad_(False))


def numbers(parameter: Any) -> torch.Tensor:
    """Return a weight's numbers; 4-bit ones expanded as bitsandbytes does for a product."""
    state = getattr(parameter, "quant_state", None)
    if state is None:
        return cast(torch.Tensor, parameter.data)
    from bitsandbytes.functional import dequantize_4bit

    return dequantize_4bit(parameter.data, state).reshape(state.shape)


def refer(case: Case, name: str, target: Path, *, tiny: bool = False) -> float:
    """Write loss and gradients of the parity batch in float32; see core.training.benchmark.reference."""
    torch.set_float32_matmul_precision("highest")
    held = drawn(name, case.storage, tiny=tiny)
    wide = marked(widened(held), engine_named("hf"))
    del held
    model = attach(wide, case.lora_block(checkpointing=False))
    fill(model, case.seed)
    loss = backward(model, parity_batch(case, model.config.get_text_config().vocab_size))
    target.parent.mkdir(parents=True, exist_ok=True)
    save_reference(target, loss, gradients(model))
    return loss


def reference_of(folder: Path, name: str, storage: str) -> Path:
    """Return where the reference of a base lies."""
    return folder / f"{name}-{storage}.safetensors"


def main() -> None:
    """Write the folders and references that are missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--models", default="llama-8b")
    parser.add_argument("--storages", default="nf4")
    parser.add_argument("--no-folders", action="store_true", help="references only")
    parser.add_argument("--tiny", action="store_true")
    options = parser.parse_args()
    has_gpu = torch.cuda.is_available()
    for name in options.models.split(","):
        began = time.monotonic()
        folder = options.folder / (f"{name}-tiny" if options.tiny else name)
        if not options.no_folders and not (folder / "generation_config.json").is_file():
            save(drawn(name, "bf16", tiny=options.tiny), name, folder)
            free_memory()
        print(f"{folder}: {time.monotonic() - began:.1f} s", flush=True)
        for storage in filter(None, options.storages.split(",")):
            began = time.monotonic()
            case = Case.model_validate(
                {"system": "hf", "model": name, "storage": storage, "has_gpu": has_gpu}
            )
            loss = refer(case, name, reference_of(options.folder, name, storage), tiny=options.tiny)
            free_memory()
            print(f"reference {name} {storage}: {loss:.6f}, {time.monotonic() - began:.1f} s", flush=True)


if __name__ == "__main__":
    main()
