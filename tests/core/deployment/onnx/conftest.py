from pathlib import Path

import pytest
import torch
from filelock import FileLock
from transformers import Gemma3ForCausalLM, Gemma3TextConfig

from core.deployment.onnx import OnnxRunner, export, traced_graph
from core.quantization.config import OnnxType
from tests.families import perturb, tokenizer_for

KINDS: tuple[OnnxType, ...] = ("fp32", "fp16", "int8", "int4")
WINDOW = 16
HEADS, WIDTH = 2, 32


@pytest.fixture(scope="session")
def place(shared_folder: Path) -> Path:
    folder = shared_folder / "onnx"
    folder.mkdir(exist_ok=True)
    return folder


@pytest.fixture(scope="session")
def model_folder(place: Path) -> Path:
    """A tiny Gemma 3: one layer with a window, one without, tied embeddings, norms around everything.

    Tracing takes many seconds, so one family stands for all here; tests/bench/onnx_families.py measures all of them.
    """
    folder = place / "model"
    with FileLock(place / "model.lock"):
        if not folder.exists():
            make_model(place / "new")
            (place / "new").rename(folder)
    return folder


def make_model(folder: Path) -> None:
    tokenizer = tokenizer_for("gemma-3")
    model = Gemma3ForCausalLM(
        Gemma3TextConfig(
            vocab_size=len(tokenizer) + 5,
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=HEADS,
            head_dim=WIDTH,
            query_pre_attn_scalar=WIDTH,
            sliding_window=WINDOW,
            layer_types=["sliding_attention", "full_attention"],
            max_position_embeddings=512,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    perturb(model)
    model.generation_config.eos_token_id = tokenizer.convert_tokens_to_ids(["<eos>", "<end_of_turn>"])
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


@pytest.fixture(scope="session")
def model(model_folder: Path) -> Gemma3ForCausalLM:
    return Gemma3ForCausalLM.from_pretrained(model_folder).eval()


@pytest.fixture(scope="session")
def exports(model_folder: Path, place: Path) -> dict[OnnxType, Path]:
    """The model in every type, made as the pipeline makes them."""
    folder = place / "exports"
    with FileLock(place / "exports.lock"):
        if not all((folder / kind).exists() for kind in KINDS):
            with traced_graph(model_folder, folder / "any", threads=1) as traced:
                for kind in KINDS:
                    export(model_folder, folder / kind, kind, threads=1, traced=traced)
    return {kind: folder / kind for kind in KINDS}


@pytest.fixture(scope="session")
def fp32(exports: dict[OnnxType, Path]) -> OnnxRunner:
    return OnnxRunner(exports["fp32"], threads=1)


def draw(vocabulary: int, *shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(5, vocabulary, shape, generator=torch.Generator().manual_seed(seed))
