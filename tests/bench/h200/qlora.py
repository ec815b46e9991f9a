"""QLoRA through the whole pipeline on one GPU: speed, memory, the live status file, kill and resume.

    python -m tests.bench.h200.qlora OUT [--cases llama-1b:hf,llama-1b:hf:kill] [--budget 520] [--tiny]

A case is MODEL:FRAMEWORK[:kill]. Each is one ``factory run ... --until finetune`` in a process of its own, over a base
that is made on the spot; ``:kill`` ends the process with SIGKILL near step 40, runs the same command again, and
compares the losses with those of the same case without a kill. Results are written after every case to
OUT/qlora.json and OUT/qlora.md; a case that would not end within the budget is left out, and says so.
"""

import argparse
import itertools
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from tests.bench.h200.table import line, table
from tests.bench.h200.watcher import Watcher, logged_at, logged_losses, phase_seconds, told_at

ROOT = Path(__file__).parents[3]
KILL_AT = 40
CASES = (
    "llama-1b:hf,llama-1b:unsloth,llama-1b:hf:kill,llama-8b:unsloth,qwen3-4b:unsloth,qwen3-4b:hf,llama-8b:hf,"
    "llama-1b:unsloth:kill"
)
SECONDS = {
    "llama-1b:hf": 100, "llama-1b:unsloth": 85, "llama-1b:hf:kill": 135, "llama-1b:unsloth:kill": 130,
    "qwen3-4b:hf": 150, "qwen3-4b:unsloth": 120, "llama-8b:hf": 230, "llama-8b:unsloth": 160,
    "gemma3-1b:hf": 120, "gemma3-1b:unsloth": 100, "gemma3-4b:hf": 200, "gemma3-4b:unsloth": 150,
}  # fmt: skip
"""What a case takes, models and merging included, as far as one call could tell."""
SIZES_GB = {"llama-1b": 2.5, "llama-8b": 16, "qwen3-4b": 8, "gemma3-1b": 2, "gemma3-4b": 8}


class Load(NamedTuple):
    """What every step puts on the device."""

    micro_batch: int
    length: int
    steps: int
    rows: int


BATCHES = {"llama-8b": 2}
"""Micro-batches other than 4, so that 100 steps of every case fit into a lease."""


class Case(NamedTuple):
    """One line of the table."""

    model: str
    framework: str
    kill: bool

    @classmethod
    def parse(cls, text: str) -> "Case":
        """Read MODEL:FRAMEWORK[:kill]."""
        model, framework, *rest = text.split(":")
        return cls(model, framework, rest == ["kill"])

    @property
    def name(self) -> str:
        """Its spelling on the command line."""
        return f"{self.model}:{self.framework}" + (":kill" if self.kill else "")


def config_of(case: Case, base: Path, rows: Path, load: Load, tiny: bool) -> dict[str, Any]:
    """Return the run's whole config."""
    return {
        "name": f"{case.model}-{case.framework}",
        "model": {
            "name": str(base), "framework": case.framework, "max_seq_length": max(256, load.length),
            "load_in_4bit": True, **({} if tiny else {"dtype": "bfloat16"}),
        },
        "lora": {"r": 16, "lora_alpha": 16, "lora_dropout": 0.0, "use_gradient_checkpointing": "unsloth"},
        "training": {
            "per_device_train_batch_size": load.micro_batch, "gradient_accumulation_steps": 1,
            "max_steps": load.steps, "warmup_steps": 5, "learning_rate": 2e-4, "optim": "adamw_8bit",
            "eval_steps": load.steps, "save_steps": max(1, load.steps // 5), "logging_steps": 1, "packing": False,
        },
        "sources": [{"path": str(rows)}],
        "split": {"strategy": "random", "train": 0.9, "val": 0.05, "test": 0.05, "near_threshold": None},
        "evaluation": {
            "primary_metric": "exact_match", "metrics": ["exact_match"], "max_new_tokens": 4, "batch_size": 4,
            "max_examples": 4, "resamples": 1000, "baseline": {"arms": ["zero_shot"]}, "general": {"enabled": False},
        },
        "quantization": {"formats": ["Q8_0"]},
        "deployment": {"domain": "invented words", "languages": ["en"]},
        "gates": {
            "dataset_validated": {"min_rows": 10, "min_test": 1, "ratio_tolerance": 0.2},
            "baseline_established": {"min_examples": 1},
        },
    }  # fmt: skip


class Bench:
    """Runs cases and keeps their results."""

    def __init__(self, out: Path, scratch: Path, tiny: bool, steps: int, micro_batch: int | None) -> None:
        self.out, self.scratch, self.tiny, self.steps, self.micro_batch = (
            out,
            scratch,
            tiny,
            steps,
            micro_batch,
        )
        self.until_trained = False
        self.began = time.monotonic()
        self.results: list[dict[str, Any]] = []
        out.mkdir(parents=True, exist_ok=True)

    def load_of(self, case: Case) -> Load:
        """Choose the batch: 8192 tokens a step, half of that for 8B."""
        if self.tiny:
            return Load(self.micro_batch or 2, 256, self.steps, 60)
        return Load(self.micro_batch or BATCHES.get(case.model, 4), 2048, self.steps, 240)

    def base_of(self, case: Case) -> tuple[Path, float]:
        """Make the base once; only one of the large ones is kept."""
        base = self.scratch / "models" / case.model
        if (base / "generation_config.json").is_file():
            return base, 0.0
        for other in (self.scratch / "models").glob("*"):
            shutil.rmtree(other)
        command = [
            sys.executable,
            "-m",
            "tests.bench.h200.make_models",
            str(base.parent),
            "--models",
            case.model,
        ]
        began = time.monotonic()
        subprocess.run(
            [*command, *(["--tiny"] if self.tiny else [])], cwd=ROOT, check=True, env=environment()
        )
        return base, time.monotonic() - began

    def run(self, case: Case) -> None:
        """Run one case from making its base to reading its numbers."""
        began = time.monotonic()
        try:
            found = self._measured(case)
        except Exception as error:  # noqa: BLE001 - one failing case must not end the others
            found = {"case": case.name, "error": f"{type(error).__name__}: {error}"[:2000]}
        self.results.append({**found, "case_s": round(time.monotonic() - began, 1)})
        self.write()

    def _measured(self, case: Case) -> dict[str, Any]:
        load = self.load_of(case)
        base, making = self.base_of(case)
        rows, mean = self._rows(base, load)
        workspace = self.scratch / "runs" / case.name.replace(":", "-")
        shutil.rmtree(workspace, ignore_errors=True)
        config = self.scratch / f"{case.model}-{case.framework}.yaml"
        config.write_text(yaml.safe_dump(config_of(case, base, rows, load, self.tiny)), encoding="utf-8")
        kill_at = max(2, round(load.steps * KILL_AT / 100)) if case.kill else None
        parts = [self._factory(case, config, workspace, kill_at)]
        if case.kill:
            parts.append(self._factory(case, config, workspace, None))
        found = {
            "case": case.name, "tokens_per_step": round(mean * load.micro_batch), "shape": [load.micro_batch, load.length],
            "made_base_s": round(making, 1), **parts[-1], **self._numbers(case, workspace, mean * load.micro_batch),
        }  # fmt: skip
        if case.kill:
            found |= {"killed": parts[0]["watch"], **self._against_untouched(case, found["losses"])}
        # The merged model is large and read no more.
        shutil.rmtree(workspace / "models/checkpoints/merged", ignore_errors=True)
        return found

    def _rows(self, base: Path, load: Load) -> tuple[Path, float]:
        from transformers import AutoTokenizer

        from tests.bench.h200.make_models import make_rows

        rows = self.scratch / f"rows-{base.name}.jsonl"
        return rows, make_rows(rows, AutoTokenizer.from_pretrained(base), load.rows, load.length)

    def _factory(self, case: Case, config: Path, workspace: Path, kill_at: int | None) -> dict[str, Any]:
        note, log = self.scratch / "note.json", self.scratch / "log.txt"
        note.unlink(missing_ok=True)
        command = [sys.executable, "-m", "tests.bench.h200.inside", str(note), str(workspace), "run", str(config),
                   "--workspace", str(workspace), "--until", "finetune", "--json"]  # fmt: skip
        began = time.monotonic()
        with log.open("wb") as sink:
            child = subprocess.Popen(
                command,
                cwd=ROOT,
                env=environment(),
                stdout=sink,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            status = workspace / ".factory/training-status.json"
            watcher = Watcher(status, child.pid, kill_at, until_trained=self.until_trained and not kill_at)
            watcher.start()
            code = child.wait()
        watcher.done.set()
        watcher.join()
        self._keep_log(case, log)
        problem = ""
        if not watcher.has_trained and code != (-signal.SIGKILL if kill_at else 0):
            problem = f"exit code {code}: {log.read_text(errors='replace')[-1500:]}"
            if kill_at or "finetune" not in phase_seconds(log):
                raise RuntimeError(problem)
        memory = json.loads(note.read_text()) if note.is_file() else {}
        phases = phase_seconds(log)
        seconds = round(time.monotonic() - began, 1)
        told = {"exit": code, "run_s": seconds, "watch": watcher.told(), "memory": memory, "phase_s": phases}
        return told | ({"problem": problem} if problem else {})

    def _keep_log(self, case: Case, log: Path) -> None:
        with (self.out / "logs.txt").open("a", encoding="utf-8") as kept:
            text = log.read_text(encoding="utf-8", errors="replace")
            kept.write(f"\n===== {case.name}\n{text[:6000]}\n ... \n{text[-6000:]}\n")

    def _numbers(self, case: Case, workspace: Path, tokens: float) -> dict[str, Any]:
        stats_file = workspace / "metrics/training-stats.json"
        stats = json.loads(stats_file.read_text()) if stats_file.is_file() else {}
        losses = logged_losses(workspace / "logs/training.log")
        stamps = logged_at(self.scratch / "home/mlflow.db", f"{case.model}-{case.framework}")
        # What is ended before its end has recorded nothing yet.
        stamps = stamps or told_at(self.scratch / "log.txt")
        gaps = [later - sooner for sooner, later in itertools.pairwise(stamps[4:])]
        step = statistics.median(gaps) if gaps else float("nan")
        keys = ("peak_memory_bytes", "tokens_per_second", "merge_error", "micro_batch", "base_format", "steps", "seconds",
                "trainable_parameters", "parameters", "device")  # fmt: skip
        return {
            "losses": losses, "loss_first": losses[0], "loss_last": losses[-1], "step_ms": step,
            "step_ms_p10_p90": [percentile(gaps, 10), percentile(gaps, 90)], "n_steps_timed": len(gaps),
            "tokens_per_s": round(tokens / step * 1000) if step == step and step > 0 else None,
            "report": {key: stats[key] for key in keys if key in stats},
        }  # fmt: skip

    def _against_untouched(self, case: Case, losses: list[float]) -> dict[str, Any]:
        same = next(
            (r for r in self.results if r["case"] == case._replace(kill=False).name and "losses" in r), None
        )
        if same is None:
            return {"largest_loss_difference": None}
        apart = [abs(a - b) for a, b in zip(losses, same["losses"], strict=True)]
        return {
            "largest_loss_difference": max(apart),
            "equal_losses": sum(d == 0 for d in apart),
            "last_loss_difference": apart[-1],
        }

    def write(self) -> None:
        """Write all results so far."""
        (self.out / "qlora.json").write_text(
            json.dumps({"machine": machine(), "results": self.results}, indent=1)
        )
        (self.out / "qlora.md").write_text(table(self.results))


def environment() -> dict[str, str]:
    """Return what a run sees: no network, no statistics, a home of its own."""
    return {
        **os.environ, "HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "UNSLOTH_DISABLE_STATISTICS": "1",
        "UNSLOTH_COMPILE_LOCATION": "/tmp/unsloth_compiled",
        "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])),
    }  # fmt: skip


def percentile(values: list[float], share: int) -> float | None:
    """Return a percentile by the nearest rank."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, len(ordered) * share // 100)] if ordered else None


def machine() -> dict[str, Any]:
    """Name what the numbers were taken on."""
    from importlib.metadata import PackageNotFoundError, version

    import torch

    def installed(name: str) -> str | None:
        try:
            return version(name)
        except PackageNotFoundError:
            return None

    names = (
        "torch",
        "triton",
        "transformers",
        "peft",
        "accelerate",
        "bitsandbytes",
        "unsloth",
        "unsloth-zoo",
        "trl",
    )
    gpu = torch.cuda.get_device_name(0) if torch.cuda.is_available() else "cpu"
    return {"gpu": gpu, "cuda": torch.version.cuda, **{name: installed(name) for name in names}}


def pick_scratch(asked: Path | None, need_gb: float) -> Path:
    """Choose where models lie: main memory if it has room, else the disk."""
    if asked:
        return asked
    shm = Path("/dev/shm")
    roomy = shm.is_dir() and shutil.disk_usage(shm).free > need_gb * 1.3 * 2**30
    return (shm if roomy else Path("/tmp")) / "h200"


def main() -> None:
    """Run the cases in order of importance until the budget is spent."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--cases", default=CASES)
    parser.add_argument("--budget", type=float, default=520, help="seconds of this call")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--micro-batch", type=int)
    parser.add_argument("--scratch", type=Path)
    parser.add_argument("--until-trained", action="store_true", help="end each run before it merges")
    parser.add_argument("--tiny", action="store_true", help="toy sizes, to try this on a CPU")
    options = parser.parse_args()
    cases = [Case.parse(text) for text in options.cases.split(",")]
    need = 2.2 * max(SIZES_GB[case.model] for case in cases) if not options.tiny else 0.1
    scratch = pick_scratch(options.scratch, need)
    os.environ.setdefault("FACTORY_HOME", str(scratch / "home"))
    os.environ.setdefault("FACTORY_CACHE", str(scratch / "cache"))
    bench = Bench(options.out, scratch, options.tiny, options.steps, options.micro_batch)
    bench.until_trained = options.until_trained
    for case in cases:
        left = options.budget - (time.monotonic() - bench.began)
        if not options.tiny and SECONDS.get(case.name, 300) > left:
            bench.results.append({"case": case.name, "error": f"left out: {left:.0f} s of the budget left"})
            bench.write()
            continue
        print(f"--- {case.name}", flush=True)
        bench.run(case)
        print(line(bench.results[-1]), flush=True)
    bench.write()


if __name__ == "__main__":
    main()
