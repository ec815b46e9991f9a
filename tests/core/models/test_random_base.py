"""Bases of published sizes with random weights."""

import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from core.models.files import require_loadable, require_tokenizer
from core.models.random_base.making import config_of, make_model
from core.models.random_base.shapes import SHAPES, is_made, recipe
from core.models.resources.shapes import PUBLISHED, shape_from_config

PUBLISHERS = {
    "llama-1b": "meta-llama/Llama-3.2-1B-Instruct",
    "llama-8b": "meta-llama/Llama-3.1-8B-Instruct",
    "qwen3-4b": "Qwen/Qwen3-4B",
    "gemma3-1b": "google/gemma-3-1b-it",
    "phi-3-mini": "microsoft/Phi-3-mini-4k-instruct",
}


@pytest.mark.parametrize("name", PUBLISHERS)
def test_sizes_are_those_of_the_publisher(name: str):
    assert shape_from_config(SHAPES[name][1]) == PUBLISHED[PUBLISHERS[name]]


@pytest.mark.parametrize("name", ["llama-1b", "qwen3-4b", "gemma3-1b"])
def test_a_tiny_one_is_a_whole_model_that_computes(name: str, tmp_path: Path):
    make_model(name, tmp_path, tiny=True)
    require_loadable(tmp_path)
    require_tokenizer(tmp_path)
    model, told = AutoModelForCausalLM.from_pretrained(
        tmp_path, dtype=torch.float32, output_loading_info=True
    )
    assert not told["missing_keys"]
    assert model.config.model_type == config_of(name).model_type
    ids = AutoTokenizer.from_pretrained(tmp_path)("bada kalu", return_tensors="pt").input_ids
    loss = float(model(input_ids=ids, labels=ids).loss)
    # Random weights know nothing: the loss is that of a uniform guess.
    assert loss == pytest.approx(math.log(model.config.vocab_size), rel=0.05)


def test_the_same_seed_gives_the_same_weights(tmp_path: Path):
    files = []
    for number, seed in enumerate((0, 0, 1)):
        make_model("llama-1b", tmp_path / str(number), tiny=True, seed=seed)
        files.append((tmp_path / str(number) / "model-00001.safetensors").read_bytes())
    assert files[0] == files[1] != files[2]


def test_a_base_is_used_again_only_if_it_is_whole_and_as_it_would_be_made_now(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    assert not is_made(tmp_path, "llama-1b", tiny=True)
    make_model("llama-1b", tmp_path, tiny=True)
    assert is_made(tmp_path, "llama-1b", tiny=True)
    for other in ({"tiny": False}, {"tiny": True, "name": "qwen3-4b"}):
        assert not is_made(tmp_path, **{"name": "llama-1b", **other})
    monkeypatch.setitem(SHAPES["llama-1b"][1], "rms_norm_eps", 1e-6)
    assert not is_made(tmp_path, "llama-1b", tiny=True)
    monkeypatch.undo()
    assert is_made(tmp_path, "llama-1b", tiny=True)

    def full(*arguments: object, **settings: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr("core.models.random_base.making.save_file", full)
    with pytest.raises(OSError, match="no space"):
        make_model("llama-1b", tmp_path, tiny=True)
    assert not is_made(tmp_path, "llama-1b", tiny=True)


def test_a_recipe_differs_by_all_that_decides_a_byte():
    given = [{}, {"tiny": True}, {"seed": 1}, {"layers": 3}]
    found = [recipe("llama-1b", **each) for each in given] + [recipe("qwen3-4b")]
    assert len(set(found)) == len(found)
    assert recipe("llama-1b") == found[0]


def test_an_unknown_name_is_refused_by_the_command():
    command = [sys.executable, "-m", "core.models.random_base", "llama-2b", "x"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=Path(__file__).parents[3])
    assert done.returncode == 2 and "llama-8b" in done.stderr
