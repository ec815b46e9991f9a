"""Quantization settings that contradict each other are named with the way out."""

import pytest

from core.quantization.config import QuantizationConfig
from flows.format_problems import format_problems
from flows.run_config import RunConfig, check

GIVEN = {"model": {"name": "m"}, "sources": [{"path": "rows.jsonl"}]}


def told(wanted: str = "smallest", **settings: object) -> list[str]:
    made = QuantizationConfig.model_validate(settings)
    return [f"{one.keys[0]}: {one.what}" for one in format_problems(made, wanted)]


@pytest.mark.parametrize(
    ("settings", "start"),
    [
        ({"wanted": "Q6_K"}, "deployment.format: Q6_K is not made by this run, which makes Q8_0, Q4_K_M"),
        ({"formats": ["Q8_0", "Q8_0"]}, "quantization.formats: names Q8_0 twice"),
        ({"onnx": ["int8", "fp32", "int8"]}, "quantization.onnx: names int8 twice"),
        ({"pytorch": ["int8", "int8"]}, "quantization.pytorch: names int8 twice"),
        (
            {"formats": ["Q8_0", "f16"], "imatrix": True},
            "quantization.imatrix: changes nothing for Q8_0, f16",
        ),
        ({"aware": "Q4_0"}, "quantization.aware: Q4_0 is trained for, but no such file is made; add it to"),
        ({"aware": "int4", "onnx": ["int8"]}, "quantization.aware: int4 is trained for"),
        (
            {"aware": "Q4_0", "formats": ["Q4_0"], "imatrix": True},
            "quantization.imatrix: an importance matrix",
        ),
    ],
)
def test_each_contradiction_is_named(settings: dict[str, object], start: str) -> None:
    (problem,) = told(**settings)
    assert problem.startswith(start)


def test_what_fits_is_let_through() -> None:
    assert told() == told(imatrix=True) == told(wanted="Q8_0") == told(onnx=["fp32", "int4"]) == []
    assert told(formats=["Q4_0"], imatrix=True) == told(formats=["Q4_0", "Q8_0"], aware="Q4_0") == []
    assert told(aware="Q8_0", imatrix=True) == told(aware="int8", onnx=["int8"]) == []


def test_the_run_config_lists_them() -> None:
    problems = check({**GIVEN, "quantization": {"formats": ["Q8_0"], "imatrix": True}})
    assert [problem.keys[0] for problem in problems] == ["quantization.imatrix"]


@pytest.mark.parametrize(
    ("blocks", "key"),
    [
        ({"model": {"name": "m"}}, "model.load_in_4bit"),
        ({"model": {"name": "m", "load_in_8bit": True}}, "model.load_in_8bit"),
        ({"model": {"name": "m", "load_in_4bit": False, "framework": "unsloth"}}, "model.framework"),
        ({"model": {"name": "m", "load_in_4bit": False, "framework": "fused"}}, "model.framework"),
        ({"lora": {"use_dora": True}}, "lora.use_dora"),
        ({"lora": {"lora_dropout": 0.05}}, "lora.lora_dropout"),
    ],
)
def test_training_with_rounding_names_what_it_cannot_be_combined_with(blocks: dict, key: str) -> None:
    plain = {**GIVEN, "model": {"name": "m", "load_in_4bit": False}, **blocks}
    (problem,) = check({**plain, "quantization": {"formats": ["Q4_0"], "aware": "Q4_0"}})
    assert problem.keys == (key, "quantization.aware")
    assert problem.what.startswith("contradicts quantization.aware: ")
    assert "quantization.aware: null" in problem.what
    assert isinstance(check(plain), RunConfig)


def test_training_with_rounding_goes_with_everything_else() -> None:
    blocks = {"lora": {"use_rslora": True, "bias": "all"}, "training": {"packing": True, "bf16": True}}
    run = check({**GIVEN, **blocks, "model": {"name": "m", "load_in_4bit": False},
                 "quantization": {"onnx": ["int4"], "aware": "int4"}})  # fmt: skip
    assert isinstance(run, RunConfig)
    assert run.quantized.aware == "int4"
    assert RunConfig.model_validate(GIVEN).quantized.aware is None


def test_a_type_that_llama_cpp_does_not_know_lists_those_it_does() -> None:
    (problem,) = check({**GIVEN, "quantization": {"formats": ["Q9_X"]}})
    assert problem.keys[0] == "quantization.formats.0"
    for known in ("f16", "bf16", "Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "Q4_0"):
        assert known in problem.what


def test_without_the_block_the_saved_type_is_the_only_one() -> None:
    run = RunConfig.model_validate({**GIVEN, "save": {"gguf_quantization": "Q5_K_M"}})
    assert run.quantized == QuantizationConfig(formats=("Q5_K_M",))
    assert run.gguf_formats == ("Q5_K_M",)
