"""One small chat model, written as GGUF, for all runtime tests."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from core.deployment.gguf import write_gguf
from core.deployment.llama import LlamaRuntime
from tests.core.deployment.gguf import tiny


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("chat") / "model"
    return tiny.save(
        folder, "Llama", tiny.byte_level(), max_position_embeddings=1024, tie_word_embeddings=True
    )


@pytest.fixture(scope="session")
def gguf(checkpoint: Path) -> Path:
    path = checkpoint.parent / "model.gguf"
    write_gguf(checkpoint, path, dtype="f32", name="tiny")
    return path


@pytest.fixture(scope="session")
def runtime(gguf: Path) -> Iterator[LlamaRuntime]:
    with LlamaRuntime(gguf, context_length=700, exact=True) as opened:
        yield opened
