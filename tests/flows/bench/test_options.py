"""Options of the benchmark, and which systems can run."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

from core.errors import ConfigError
from flows.bench.options import Asked, for_cpu, understood, writable
from flows.bench.peers import obstacles
from flows.settings import measuring_environment

ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize(
    ("asked", "option"),
    [
        (Asked(peers="hf,axolotl"), "--peers"),
        (Asked(models=("llama-9b",)), "--model"),
        (Asked(seq=7), "--seq"),
        (Asked(rows=0), "--rows"),
        (Asked(micro_batch=0), "--micro-batch"),
        (Asked(storage="int8"), "--storage"),
        (Asked(rank=17), "--rank"),
        (Asked(checkpointing="maybe"), "--checkpointing"),
        (Asked(budget="much"), "--budget"),
        (Asked(budget="-1"), "--budget"),
        (Asked(budget="nan"), "--budget"),
        (Asked(steps=0), "--steps"),
        (Asked(warmup=0), "--warmup"),
        (Asked(rounds=0), "--rounds"),
        (Asked(labels="none"), "--labels"),
        (Asked(ours="theirs"), "--ours"),
        (Asked(timeout=0), "--timeout"),
    ],
)
def test_an_option_that_makes_no_sense_is_named(asked: Asked, option: str):
    with pytest.raises(ConfigError, match=option) as caught:
        understood(asked)
    assert "Fix:" in str(caught.value)


def test_ours_comes_first_and_no_system_twice():
    assert understood(Asked(peers="unsloth,hf, unsloth")).systems == ("fused", "unsloth", "hf")
    assert understood(Asked(peers="hf,hf-plain", ours="hf")).systems == ("hf", "hf-plain")
    assert understood(Asked(peers="")).systems == ("fused",)


def test_the_budget_is_gib_or_auto():
    assert understood(Asked(budget="auto")).case.budget is None
    assert understood(Asked(budget="4.5")).case.budget == 4.5
    assert understood(Asked(budget="0")).case.budget == 0


def test_a_model_folder_is_taken_as_it_is(tmp_path: Path):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(b"")
    assert understood(Asked(models=(str(tmp_path), "llama-8b"))).models == (
        str(tmp_path.resolve()),
        "llama-8b",
    )


def test_a_model_folder_without_safetensors_is_refused(tmp_path: Path):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(ConfigError, match=r"--model.*safetensors"):
        understood(Asked(models=(str(tmp_path),)))


def test_a_folder_that_can_be_written_to_is_made_and_left_empty(tmp_path: Path):
    assert writable("--out", tmp_path / "a/b") == tmp_path / "a/b"
    assert list((tmp_path / "a/b").iterdir()) == []


# Nobody may write there, root neither; the second exists already.
@pytest.mark.parametrize("place", ["file", "file/below", "/proc/1"])
def test_a_folder_that_cannot_be_written_to_is_named(place: str, tmp_path: Path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ConfigError, match="--out") as caught:
        writable("--out", tmp_path / place)
    assert "cannot write to" in str(caught.value) and "Fix:" in str(caught.value)
    assert (tmp_path / "file").read_text() == "mine"


def test_micro_batches_are_no_larger_than_the_step():
    assert understood(Asked(rows=4, micro_batch=16)).case.micro_batch == 4
    assert understood(Asked(rows=4)).case.micro_batch is None


def test_without_a_gpu_the_load_is_a_toy_and_never_larger_than_asked():
    case = for_cpu(understood(Asked(seq=2048, rows=1, steps=20))).case
    assert (case.length, case.rows, case.steps, case.has_gpu, case.parity_length) == (64, 1, 3, False, 64)
    assert case.model_copy(update={"model": "x"}).model_block().dtype == "float32"


def test_peers_that_cannot_run_say_what_is_missing():
    found = obstacles(("fused", "hf", "liger", "unsloth"), has_gpu=False)
    assert set(found) == {"liger", "unsloth"}
    for system, library in (("liger", "liger_kernel"), ("unsloth", "unsloth")):
        word = "needs a GPU" if importlib.util.find_spec(library) else "pip install 'data-factory["
        assert word in found[system]
    assert (
        "liger" not in obstacles(("liger",), has_gpu=True) or importlib.util.find_spec("liger_kernel") is None
    )


def test_measuring_processes_share_one_allocator_and_reach_no_network(tmp_path: Path):
    seen = measuring_environment(tmp_path)
    assert seen["PYTORCH_ALLOC_CONF"] == seen["PYTORCH_CUDA_ALLOC_CONF"] == "expandable_segments:True"
    assert seen["HF_HUB_OFFLINE"] == "1" and seen["PYTHONPATH"].startswith(str(ROOT))


def test_the_benchmark_loads_no_engine_before_it_runs_one():
    code = "import sys, flows.bench.finetune, flows.bench.table, core.training.benchmark.case; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert {"torch", "transformers", "peft", "prefect", "mlflow"}.isdisjoint(done.stdout.split())
