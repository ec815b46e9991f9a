"""One seam, several engines: which one is used, what it is told, and that it trains the same numbers."""

import importlib.machinery
import subprocess
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import pytest
import torch

from core.errors import ConfigError, ModelError
from core.models.adapters import adapter_parity, attach
from core.models.config import Framework, LoraConfig, ModelConfig
from core.models.frameworks import FrameworkNotice, choose_framework, edits_libraries, prepare_framework
from core.models.loading import base_format, framework_of, load_model, pick_dtype
from tests.families import FAMILIES, build
from tests.stand_in.unsloth import FastLanguageModel

ROOT = Path(__file__).parents[3]
IDS = torch.arange(6, 30)[None]
LORA = LoraConfig(r=4, use_gradient_checkpointing=False)
NOT_HERE = "unsloth" not in sys.modules


@pytest.fixture
def unsloth(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[FastLanguageModel]]:
    """Stand in for the library and for a GPU; the tensors stay on the processor."""
    module = types.ModuleType("unsloth")
    module.__spec__ = importlib.machinery.ModuleSpec("unsloth", None)
    module.FastLanguageModel = FastLanguageModel
    monkeypatch.setitem(sys.modules, "unsloth", module)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: True)
    # Seeding and emptying a cache would look for the GPU that is not there.
    monkeypatch.setattr(torch.cuda, "manual_seed_all", lambda seed: None)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    FastLanguageModel.loaded = FastLanguageModel.adapted = {}
    return FastLanguageModel


def config(folder: Path, **settings) -> ModelConfig:
    return ModelConfig(**{"name": str(folder), "max_seq_length": 256, "dtype": "float32", **settings})


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return build("llama-3.2", tmp_path / "base")


# The choice


@pytest.mark.parametrize(
    "settings", [{"framework": "unsloth"}, {"framework": {"type": "unsloth"}}, {"use_unsloth": True}]
)
def test_every_spelling_chooses_the_same_engine(base: Path, unsloth, settings):
    model = load_model(config(base, load_in_4bit=False, **settings), trainable=True)
    assert framework_of(model) == "unsloth"
    assert framework_of(attach(model, LORA)) == "unsloth"
    assert unsloth.loaded
    assert unsloth.adapted


def test_hf_is_the_default_and_never_touches_unsloth(base: Path, unsloth, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    model = attach(load_model(config(base, load_in_4bit=False), trainable=True), LORA)
    assert framework_of(model) == "hf"
    assert not unsloth.loaded


def test_inference_loads_with_the_stock_engine_whatever_trains(base: Path):
    assert framework_of(load_model(config(base, framework="unsloth", load_in_4bit=False))) == "hf"


@pytest.mark.skipif(not NOT_HERE, reason="unsloth is installed here")
def test_an_absent_unsloth_is_one_message_with_its_install_line(base: Path):
    with pytest.raises(
        ModelError, match=r"unsloth is not installed(.|\n)*pip install 'data-factory\[unsloth\]'"
    ):
        load_model(config(base, framework="unsloth"), trainable=True)


def test_unsloth_without_a_gpu_is_one_message(base: Path, unsloth, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ModelError, match="needs a GPU"):
        load_model(config(base, framework="unsloth"), trainable=True)
    assert not unsloth.loaded


def test_an_unsloth_that_cannot_be_imported_is_one_message(monkeypatch, tmp_path: Path):
    (tmp_path / "unsloth.py").write_text("raise NotImplementedError('no accelerator\\nmore')")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(ModelError, match=r"cannot be imported: no accelerator\n"):
        prepare_framework(ModelConfig(name="x", framework="unsloth"))
    with pytest.warns(FrameworkNotice, match="cannot be imported"):
        assert prepare_framework(ModelConfig(name="x", framework="unsloth", fall_back=True)).framework == "hf"


@pytest.mark.parametrize("falls_back", [False, True])
def test_fused_works_without_a_gpu_and_says_that_hf_is_as_good_there(
    base: Path, falls_back: bool, monkeypatch
):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    wanted = config(base, framework="fused", fall_back=falls_back, load_in_4bit=False)
    with pytest.warns(FrameworkNotice, match="no NVIDIA GPU here: fused trains with the plain definitions"):
        model = load_model(wanted, trainable=True)
    assert framework_of(model) == "fused"
    assert framework_of(attach(model, LORA)) == "fused"


@pytest.mark.parametrize(("cuda", "notice"), [(None, "no NVIDIA GPU"), ("13.0", None)])
def test_a_gpu_that_is_not_nvidias_does_not_run_the_kernels(
    monkeypatch, cuda: str | None, notice: str | None
):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.version, "cuda", cuda)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    wanted = ModelConfig(name="x", framework="fused")
    if notice is None:
        assert prepare_framework(wanted) == ("fused", None)
        return
    with pytest.warns(FrameworkNotice, match=notice):
        assert prepare_framework(wanted).framework == "fused"


def test_fused_without_triton_says_so(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    choice = choose_framework(ModelConfig(name="x", framework="fused"), has_gpu=True)
    assert choice.framework == "fused"
    assert str(choice.notice).startswith("Triton is not installed: fused trains with the plain definitions")
    assert choose_framework(ModelConfig(name="x"), has_gpu=False) == ("hf", None)


@pytest.mark.skipif(not NOT_HERE, reason="unsloth is installed here")
def test_falling_back_is_said_and_trains_with_hf(base: Path):
    with pytest.warns(FrameworkNotice, match="not installed; training with hf instead"):
        model = load_model(
            config(base, framework="unsloth", fall_back=True, load_in_4bit=False), trainable=True
        )
    assert framework_of(model) == "hf"
    choice = choose_framework(ModelConfig(name="x", framework="unsloth", fall_back=True), has_gpu=False)
    assert choice.framework == "hf"
    assert choice.notice


@pytest.mark.parametrize(
    ("framework", "installed", "has_gpu", "obstacle"),
    [
        ("hf", False, False, None),
        ("unsloth", True, True, None),
        ("unsloth", False, True, "not installed"),
        ("unsloth", True, False, "needs a GPU"),
        ("unsloth", False, False, "not installed"),
    ],
)
def test_an_engine_is_chosen_by_what_is_here(unsloth, monkeypatch, framework, installed, has_gpu, obstacle):
    if not installed:
        monkeypatch.delitem(sys.modules, "unsloth")
    strict = ModelConfig(name="x", framework=framework)
    if obstacle is None:
        assert choose_framework(strict, has_gpu=has_gpu) == (framework, None)
        return
    with pytest.raises((ModelError, ConfigError), match=obstacle) as caught:
        choose_framework(strict, has_gpu=has_gpu)
    assert caught.value.where == "model.framework"
    assert "model.framework: hf" in caught.value.fix
    lenient = choose_framework(strict.model_copy(update={"fall_back": True}), has_gpu=has_gpu)
    assert lenient.framework == "hf"
    assert obstacle in str(lenient.notice)


def test_choosing_an_engine_imports_none() -> None:
    code = (
        "import sys\nfrom core.models.config import ModelConfig\n"
        "from core.models.frameworks import find_obstacle, prepare_framework\n"
        "assert prepare_framework(ModelConfig(name='x')).framework == 'hf'\n"
        "find_obstacle('unsloth', has_gpu=True)\n"
        "assert not {'torch', 'transformers', 'peft', 'unsloth'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_only_unsloth_needs_a_process_of_its_own() -> None:
    assert [name for name in get_args(Framework) if edits_libraries(name)] == ["unsloth"]


# What the engine is told


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, {"load_in_4bit": True, "load_in_8bit": False, "load_in_16bit": False}),
        ({"load_in_8bit": True}, {"load_in_4bit": False, "load_in_8bit": True, "load_in_16bit": False}),
        (
            {"load_in_4bit": False, "dtype": "bfloat16"},
            {"load_in_4bit": False, "load_in_8bit": False, "load_in_16bit": True, "dtype": torch.bfloat16},
        ),
        ({"load_in_4bit": False}, {"load_in_16bit": False, "dtype": torch.float32}),
        ({"dtype": None}, {"dtype": torch.bfloat16}),
    ],
    ids=["4 bits", "8 bits", "16 bits", "32 bits", "dtype of the GPU"],
)
def test_settings_reach_unsloth(base: Path, unsloth, settings, expected):
    load_model(config(base, framework="unsloth", **settings), trainable=True)
    given = unsloth.loaded
    assert {key: given[key] for key in expected} == expected
    assert (given["model_name"], given["max_seq_length"]) == (str(base.resolve()), 256)
    assert given["use_exact_model_name"]
    assert given["local_files_only"]
    assert given["trust_remote_code"] is False


def test_the_adapter_reaches_unsloth_as_the_config_has_it(base: Path, unsloth):
    lora = LoraConfig(r=16, lora_alpha=8, lora_dropout=0.1, bias="lora_only", random_state=7, use_rslora=True,
                      target_modules=("q_proj", "v_proj"))  # fmt: skip
    attach(load_model(config(base, framework="unsloth", load_in_4bit=False), trainable=True), lora)
    assert unsloth.adapted == {
        "r": 16, "lora_alpha": 8, "lora_dropout": 0.1, "bias": "lora_only", "random_state": 7, "use_rslora": True,
        "target_modules": ["q_proj", "v_proj"], "use_gradient_checkpointing": "unsloth",
    }  # fmt: skip


def test_examples_longer_than_the_window_are_refused_because_unsloth_would_rescale(base: Path, unsloth):
    with pytest.raises(ConfigError, match=r"max_seq_length(.|\n)*rescale positions"):
        load_model(config(base, framework="unsloth", max_seq_length=131072), trainable=True)
    assert not unsloth.loaded


# The same numbers


@pytest.mark.parametrize(
    "held",
    [{}, {"bnb_4bit_quant_type": "fp4", "bnb_4bit_use_double_quant": False}, {"load_in_8bit": True}, {"load_in_4bit": False}],
    ids=["nf4+double", "fp4", "int8", "full"],
)  # fmt: skip
@pytest.mark.parametrize(
    "kind", [{}, {"use_rslora": True, "target_modules": "all-linear"}], ids=["lora", "all-linear"]
)
def test_both_engines_train_the_same_tensors_on_the_same_base(base: Path, unsloth, held, kind):
    lora = LORA.model_copy(update=kind)
    theirs = attach(load_model(config(base, framework="unsloth", **held), trainable=True), lora)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.cuda, "is_available", lambda: False)
        ours = attach(load_model(config(base, **held), trainable=True), lora)
    assert adapter_parity(ours, theirs) == ()
    assert base_format(ours) == base_format(theirs)
    for (name, one), (_, other) in zip(ours.named_parameters(), theirs.named_parameters(), strict=True):
        assert torch.equal(one, other), name
    assert ours.config.get_text_config().dtype == theirs.config.get_text_config().dtype


@pytest.mark.parametrize("family", FAMILIES)
def test_both_engines_adapt_the_same_layers_of_every_family(family: str, tmp_path: Path, unsloth):
    folder = build(family, tmp_path / "m")
    theirs = attach(load_model(config(folder, framework="unsloth", load_in_4bit=False), trainable=True), LORA)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.cuda, "is_available", lambda: False)
        ours = attach(load_model(config(folder, load_in_4bit=False), trainable=True), LORA)
    assert adapter_parity(ours, theirs) == ()


# The device


@pytest.mark.parametrize(("native", "wanted"), [(True, torch.bfloat16), (False, torch.float16)])
def test_a_gpu_computes_in_bfloat16_where_it_does_so_natively(monkeypatch, native: bool, wanted: torch.dtype):
    # PyTorch says yes to any GPU when emulation counts.
    monkeypatch.setattr(
        torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation or native
    )
    assert pick_dtype(None, torch.device("cuda")) == wanted
    assert pick_dtype("float32", torch.device("cuda")) == torch.float32
    assert pick_dtype("float16", torch.device("cuda")) == torch.float16
    assert pick_dtype(None, torch.device("cpu")) == torch.float32
