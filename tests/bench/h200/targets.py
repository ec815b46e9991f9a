"""The goals of the fused engine beside Unsloth on one H200: every line a process of its own, in turn.

    python -m tests.bench.h200.targets OUT [--scratch /dev/shm/bases] [--seconds 560] [--only 8b,4b] [--resume]

One float32 reference for each base and storage; lines are written to OUT/targets.json as they come, and those that
no time is left for are not started. ``--resume`` goes on after the lines that are there.
"""

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any, Literal, NamedTuple

from core.training.benchmark.case import Case, System
from core.training.benchmark.reports import Measured, Parity, refusal
from flows.bench.children import Children

ROWS, LENGTH = 8, 2048
GIB = 2**30


class Job(NamedTuple):
    """One line."""

    label: str
    base: str
    storage: Literal["nf4", "bf16"]
    system: System
    more: dict[str, Any] = {}


def job(label: str, base: str, system: System, storage: Literal["nf4", "bf16"] = "nf4", **more: Any) -> Job:
    """Make a line at 8 rows of 2048 tokens, all at once, unless told otherwise."""
    return Job(label, base, storage, system, {"rows": ROWS, "micro_batch": ROWS, "length": LENGTH} | more)


LONG: dict[str, Any] = {"rows": 1, "micro_batch": 1, "length": 32_768}
JOBS = (
    job("1b", "llama-1b", "fused", budget=0.85), job("1b", "llama-1b", "unsloth"),
    job("4b", "qwen3-4b", "fused", budget=0.4), job("4b", "qwen3-4b", "unsloth"),
    job("8b", "llama-8b", "fused", budget=1.2), job("8b", "llama-8b", "unsloth"),
    job("8b off", "llama-8b", "fused", budget=58.5), job("8b off", "llama-8b", "unsloth", checkpointing=False),
    job("8b long", "llama-8b", "fused", budget=2.6, **LONG), job("8b long", "llama-8b", "unsloth", **LONG),
    job("8b long 60", "llama-8b", "fused", budget=44.0, **LONG),
    job("8b bf16", "llama-8b", "fused", "bf16", budget=1.2), job("8b bf16", "llama-8b", "unsloth", "bf16"),
    job("8b bf16 off", "llama-8b", "fused", "bf16", budget=56.0),
    job("8b bf16 off", "llama-8b", "unsloth", "bf16", checkpointing=False),
    job("8b grid 2", "llama-8b", "fused", micro_batch=2, budget=20.0),
    job("8b grid 2", "llama-8b", "unsloth", micro_batch=2, checkpointing=False),
    job("8b grid 1", "llama-8b", "fused", micro_batch=1, budget=9.0),
    job("8b grid 1", "llama-8b", "unsloth", micro_batch=1, checkpointing=False),
    job("8b grid 4", "llama-8b", "fused", micro_batch=4, budget=30.0),
    job("8b grid 4", "llama-8b", "unsloth", micro_batch=4, checkpointing=False),
    job("1b", "llama-1b", "hf"), job("1b", "llama-1b", "liger"), job("4b", "qwen3-4b", "liger"),
    job("8b", "llama-8b", "liger"), job("4b", "qwen3-4b", "hf"), job("8b", "llama-8b", "hf"),
)  # fmt: skip


def line(measured: Measured) -> str:
    """Word a result."""
    if measured.error or not (measured.speed and measured.memory):
        return f"error: {(measured.error or 'incomplete')[:300]}"
    ms, least = statistics.median(measured.speed.step_ms), min(measured.speed.step_ms)
    memory = measured.memory
    return (
        f"{ms:8.1f} ms (least {least:.1f}) {measured.speed.tokens / ms * 1e3:8.0f} tok/s  peak "
        f"{memory.allocated / GIB:6.2f} reserved {memory.reserved / GIB:6.2f} first {memory.first / GIB:6.2f} pinned "
        f"{memory.pinned / GIB:5.2f} GiB  loss {measured.first_loss} {agreement(measured.parity)}"
    )


def agreement(parity: Parity | None) -> str:
    """Word how near a system came to the reference."""
    if parity is None:
        return "parity not measured here"
    return f"error {parity.loss_error:.1e} cosine {parity.worst_cosine:.5f} {parity.worst_tensor[-50:]}"


def main() -> None:
    """Run what there is time for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--scratch", type=Path, default=Path("/dev/shm/bases"))
    parser.add_argument("--seconds", type=float, default=560)
    parser.add_argument("--only", default="")
    parser.add_argument("--resume", type=Path)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    chosen = [each for each in JOBS if not options.only or each.label in options.only.split(",")]
    found: list[dict[str, Any]] = json.loads(options.resume.read_text()) if options.resume else []
    known = {(each["label"], each["case"]["system"]) for each in found}
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="targets-") as folder:
        children = Children(Path(folder), options.scratch.resolve(), 240)
        for each in chosen:
            if (each.label, each.system) in known or time.monotonic() - began > options.seconds - 60:
                continue
            started = time.monotonic()
            measured, case = run(children, each)
            found.append({"label": each.label, "case": case, "measured": measured.model_dump(mode="json")})
            (options.out / "targets.json").write_text(json.dumps(found, indent=1))
            why = "" if measured.error else refusal(measured) or ""
            print(
                f"{each.label:12} {each.system:8} {time.monotonic() - started:5.0f}s {line(measured)} {why}",
                flush=True,
            )


def run(children: Children, each: Job) -> tuple[Measured, dict[str, Any]]:
    """Measure a line, making its base and its reference on first use."""
    base = children.base(each.base, tiny=False)
    file = children.scratch / f"{each.base}-{each.storage}.safetensors"
    case = Case(system=each.system, model=str(base), storage=each.storage, reference=str(file), **each.more)
    if not file.is_file():
        children.measure(case.model_copy(update={"system": "hf"}), reference=True)
    return children.measure(case), case.model_dump(mode="json")


if __name__ == "__main__":
    main()
