"""Many lines of one engine in one process: its base is made once, and only what differs is made anew.

    python -m tests.bench.h200.bases /dev/shm/bases --models llama-8b --storages nf4      # folder and reference
    python -m tests.bench.h200.marathon OUT --system unsloth --lines grid
    python -m tests.bench.h200.marathon OUT --system fused --lines grid --limits OUT/marathon-unsloth.json

Lines are those of targets.JOBS, by label; ``grid`` names Llama-3.1-8B by micro-batch and checkpointing. ``fused``, ``hf``
and ``liger`` draw their base in the GPU's memory; ``unsloth`` loads the folder. Steps, rows and optimizer are those of
core.training.benchmark. Parity is measured once for each base, where its reference file is there, else not at all: the
first line of a base says it, and "parity not measured here" says that it was not. With ``--limits`` fused gets, for every
line of the file that no other beats in both time and memory, the micro-batch and budget that are fastest at no more
memory. Results: OUT/marathon-SYSTEM.json after every line, and OUT/marathon.md, all engines side by side.
"""

import argparse
import itertools
import json
import os
import sys
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

# This one edits libraries while it is imported, so it comes before all of them.
if "unsloth" in sys.argv and "--system" in sys.argv:
    import unsloth  # noqa: F401

import torch
from peft import PeftModel

from core.models.adapters import attach
from core.models.config import Framework
from core.models.fused.backbone import fuse
from core.models.fused.state import fused_state
from core.models.quantized import base_format
from core.training.benchmark.case import FRAMEWORKS, Case, System
from core.training.benchmark.measuring import Run
from core.training.benchmark.one import against_reference, finite, gpu_state, machine, notices
from core.training.benchmark.reports import Measured, Memory, Parity, Speed, refusal
from core.training.benchmark.systems import Prepared, equip, prepare
from core.training.memory import free_memory
from tests.bench.h200.bases import drawn, reference_of
from tests.bench.h200.limits import Limit, fastest, front
from tests.bench.h200.targets import JOBS, Job, job, line

GRID = tuple(
    job(f"grid {size} {'on' if kept else 'off'}", "llama-8b", "unsloth", micro_batch=size, checkpointing=kept)
    for kept, size in itertools.product((True, False), (8, 4, 2, 1))
)
LEFT_OVER = 256 << 20
"""Bytes of a base that is gone; more than that would count against the next one."""
TINY: dict[str, Any] = {"length": 32, "rows": 4, "has_gpu": False}


class Group(NamedTuple):
    """What lines must share to run on one model."""

    base: str
    storage: str
    is_checkpointed: bool
    window: int


class Marathon:
    """Runs lines and keeps their results."""

    def __init__(self, options: argparse.Namespace) -> None:
        """Go on after what ``--resume`` names."""
        self.options, self.system = options, options.system
        self.began = options.began or time.time()
        self.found: list[dict[str, Any]] = json.loads(options.resume.read_text()) if options.resume else []
        self.compared: set[tuple[str, str]] = {
            (each["case"]["model"].rsplit("/", 1)[-1], each["case"]["storage"]) for each in self.found
        }
        self.state = machine()
        options.out.mkdir(parents=True, exist_ok=True)

    @property
    def file(self) -> Path:
        """Return where the results lie."""
        return Path(self.options.out / f"marathon-{self.system}.json")

    def has_time(self) -> bool:
        """Tell whether another line may start."""
        left: float = self.options.seconds - (time.time() - self.began)
        return left > float(self.options.line_seconds)

    def run(self, jobs: list[Job], limits: list[Limit]) -> None:
        """Run lines, those that share a model together."""
        known = {each["label"] for each in self.found}
        left = [each for each in jobs if each.label not in known]
        for group, members in grouped([(each, self.case(each)) for each in left], self.system):
            mine = [limit for limit in limits if (limit.base, limit.storage) == (group.base, group.storage)]
            if not self.has_time():
                return
            self.run_group(members, [each for each in mine if f"{each.label}: no more" not in known])
            held_over = self.release()
            if held_over > LEFT_OVER:
                self.start_afresh(held_over)

    def case(self, each: Job) -> Case:
        """Return the case of a line."""
        options, more = self.options, dict(each.more)
        more |= {"steps": more.get("steps", options.steps), "warmup": more.get("warmup", options.warmup)}
        if options.tiny:
            more |= TINY | {"micro_batch": min(4, more["micro_batch"])}
        name = f"{each.base}-tiny" if options.tiny else each.base
        folder = str(options.bases / name) if self.system == "unsloth" else each.base
        file = reference_of(options.bases, each.base, each.storage)
        if self.system != "fused":
            more.pop("budget", None)
        return Case(
            system=self.system, model=folder, storage=each.storage, reference=str(file) if file.is_file() else None, **more
        )  # fmt: skip

    def run_group(self, members: list[tuple[Job, Case]], limits: list[Limit]) -> None:
        """Make a base with its adapter, and run every line on it."""
        began = time.monotonic()
        each, case = members[0]
        model = self.adapted(each, case)
        print(f"--- {each.base} {each.storage}: ready after {time.monotonic() - began:.1f} s", flush=True)
        for each, case in members:
            if not self.has_time():
                return
            self.keep(each.label, case, model)
        for limit in limits:
            if not self.has_time():
                return
            self.within(limit, case, model)

    def adapted(self, each: Job, case: Case) -> PeftModel:
        """Return a base with an adapter, as this engine makes them."""
        if self.system == "unsloth":
            return prepare(case).model
        if self.system == "liger":
            patch_with_liger(each.base)
        framework: Framework = FRAMEWORKS[case.system]
        base = drawn(each.base, each.storage, framework, tiny=self.options.tiny)
        return attach(base, case.lora_block())

    def within(self, limit: Limit, case: Case, model: PeftModel) -> None:
        """Run fused at no more memory than another engine took."""
        case = case.model_copy(update={"length": limit.length, "rows": limit.rows, "budget": None})
        began = time.monotonic()
        chosen, tried = fastest(lambda tried: renewed(model, tried), case, limit)
        print(f"  {limit.label} at {limit.peak / 2**30:.2f} GiB: {'; '.join(tried)}, "
              f"{time.monotonic() - began:.0f} s", flush=True)  # fmt: skip
        if chosen is not None:
            self.keep(f"{limit.label}: no more", chosen, model)

    def keep(self, label: str, case: Case, model: PeftModel) -> None:
        """Measure a line and write it down; what goes wrong is in the result."""
        began, parity = time.monotonic(), None
        name = (case.model.rsplit("/", 1)[-1], case.storage)
        prepared: Prepared | None = None
        free_memory()
        try:
            with warnings.catch_warnings(record=True) as told:
                warnings.simplefilter("always", UserWarning)
                prepared = renewed(model, case)
                if case.reference and name not in self.compared:
                    parity = against_reference(prepared, case)
                    self.compared.add(name)
                    prepared = renewed(model, case)
                measured = self.timed(prepared, case, parity)
            measured = measured.model_copy(update={"notes": notices(told, prepared, case)})
        except Exception as error:  # noqa: BLE001 - one failing line must not end the others
            measured = Measured(system=self.system, error=f"{type(error).__name__}: {error}"[:2000])
        prepared = None
        free_memory()
        took = time.monotonic() - began
        self.found.append(
            {"label": label, "case": case.model_dump(mode="json"), "seconds": took, "measured": measured.model_dump(mode="json")}
        )  # fmt: skip
        self.file.write_text(json.dumps(self.found, indent=1))
        why = (refusal(measured) or "") if measured.parity else ""
        print(f"{label:22} {self.system:8} {took:4.0f}s by {case.micro_batch} budget {case.budget} "
              f"{line(measured)} {' '.join(measured.notes)} {why}", flush=True)  # fmt: skip

    def timed(self, prepared: Prepared, case: Case, parity: Parity | None) -> Measured:
        """Time a line."""
        run = Run(prepared, case)
        speed: Speed
        memory: Memory
        speed, memory = run.measure()
        first, last = (finite(run.losses[place]) for place in (0, -1))
        told = self.state | {"base": base_format(prepared.model), "gpu after the steps": gpu_state()}
        return Measured(
            system=self.system, parity=parity, speed=speed, memory=memory, first_loss=first, last_loss=last, machine=told
        )  # fmt: skip

    def release(self) -> int:
        """Let go of a base; return the bytes that stay allocated all the same."""
        torch._dynamo.reset()
        free_memory()
        return torch.cuda.memory_allocated() if torch.cuda.is_available() else 0

    def start_afresh(self, held_over: int) -> None:
        """Go on in a new process: what is held over would count against the next base."""
        print(f"--- {held_over / 2**30:.2f} GiB are not let go of: on in a new process", flush=True)
        command = [sys.executable, "-m", "tests.bench.h200.marathon", *sys.argv[1:]]
        os.execv(sys.executable, [*command, f"--resume={self.file}", f"--began={self.began}"])


def grouped(
    members: list[tuple[Job, Case]], system: System
) -> Iterator[tuple[Group, list[tuple[Job, Case]]]]:
    """Put lines that share a model together; only fused does not mind what is computed again, nor lengths."""
    found: dict[Group, list[tuple[Job, Case]]] = {}
    for each, case in members:
        own = (False, 0) if system == "fused" else (case.checkpointing, case.length)
        found.setdefault(Group(each.base, each.storage, *own), []).append((each, case))
    return iter(found.items())


def patch_with_liger(name: str) -> None:
    """Replace Transformers' modules by Liger's, before the base is made."""
    from liger_kernel.transformers.monkey_patch import MODEL_TYPE_TO_APPLY_LIGER_FN

    from core.models.random_base.making import config_of

    MODEL_TYPE_TO_APPLY_LIGER_FN[config_of(name).model_type]()


def renewed(model: PeftModel, case: Case) -> Prepared:
    """Return a model as it is before its first step: the adapter drawn again, nothing planned, nothing expanded."""
    if case.system == "fused":
        state = fused_state(model)
        if state is not None:
            state.unload()
        free_memory()
        state = fuse(model)
        assert state is not None
        state.is_checkpointed = case.checkpointing
    for parameter in model.parameters():
        parameter.grad = None
    return equip(model, case)


def summary(out: Path) -> str:
    """Lay the lines of all engines out side by side, and write them to OUT/marathon.md."""
    found: dict[str, dict[str, Measured]] = {}
    for file in sorted(out.glob("marathon-*.json")):
        for each in json.loads(file.read_text()):
            label = each["label"].removesuffix(": no more")
            found.setdefault(label, {})[each["case"]["system"]] = Measured.model_validate(each["measured"])
    rows = ["| line | engine | tok/s | ms | peak GiB | reserved | pinned | worst cosine | × unsloth |", "|---|---|---|---|---|---|---|---|---|"]  # fmt: skip
    for label, systems in found.items():
        beside = systems.get("unsloth")
        rows += [row(label, measured, beside) for measured in systems.values()]
    text = "\n".join(rows) + "\n"
    (out / "marathon.md").write_text(text, encoding="utf-8")
    return text


def row(label: str, measured: Measured, beside: Measured | None) -> str:
    """Write one line of the table."""
    if not (measured.speed and measured.memory):
        return f"| {label} | {measured.system} | {(measured.error or '')[:150]} |"
    ms = middle(measured)
    gib = [f"{each / 2**30:.2f}" for each in (measured.memory.allocated, measured.memory.reserved, measured.memory.pinned)]  # fmt: skip
    cosine = f"{measured.parity.worst_cosine:.5f}" if measured.parity else ""
    times = f"{middle(beside) / ms:.2f}" if beside and beside.speed and beside is not measured else ""
    cells = [
        label,
        measured.system,
        f"{measured.speed.tokens / ms * 1e3:,.0f}",
        f"{ms:.1f}",
        *gib,
        cosine,
        times,
    ]
    return "| " + " | ".join(cells) + " |"


def middle(measured: Measured) -> float:
    """Return the median milliseconds of a line."""
    import statistics

    assert measured.speed is not None
    return statistics.median(measured.speed.step_ms)


def chosen_jobs(system: System, wanted: list[str]) -> list[Job]:
    """Return this engine's lines; ``grid`` stands for all lines of the grid."""
    mine = [each for each in (*JOBS, *GRID) if each.system == system]
    names = {name for each in wanted for name in ([g.label for g in GRID] if each == "grid" else [each])}
    return [each for each in mine if each.label in names]


def parsed() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--system", choices=("fused", "hf", "liger", "unsloth"), default="fused")
    parser.add_argument("--lines", default="8b,8b off")
    parser.add_argument("--limits", type=Path, help="another engine's results, for fused at no more memory")
    parser.add_argument("--bases", type=Path, default=Path("/dev/shm/bases"))
    parser.add_argument("--seconds", type=float, default=560)
    parser.add_argument("--line-seconds", type=float, default=50, help="no line is started with less left")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--warmup", type=int, default=3)
    parser.add_argument("--resume", type=Path)
    parser.add_argument("--began", type=float, default=0.0)
    parser.add_argument("--tiny", action="store_true")
    return parser.parse_args()


def main() -> None:
    """Run what there is time for, and print all engines side by side."""
    options = parsed()
    options.bases = options.bases.resolve()
    limits = front(json.loads(options.limits.read_text())) if options.limits else []
    jobs = chosen_jobs(options.system, options.lines.split(","))
    if limits and not jobs:
        # A base for the limits alone.
        jobs = [job("8b", "llama-8b", "fused", budget=0.4)]
    Marathon(options).run(jobs, limits)
    print(summary(options.out), flush=True)


if __name__ == "__main__":
    main()
