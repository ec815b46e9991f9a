"""Does it fit this card, and what would? Cards are described, not needed."""

import shlex
from pathlib import Path
from typing import Any

import pytest

from core.models.fused.costs import H200
from core.models.resources import GB, PUBLISHED
from flows.preflight.fit import find_advice, find_estimates, find_shortfalls
from flows.preflight.machine import Device
from flows.preflight.report import Estimate, Finding
from flows.run_config import RunConfig

LLAMA = "meta-llama/Llama-3.1-8B-Instruct"
SHAPE = PUBLISHED[LLAMA]


def card(gb: float, free: float | None = None) -> Device:
    return Device(f"a card of {gb} GB", True, int((free or gb) * GB), int(gb * GB))


def run(**blocks: Any) -> RunConfig:
    model = {"name": LLAMA, "max_seq_length": 2048, **blocks.pop("model", {})}
    return RunConfig.model_validate({"model": model, "sources": [{"path": "rows.jsonl"}], **blocks})


def estimates(config: RunConfig, device: Device) -> list[Estimate]:
    return find_estimates(config, SHAPE, device, Path("workspace"), must_download=False)


def shortfalls(config: RunConfig, device: Device) -> dict[str, Finding]:
    """Return the findings about the device's memory by the key they concern."""
    rows = [row for row in estimates(config, device) if row.place == "GPU memory"]
    return {each.where: each for each in find_shortfalls(config, SHAPE, device, rows)}


def with_overrides(config: RunConfig, line: str) -> RunConfig:
    settings = config.model_dump(mode="json")
    for option in shlex.split(line.split(" (about")[0].replace("-o ", "")):
        key, _, value = option.partition("=")
        block, name = key.split(".")
        settings[block][name] = (
            {"true": True, "false": False}.get(value) if value in ("true", "false") else int(value)
        )
    return RunConfig.model_validate(settings)


@pytest.mark.parametrize("gb", [12, 16, 24])
@pytest.mark.parametrize(
    "blocks",
    [
        {"training": {"per_device_train_batch_size": 16}},
        {"model": {"load_in_4bit": False}, "lora": {"use_gradient_checkpointing": False}},
        {"model": {"load_in_8bit": True}, "training": {"per_device_train_batch_size": 8}},
        {"model": {"max_seq_length": 65_536}},
    ],
)
def test_the_suggested_line_makes_it_fit(gb: int, blocks: dict[str, Any]) -> None:
    config, device = run(**blocks), card(gb)
    found = shortfalls(config, device)["training"]
    assert found.level == "error"
    lighter = with_overrides(config, found.fix)
    assert "training" not in shortfalls(lighter, device)
    per_step = [
        each.training.per_device_train_batch_size * each.training.gradient_accumulation_steps
        for each in (config, lighter)
    ]
    assert per_step[0] == per_step[1]


def test_a_base_that_is_rounded_in_training_is_never_put_into_4_bits() -> None:
    made = {"quantization": {"formats": ["Q4_0"], "aware": "Q4_0"}}
    config = run(model={"load_in_4bit": False}, training={"per_device_train_batch_size": 8}, **made)
    plain = run(model={"load_in_4bit": False}, training={"per_device_train_batch_size": 8})
    assert "load_in_4bit=true" in shortfalls(plain, card(16))["training"].fix
    assert "load_in_4bit" not in shortfalls(config, card(16))["training"].fix
    needs = [
        next(r.needed_gb for r in estimates(c, card(80)) if r.phase == "finetune") for c in (plain, config)
    ]
    assert needs[1] >= needs[0]
    assert "-o" in shortfalls(config, card(20))["training"].fix


def test_a_card_that_no_settings_fit_says_so() -> None:
    assert "a smaller model" in shortfalls(run(), card(4))["training"].fix
    assert "-o" not in shortfalls(run(), card(4))["training"].fix


def test_a_close_call_is_a_warning_where_micro_batches_may_shrink() -> None:
    config = run()
    need = next(row.needed_gb for row in estimates(config, card(80)) if row.phase == "finetune")
    assert shortfalls(config, card(need / 1.05))["training"].level == "warning"
    assert shortfalls(config, card(need / 1.2))["training"].level == "error"
    fixed = run(training={"shrink_on_oom": False})
    assert shortfalls(fixed, card(need / 1.05))["training"].level == "error"


def test_answering_halves_its_batches_unless_one_question_is_too_much() -> None:
    config = run(evaluation={"batch_size": 512})
    found = shortfalls(config, card(40))["evaluation.batch_size"]
    assert (found.level, "halved" in found.what) == ("warning", True)
    assert shortfalls(config, card(12))["evaluation.batch_size"].level == "error"


def test_a_large_card_is_told_of_larger_micro_batches() -> None:
    config = run(training={"per_device_train_batch_size": 1, "gradient_accumulation_steps": 8})
    usual, better = find_advice(config, SHAPE, card(141))
    assert usual.level == better.level == "note"
    assert "lora.r=32" in usual.what
    assert better.fix == "-o training.per_device_train_batch_size=8 -o training.gradient_accumulation_steps=1"
    assert len(list(find_advice(with_overrides(config, better.fix), SHAPE, card(141)))) == 1


def test_the_hardware_table_is_a_warning() -> None:
    findings = list(find_advice(run(), SHAPE, card(8)))
    assert findings[0].level == "warning"
    assert "10 GB and more" in findings[0].what
    # A card sold as 10 GB reports a little less.
    assert all(each.level == "note" for each in find_advice(run(), SHAPE, card(9.6)))


def test_a_cpu_gets_no_advice_about_cards() -> None:
    assert list(find_advice(run(), SHAPE, Device("CPU", False, 8 * GB, 16 * GB))) == []


def test_unsloth_needs_less_of_the_card_and_more_of_main_memory() -> None:
    stock, fast = (
        {(row.phase, row.place): row.needed_gb for row in estimates(run(model={"framework": name}), card(80))}
        for name in ("hf", "unsloth")
    )
    assert fast["finetune", "GPU memory"] < stock["finetune", "GPU memory"]
    assert fast["finetune", "memory"] > stock["finetune", "memory"]


def test_onnx_takes_memory_and_disk() -> None:
    def rows(**blocks: Any) -> dict[str, float]:
        return {row.phase: row.needed_gb for row in estimates(run(**blocks), card(80))}

    without, with_onnx = rows(), rows(quantization={"onnx": ["int4"]})
    assert with_onnx["quantize, serve"] > 8 * 8.03e9 / GB  # 8 bytes a parameter
    assert with_onnx["all files"] > without["all files"] + 30


def test_pytorch_takes_memory_and_disk() -> None:
    def rows(**blocks: Any) -> dict[str, float]:
        return {row.phase: row.needed_gb for row in estimates(run(**blocks), card(80))}

    without, made = rows(quantization={}), rows(quantization={"pytorch": ["int8"]})
    assert made["quantize, serve"] == pytest.approx(5 * 8.03e9 / GB + 1, rel=0.01)  # 5 bytes a parameter
    assert made["all files"] == pytest.approx(without["all files"] + 8.03e9 / GB, rel=0.01)
    assert (
        rows(quantization={"pytorch": ["int8"], "onnx": ["int8"]})["quantize, serve"]
        > made["quantize, serve"]
    )


# The fused engine


def fused(free: float, **blocks: Any) -> tuple[RunConfig, Device]:
    blocks["model"] = {"framework": "fused", **blocks.get("model", {})}
    return run(**blocks), card(141, free)


def about(config: RunConfig, device: Device, where: str) -> Finding | None:
    return next((each for each in find_advice(config, SHAPE, device) if each.where == where), None)


def with_main_memory(monkeypatch: pytest.MonkeyPatch, gb: float) -> None:
    monkeypatch.setattr("flows.preflight.fit.free_main_memory", lambda: int(gb * GB))


def test_fused_tells_what_it_will_keep(monkeypatch: pytest.MonkeyPatch) -> None:
    with_main_memory(monkeypatch, 64)
    found = about(*fused(11), "training.activation_budget")
    assert found is not None
    assert (found.level, found.kind) == ("note", "hardware")
    assert found.what.startswith(
        "for the backward pass fused keeps qkv, attention and residual of every layer and"
    )
    assert "gate_up of " in found.what
    assert "GB in main memory, in micro-batches of " in found.what
    roomy = about(*fused(140), "training.activation_budget")
    assert roomy is not None
    assert "keeps everything of every layer" in roomy.what


@pytest.mark.parametrize(
    ("name", "is_told"), [("NVIDIA H200, 139.8 GB", False), ("NVIDIA L4, 22.5 GB", True)]
)
def test_a_card_other_than_the_measured_one_is_told_whose_speeds_are_used(name: str, is_told: bool) -> None:
    config, device = fused(20)
    found = about(config, device._replace(words=name), "training.activation_budget")
    assert found is not None
    assert ("speeds of an H200" in found.what) is is_told


def test_a_card_whose_speed_is_known_is_planned_for(monkeypatch: pytest.MonkeyPatch) -> None:
    with_main_memory(monkeypatch, 64)
    config, device = fused(20)
    slow = device._replace(words="NVIDIA L4, 22.5 GB", rates=H200._replace(host=1e9))
    found, usual = (about(config, each, "training.activation_budget") for each in (slow, device))
    assert found is not None and usual is not None
    assert "speeds of" not in found.what
    assert found.what.split(" (")[0] != usual.what.split(" (")[0]


def test_what_fused_needs_is_what_it_has_planned_for() -> None:
    for free in (12, 24, 140):
        config, device = fused(free)
        row = next(r for r in estimates(config, device) if (r.phase, r.place) == ("finetune", "GPU memory"))
        assert row.is_enough
        assert row.needed_gb > 0.8 * min(free, 40)
    assert "training" in shortfalls(*fused(6))


def host_need(config: RunConfig, device: Device) -> float:
    return next(
        r.needed_gb for r in estimates(config, device) if (r.phase, r.place) == ("finetune", "memory")
    )


def test_main_memory_that_fused_locks_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    config, device = fused(9, training={"per_device_train_batch_size": 8, "gradient_accumulation_steps": 1})
    with_main_memory(monkeypatch, 64)
    assert 5 < host_need(config, device) < 4 + 32
    assert host_need(run(), device) == 4
    with_main_memory(monkeypatch, 2)
    assert 4 < host_need(config, device) <= 5


def test_a_planner_needs_no_advice_on_the_micro_batch_but_a_budget_does() -> None:
    assert "would fit as well" not in str(list(find_advice(*in_order(*fused(140)))))
    fixed = fused(140, training={"activation_budget": 2})
    assert "would fit as well" in str(list(find_advice(*in_order(*fixed))))
    found = about(*fixed, "training.activation_budget")
    assert found is not None
    assert "2.0 GB on the GPU" in found.what


def in_order(config: RunConfig, device: Device) -> tuple[RunConfig, Any, Device]:
    return config, SHAPE, device


@pytest.mark.parametrize(
    ("blocks", "words"),
    [({"lora": {"use_dora": True}}, "DoRA"), ({"model": {"load_in_8bit": True}}, "8-bit layers")],
)
def test_layers_that_are_not_fused_are_a_warning(blocks: dict[str, Any], words: str) -> None:
    found = about(*fused(140, **blocks), "model.framework")
    assert found is not None
    assert (found.level, found.kind) == ("warning", "setting")
    assert words in found.what
    assert "hf is as fast" in found.what
    assert about(*fused(140), "model.framework") is None


def test_without_a_gpu_fused_keeps_everything_and_is_counted_so() -> None:
    config, _ = fused(1)
    cpu = Device("CPU", False, 500 * GB, 500 * GB)
    need, stock = (
        next(r.needed_gb for r in estimates(each, cpu) if r.phase == "finetune")
        for each in (config, run(model={"framework": "hf"}))
    )
    assert need > stock
    assert not list(find_advice(config, SHAPE, cpu))
