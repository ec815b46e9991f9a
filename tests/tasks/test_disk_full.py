"""A disk that fills up in the middle of an export: one plain error, nothing half-written, and the run resumes."""

import errno
from collections.abc import Callable
from pathlib import Path

import pytest

from core.errors import EngineFailed
from core.quantization import engine
from core.quantization.gguf import quantize_gguf
from core.quantization.importance import collect_importance
from tasks.gguf_files import export
from tests.core.deployment.gguf import tiny


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("full") / "model"
    return tiny.wide(folder)


@pytest.fixture(scope="session")
def half(checkpoint: Path) -> Path:
    return tiny.half(checkpoint)


@pytest.fixture
def small_disk(disk_of: Callable[[str], Path]) -> Path:
    return disk_of("256k")


def test_llama_cpp_running_out_of_disk_says_so_and_leaves_nothing(small_disk: Path, half: Path) -> None:
    target = small_disk / "model-Q8_0.gguf"
    target.write_bytes(b"old")
    with pytest.raises(OSError, match="No space left") as caught:
        quantize_gguf(half, target, "Q8_0", threads=1)
    assert caught.value.errno == errno.ENOSPC
    assert target.read_bytes() == b"old"
    assert [path.name for path in small_disk.iterdir()] == ["model-Q8_0.gguf"]


def test_the_sixteen_bit_file_running_out_of_disk_says_so_and_leaves_nothing(
    small_disk: Path, checkpoint: Path
) -> None:
    with pytest.raises(OSError, match="No space left") as caught:
        export(checkpoint, small_disk / "f16.gguf", "f16", "tiny")
    assert caught.value.errno == errno.ENOSPC
    assert list(small_disk.iterdir()) == []


def test_calibration_running_out_of_disk_leaves_nothing(small_disk: Path, half: Path) -> None:
    (small_disk / "filler").write_bytes(b"\0" * (250 << 10))
    with pytest.raises(OSError, match="No space left"):
        collect_importance(half, [[1, 2, 3]] * 500, small_disk / "x.npz", threads=1)
    assert [path.name for path in small_disk.iterdir()] == ["filler"]


def test_a_failure_with_room_to_spare_is_not_blamed_on_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = "llama_model_quantize: failed to quantize: basic_ios::clear: iostream error"
    assert not engine._is_full(told, tmp_path)
    assert engine._is_full("OSError: [Errno 28] No space left on device", tmp_path)
    monkeypatch.setattr(engine, "LITTLE", 1 << 62)
    assert engine._is_full(told, tmp_path)
    assert not engine._is_full("tensor 'x' data is not within the file bounds", tmp_path)


def test_a_type_that_llama_cpp_refuses_is_named(tmp_path: Path, half: Path) -> None:
    """A file that is quantized already cannot be quantized again."""
    small = tmp_path / "model-Q4_K_M.gguf"
    quantize_gguf(half, small, "Q4_K_M", threads=1)
    with pytest.raises(EngineFailed, match=r"quantize model-Q4_K_M\.gguf to Q5_K_M"):
        quantize_gguf(small, tmp_path / "again.gguf", "Q5_K_M", threads=1)
    assert [path.name for path in tmp_path.iterdir()] == ["model-Q4_K_M.gguf"]
