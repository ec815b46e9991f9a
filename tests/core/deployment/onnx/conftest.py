from pathlib import Path

import pytest
import torch
from transformers import Gemma3ForCausalLM, Gemma3TextConfig, LlamaForCausalLM

from core.deployment.onnx import OnnxRunner, export, traced_graph
from core.deployment.onnx.files import save
from core.deployment.onnx.graph import trace
from core.quantization.config import OnnxType
from tests.families import build, perturb

KINDS: tuple[OnnxType, ...] = ("fp32", "fp16", "int8", "int4")
WINDOW = 16


@pytest.fixture(scope="session")
def llama_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build("llama-3.2", tmp_path_factory.mktemp("onnx") / "llama")


@pytest.fixture(scope="session")
def llama(llama_folder: Path) -> LlamaForCausalLM:
    return LlamaForCausalLM.from_pretrained(llama_folder).eval()


@pytest.fixture(scope="session")
def exports(llama_folder: Path) -> dict[OnnxType, Path]:
    """The model in every type, made as the pipeline makes them."""
    folder = llama_folder.parent / "exports"
    with traced_graph(llama_folder, folder / "any", threads=1) as traced:
        for kind in KINDS:
            export(llama_folder, folder / kind, kind, threads=1, traced=traced)
    return {kind: folder / kind for kind in KINDS}


@pytest.fixture(scope="session")
def fp32(exports: dict[OnnxType, Path]) -> OnnxRunner:
    return OnnxRunner(exports["fp32"], threads=1)


@pytest.fixture(scope="session")
def gemma() -> Gemma3ForCausalLM:
    model = Gemma3ForCausalLM(
        Gemma3TextConfig(
            vocab_size=300,
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=32,
            query_pre_attn_scalar=32,
            sliding_window=WINDOW,
            layer_types=["sliding_attention", "full_attention"],
            max_position_embeddings=512,
        )
    )
    perturb(model)
    return model.eval()


@pytest.fixture(scope="session")
def gemma_runner(gemma: Gemma3ForCausalLM, tmp_path_factory: pytest.TempPathFactory) -> OnnxRunner:
    folder = tmp_path_factory.mktemp("gemma")
    save(trace(gemma), folder)
    return OnnxRunner(folder, threads=1)


def draw(vocabulary: int, *shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(5, vocabulary, shape, generator=torch.Generator().manual_seed(seed))
