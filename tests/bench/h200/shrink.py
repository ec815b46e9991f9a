"""Training on a GPU whose memory really runs out, beside the same training with room.

    python -m tests.bench.h200.shrink OUT [--model llama-1b] [--limits 6.3,3.8] [--tiny]
    python -m tests.bench.h200.shrink OUT --framework fused --limits 9,6:12 --together

Every case is a process of its own, or with ``--together`` one after the other in this one: ten steps of QLoRA through
core.training.sft.finetune, 8 x 2048 tokens, with PyTorch's share of the GPU capped (CUDA refuses the rest with its own
out-of-memory error). A limit is GiB, or GiB:BUDGET where the fused engine is granted so many GiB for activations;
without one it plans for the whole card, which is more than the cap lets it have. Writes OUT/shrink.json.
"""

import argparse
import json
import shutil
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any, NamedTuple

from core.models.random_base.making import make_model

STEPS, BATCH, LENGTH, PROMPT = 10, 8, 2048, 48


class Limit(NamedTuple):
    """What a case may have."""

    gib: float
    """0 for the whole card."""
    budget: float | None = None

    @classmethod
    def parse(cls, text: str) -> "Limit":
        """Read GIB or GIB:BUDGET."""
        gib, _, budget = text.partition(":")
        return cls(float(gib), float(budget) if budget else None)

    @property
    def text(self) -> str:
        """Its spelling on the command line."""
        return f"{self.gib:g}" + ("" if self.budget is None else f":{self.budget:g}")


class Losses:
    """A sink that keeps the losses, and how often less was kept."""

    def __init__(self) -> None:
        """Start empty."""
        self.losses: dict[int, float] = {}
        self.reliefs = 0

    def log(self, step: int, metrics: Any) -> None:
        """Take what a step says."""
        if "loss" in metrics:
            self.losses[step] = float(metrics["loss"])
        self.reliefs = int(metrics.get("reliefs", self.reliefs))


def child(base: Path, limit: Limit, target: Path, options: argparse.Namespace) -> None:
    """Train under a limit, and write what happened."""
    import torch

    from core.training.sft import finetune

    if torch.cuda.is_available():
        whole = torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction(limit.gib * 2**30 / whole if limit.gib else 1.0)
    adapted, sink, checkpoints = (
        loaded(base, options.framework),
        Losses(),
        target.parent / f"checkpoints-{target.stem}",
    )
    # Those of an earlier call would be resumed.
    shutil.rmtree(checkpoints, ignore_errors=True)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always", UserWarning)
        tuned = finetune(
            adapted, inputs(adapted.config.get_text_config().vocab_size, 64 if options.tiny else LENGTH), settings(limit),
            checkpoints=checkpoints, fingerprint=limit.text, sink=sink,
            on_checkpoint=lambda: None, on_start=lambda progress: None,
        )  # fmt: skip
    found = {
        "limit_gib": limit.gib, "budget_gib": limit.budget, "losses": [sink.losses[step] for step in sorted(sink.losses)],
        "micro_batch": tuned.micro_batch, "accumulation": tuned.accumulation, "shrinks": tuned.progress.shrinks,
        "reliefs": sink.reliefs, "peak_gib": tuned.peak_memory / 2**30, "seconds": tuned.seconds,
        "notices": sorted({str(each.message) for each in told if "Notice" in each.category.__name__}),
    }  # fmt: skip
    target.write_text(json.dumps(found))


def loaded(base: Path, framework: str) -> Any:
    """Load the base in 4 bits and put the adapter on it."""
    import torch

    from core.models.adapters import attach
    from core.models.config import LoraConfig, ModelConfig
    from core.models.loading import load_model

    block = {
        "name": str(base), "load_in_4bit": True, "max_seq_length": LENGTH, "framework": framework,
        "dtype": "bfloat16" if torch.cuda.is_available() else None,
    }  # fmt: skip
    model = load_model(ModelConfig.model_validate(block), trainable=True)
    return attach(model, LoraConfig(r=16, lora_alpha=16, use_gradient_checkpointing=True))


def settings(limit: Limit) -> Any:
    """Return the training block."""
    from core.training.config import TrainingConfig

    return TrainingConfig(
        per_device_train_batch_size=BATCH, gradient_accumulation_steps=1, max_steps=STEPS, eval_steps=STEPS,
        save_steps=STEPS, optim="adamw_8bit", warmup_steps=1,
        activation_budget="auto" if limit.budget is None else limit.budget,
    )  # fmt: skip


def inputs(vocabulary: int, length: int) -> Any:
    """Draw examples of equal length."""
    import torch

    from core.data.chat import IGNORE_INDEX, Encoded
    from core.training.rows import SftInputs

    draw = torch.Generator().manual_seed(0)
    rows = torch.randint(3, min(vocabulary, 50_000), (STEPS * BATCH, length), generator=draw).tolist()
    muted = min(PROMPT, length // 2)
    examples = [Encoded(ids, [IGNORE_INDEX] * muted + ids[muted:]) for ids in rows]
    return SftInputs(examples, examples[:BATCH], 0)


def run(base: Path, limit: Limit, target: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Carry out a case, here or in a process of its own."""
    if options.together:
        from core.training.memory import free_memory

        child(base, limit, target, options)
        free_memory()
    else:
        command = [
            sys.executable,
            "-m",
            "tests.bench.h200.shrink",
            str(options.out),
            "--framework",
            options.framework,
        ]
        command += ["--child", str(base), limit.text, str(target), *(["--tiny"] if options.tiny else [])]
        subprocess.run(command, check=True)
    found: dict[str, Any] = json.loads(target.read_text())
    return found


def parsed() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--model", default="llama-1b")
    parser.add_argument("--framework", default="hf")
    parser.add_argument("--limits", default="6.3,3.8", help="GiB or GiB:BUDGET")
    parser.add_argument("--layers", type=int, help="another depth than the published one")
    parser.add_argument("--scratch", type=Path, default=Path("/dev/shm/shrink"))
    parser.add_argument("--together", action="store_true", help="all cases in one process")
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--child", nargs=3, metavar=("BASE", "LIMIT", "TARGET"))
    return parser.parse_args()


def main() -> None:
    """Make the base and run every case."""
    options = parsed()
    if options.child:
        base, limit, target = options.child
        child(Path(base), Limit.parse(limit), Path(target), options)
        return
    base = options.scratch / f"{options.model}-{options.layers or 'all'}{'-tiny' * options.tiny}"
    if not (base / "generation_config.json").is_file():
        make_model(options.model, base, tiny=options.tiny, layers=options.layers)
    options.out.mkdir(parents=True, exist_ok=True)
    results: list[dict[str, Any]] = []
    for limit in (Limit(0.0), *map(Limit.parse, filter(None, options.limits.split(",")))):
        target = options.scratch / f"limit-{limit.text.replace(':', '-')}.json"
        results.append(run(base, limit, target, options))
        apart = [abs(a - b) for a, b in zip(results[0]["losses"], results[-1]["losses"], strict=True)]
        results[-1] |= {
            "largest_loss_difference": max(apart),
            "equal_losses": sum(each == 0 for each in apart),
        }
        print(json.dumps({k: v for k, v in results[-1].items() if k != "losses"}), flush=True)
        (options.out / "shrink.json").write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
