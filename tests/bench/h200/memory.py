"""Peak memory of short runs on one GPU, by stage: what the estimates of core.models.resources are held against.

    python -m tests.bench.h200.memory OUT [--models llama-1b,qwen3-4b,llama-8b] [--budget 350] [--tiny]

Every (model, storage, framework) is one process that loads the base and attaches the adapter the way the finetune
phase does, and then runs the training step on a grid of micro-batch, length and checkpointing, three steps each.
Writes OUT/memory.json after every process.
"""

import argparse
import gc
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

from tests.bench.h200.qlora import ROOT, environment, machine, pick_scratch

STEPS = 3
PROMPT = 48
"""Tokens of each row that carry no loss, as in qlora.py."""
GRID = ((8, 2048), (2, 2048), (4, 512), (2, 8192))
PARTS = (
    "llama-1b:nf4:hf", "llama-1b:nf4:unsloth", "llama-1b:bf16:hf",
    "qwen3-4b:nf4:hf", "qwen3-4b:nf4:unsloth", "qwen3-4b:bf16:hf",
    "llama-8b:nf4:hf", "llama-8b:nf4:unsloth", "llama-8b:bf16:hf",
    "llama-1b:int8:hf", "llama-1b:fp4:hf", "llama-1b:nf4-single:hf", "llama-1b:nf4-dora:hf", "llama-1b:bf16:unsloth",
    "llama-8b:int8:hf", "gemma3-1b:nf4:hf", "gemma3-1b:nf4:unsloth",
)  # fmt: skip
OPTIMIZERS = (
    "adamw_8bit",
    "adamw_torch",
    "lion_8bit",
    "sgd",
    "adafactor",
    "paged_adamw_8bit",
    "paged_adamw_32bit",
)
HARDEST_FIRST = [(True, size) for size in GRID] + [(False, size) for size in GRID[:3]]


def model_block(base: Path, storage: str, framework: str, length: int) -> Any:
    """Return the config's model block for a way of holding the base."""
    from core.models.config import ModelConfig

    held: dict[str, Any] = {"load_in_4bit": storage.startswith(("nf4", "fp4"))}
    if storage == "fp4":
        held["bnb_4bit_quant_type"] = "fp4"
    if storage == "int8":
        held = {"load_in_8bit": True}
    if storage == "nf4-single":
        held["bnb_4bit_use_double_quant"] = False
    dtype = "float32" if storage == "fp32" else "bfloat16"
    return ModelConfig(name=str(base), framework=framework, max_seq_length=length, dtype=dtype, **held)


class Gauge:
    """The allocator's counters; the resident size where there is no GPU."""

    def __init__(self) -> None:
        self.is_gpu = torch.cuda.is_available()

    def restart(self) -> None:
        """Start a new peak."""
        gc.collect()
        if self.is_gpu:
            torch.cuda.synchronize()
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()

    def now(self) -> int:
        """Return the bytes held."""
        if self.is_gpu:
            torch.cuda.synchronize()
            return int(torch.cuda.memory_allocated())
        import psutil

        return int(psutil.Process().memory_info().rss)

    def peaks(self) -> dict[str, int]:
        """Return the peaks since the last restart."""
        if not self.is_gpu:
            return {"allocated": self.now(), "reserved": self.now()}
        torch.cuda.synchronize()
        return {"allocated": torch.cuda.max_memory_allocated(), "reserved": torch.cuda.max_memory_reserved()}


def child(base: Path, storage: str, framework: str, tiny: bool, target: Path) -> None:
    """Measure one way of holding one base, writing after every point."""
    from core.models.config import LoraConfig
    from core.models.frameworks import prepare_framework

    grid = [(True, (2, 64)), (False, (2, 64))] if tiny else HARDEST_FIRST
    longest = max(256, max(length for _, (_, length) in grid))
    block = model_block(base, storage, framework, longest)
    prepare_framework(block)  # before anything imports Transformers
    from core.models.loading import load_model

    gauge, points = Gauge(), []
    found: dict[str, Any] = {"start": gauge.now(), "points": points}

    def keep(**more: Any) -> None:
        found.update(more)
        target.write_text(json.dumps(found))

    if storage == "bf16" and framework == "hf":
        keep(inference=generation(base, gauge, tiny), merge=merging(base, gauge))
    gauge.restart()
    before = gauge.now()
    model = load_model(block, trainable=True)
    keep(before=before, load_peak=gauge.peaks(), after_load=gauge.now())
    from core.models.adapters import attach

    lora = LoraConfig(
        r=16, lora_alpha=16, use_dora=storage.endswith("dora"), use_gradient_checkpointing="unsloth"
    )
    gauge.restart()
    adapted = attach(model, lora)
    keep(attach_peak=gauge.peaks(), after_attach=gauge.now())
    for is_checkpointed, (size, length) in grid:
        if not is_checkpointed and framework == "unsloth":
            continue  # its checkpointing is chosen when the adapter is attached
        _switch(adapted, is_checkpointed)
        points.append(point(adapted, size, length, is_checkpointed, gauge))
        keep()
    if framework == "hf" and not storage.endswith(("dora", "single")):
        _switch(adapted, True)
        points.append(point(adapted, *((2, 64) if tiny else (4, 2048)), True, gauge, packed=True))
        keep()
    if base.name == "llama-1b" and storage == "nf4" and framework == "hf":
        keep(optimizers={name: optimizer_state(adapted, name, gauge) for name in OPTIMIZERS})


def _switch(adapted: Any, is_checkpointed: bool) -> None:
    from core.models.hf import checkpoint_blocks

    if is_checkpointed:
        if not getattr(adapted, "is_gradient_checkpointing", False):
            checkpoint_blocks(adapted)
    else:
        adapted.gradient_checkpointing_disable()


def point(
    adapted: Any, size: int, length: int, is_checkpointed: bool, gauge: Gauge, *, packed: bool = False
) -> dict[str, Any]:
    """Run a few steps and note the peak, what stays, and the time of the last one."""
    told: dict[str, Any] = {
        "micro_batch": size,
        "length": length,
        "checkpointed": is_checkpointed,
        "packed": packed,
    }
    gauge.restart()
    told["held_before"] = gauge.now()
    try:
        told |= _steps(adapted, size, length, gauge, packed)
    except RuntimeError as error:  # out of memory is one
        told["error"] = str(error)[:200]
    adapted.zero_grad(set_to_none=True)
    gauge.restart()
    return told


def _steps(adapted: Any, size: int, length: int, gauge: Gauge, packed: bool) -> dict[str, Any]:
    from core.training.config import TrainingConfig
    from core.training.language import LanguageStep, autocast
    from core.training.optim import build_optimizer
    from core.training.sft import autocast_dtype

    config = TrainingConfig(optim="adamw_8bit")
    device = next(adapted.parameters()).device
    optimizer = build_optimizer(adapted.parameters(), config)
    step = LanguageStep(adapted, device, autocast(device, autocast_dtype(config, adapted)))
    batch = random_batch(adapted.config.get_text_config().vocab_size, size, length, packed)
    seconds: list[float] = []
    after_backward = loss = 0.0
    for _ in range(STEPS):
        began = time.perf_counter()
        loss = float(step([batch]).loss)
        after_backward = gauge.now()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        gauge.now()
        seconds.append(time.perf_counter() - began)
    return {
        "peak": gauge.peaks(), "after_backward": after_backward, "after_step": gauge.now(), "loss": loss,
        "step_s": [round(each, 4) for each in seconds], "head_found": getattr(step.loss, "head", None) is not None,
    }  # fmt: skip


def random_batch(vocab: int, size: int, length: int, packed: bool) -> Any:
    """Make one micro-batch of random tokens; the first of each row carry no loss."""
    from core.data.batches import Batch
    from core.data.chat import IGNORE_INDEX

    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(3, min(vocab, 50_000), (size, length), generator=generator)
    labels = ids.clone()
    labels[:, : min(PROMPT, length // 2)] = IGNORE_INDEX
    if not packed:
        return Batch(ids, labels, torch.ones_like(ids))
    document = max(16, length // 4)
    positions = (torch.arange(length) % document).expand(size, length).contiguous()
    labels[positions == 0] = IGNORE_INDEX
    return Batch(ids, labels, torch.ones_like(ids), positions)


def optimizer_state(adapted: Any, name: str, gauge: Gauge) -> dict[str, Any]:
    """Return the bytes an optimizer keeps on the GPU after one step, and the adapter's size."""
    from core.training.config import TrainingConfig
    from core.training.optim import build_optimizer

    try:
        trained = [p for p in adapted.parameters() if p.requires_grad]
        for parameter in trained:
            parameter.grad = torch.zeros_like(parameter)
        optimizer = build_optimizer(adapted.parameters(), TrainingConfig(optim=name))
        gauge.restart()
        before = gauge.now()
        optimizer.step()
        told = {"state": gauge.now() - before, "step_peak": gauge.peaks()["allocated"] - before}
        optimizer.zero_grad(set_to_none=True)
        return told | {"trained": sum(p.numel() for p in trained)}
    except (RuntimeError, ValueError) as error:
        return {"error": str(error)[:200]}


def generation(base: Path, gauge: Gauge, tiny: bool) -> dict[str, Any]:
    """Answer a batch of prompts the way evaluation does: greedily, with a cache."""
    from core.models.loading import load_folder

    gauge.restart()
    model = load_folder(base)
    loaded = gauge.now()
    size, length, more = (2, 16, 4) if tiny else (32, 512, 64)
    ids = torch.randint(3, 500, (size, length), device=model.device)
    gauge.restart()
    with torch.no_grad():
        model.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=more, min_new_tokens=more, do_sample=False
        )  # fmt: skip
    told = {"batch": size, "prompt": length, "new": more, "loaded": loaded, "peak": gauge.peaks()}
    del model, ids
    gauge.restart()
    return told


def merging(base: Path, gauge: Gauge) -> dict[str, Any]:
    """Fold an adapter into the base."""
    from core.models.adapters import attach
    from core.models.config import LoraConfig
    from core.models.loading import load_folder

    gauge.restart()
    adapted = attach(load_folder(base), LoraConfig(r=16, lora_alpha=16, use_gradient_checkpointing=False))
    before = gauge.now()
    gauge.restart()
    adapted.merge_and_unload(safe_merge=True)
    told = {"before": before, "peak": gauge.peaks()}
    del adapted
    gauge.restart()
    return told


def main() -> None:
    """Measure part after part until the budget is spent."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--parts", default=",".join(PARTS))
    parser.add_argument("--budget", type=float, default=350)
    parser.add_argument("--scratch", type=Path)
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--child", nargs=4, metavar=("BASE", "STORAGE", "FRAMEWORK", "TARGET"))
    options = parser.parse_args()
    if options.child:
        base, storage, framework, target = options.child
        child(Path(base), storage, framework, options.tiny, Path(target))
        return
    measure_all(options)


def measure_all(options: argparse.Namespace) -> None:
    """Start a process for each part and gather what they wrote."""
    began, results = time.monotonic(), []
    scratch = pick_scratch(options.scratch, 20)
    options.out.mkdir(parents=True, exist_ok=True)
    for part in options.parts.split(","):
        left = options.budget - (time.monotonic() - began)
        if left < 25:
            results.append({"part": part, "error": "left out: the budget is spent"})
        else:
            print(f"--- {part}", flush=True)
            results.append(one(part, scratch, options, left))
            print(
                json.dumps({k: v for k, v in results[-1].items() if k in ("part", "error", "part_s")}),
                flush=True,
            )
        text = json.dumps({"machine": machine(), "results": results}, indent=1)
        (options.out / "memory.json").write_text(text)


def one(part: str, scratch: Path, options: argparse.Namespace, left: float) -> dict[str, Any]:
    """Make the base if need be, and measure one part in a process of its own."""
    name, storage, framework = part.split(":")
    base, began = scratch / "models" / name, time.monotonic()
    tiny = ["--tiny"] if options.tiny else []
    if not (base / "generation_config.json").is_file():
        make = [sys.executable, "-m", "tests.bench.h200.make_models", str(base.parent), "--models", name]
        subprocess.run([*make, *tiny], cwd=ROOT, check=True, env=environment())
    target = scratch / "part.json"
    target.unlink(missing_ok=True)
    command = [
        sys.executable,
        "-m",
        "tests.bench.h200.memory",
        str(options.out),
        "--child",
        str(base),
        storage,
        framework,
    ]
    told: dict[str, Any] = {"part": part}
    try:
        done = subprocess.run(
            [*command, str(target), *tiny], cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=left, check=False
        )  # fmt: skip
        if done.returncode:
            told["error"] = done.stderr[-1500:]
    except subprocess.TimeoutExpired:
        told["error"] = "cut off: the budget is spent"
    if target.is_file():
        told |= json.loads(target.read_text())
    return told | {"part_s": round(time.monotonic() - began, 1)}


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    main()
