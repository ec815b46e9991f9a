"""Training on a GPU whose memory really runs out, beside the same training with room.

    python -m tests.bench.h200.shrink OUT [--model llama-1b] [--limits 6.3,3.8] [--tiny]

Every case is a process of its own: ten steps of QLoRA through core.training.sft.finetune, 8 x 2048 tokens, with
PyTorch's share of the GPU capped (CUDA refuses the rest with its own out-of-memory error). Writes OUT/shrink.json.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from core.models.random_base.making import make_model

STEPS, BATCH, LENGTH, PROMPT = 10, 8, 2048, 48


def child(base: Path, limit: float, target: Path, tiny: bool) -> None:
    """Train under a limit of so many GiB, 0 for none, and write what happened."""
    import torch

    from core.models.adapters import attach
    from core.models.config import LoraConfig, ModelConfig
    from core.models.loading import load_model
    from core.training.config import TrainingConfig
    from core.training.sft import finetune

    if limit:
        whole = torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction(limit * 2**30 / whole)
    model = ModelConfig(name=str(base), load_in_4bit=True, max_seq_length=LENGTH, dtype="bfloat16")
    lora = LoraConfig(r=16, lora_alpha=16, use_gradient_checkpointing=True)
    adapted = attach(load_model(model, trainable=True), lora)
    config = TrainingConfig(
        per_device_train_batch_size=BATCH, gradient_accumulation_steps=1, max_steps=STEPS, eval_steps=STEPS,
        save_steps=STEPS, optim="adamw_8bit", warmup_steps=1,
    )  # fmt: skip
    losses: dict[int, float] = {}

    class Sink:
        def log(self, step: int, metrics: Any) -> None:
            if "loss" in metrics:
                losses[step] = float(metrics["loss"])

    tuned = finetune(
        adapted, inputs(adapted.config.get_text_config().vocab_size, 64 if tiny else LENGTH), config,
        checkpoints=target.parent / f"checkpoints-{limit:g}", fingerprint=f"{limit:g}", sink=Sink(),
        on_checkpoint=lambda: None, on_start=lambda progress: None,
    )  # fmt: skip
    told = {
        "limit_gib": limit, "losses": [losses[step] for step in sorted(losses)], "micro_batch": tuned.micro_batch,
        "accumulation": tuned.accumulation, "shrinks": tuned.progress.shrinks, "peak_gib": tuned.peak_memory / 2**30,
        "seconds": tuned.seconds,
    }  # fmt: skip
    target.write_text(json.dumps(told))


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


def main() -> None:
    """Make the base and run every case."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--model", default="llama-1b")
    parser.add_argument("--limits", default="6.3,3.8", help="GiB")
    parser.add_argument("--scratch", type=Path, default=Path("/dev/shm/shrink"))
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--child", nargs=3, metavar=("BASE", "LIMIT", "TARGET"))
    options = parser.parse_args()
    if options.child:
        base, limit, target = options.child
        child(Path(base), float(limit), Path(target), options.tiny)
        return
    base = options.scratch / options.model
    if not base.is_dir():
        make_model(options.model, base, tiny=options.tiny)
    options.out.mkdir(parents=True, exist_ok=True)
    results = []
    for limit in (0.0, *map(float, filter(None, options.limits.split(",")))):
        target = options.scratch / f"limit-{limit:g}.json"
        command = [sys.executable, "-m", "tests.bench.h200.shrink", str(options.out)]
        command += ["--child", str(base), str(limit), str(target), *(["--tiny"] if options.tiny else [])]
        subprocess.run(command, check=True)
        results.append(json.loads(target.read_text()))
        roomy = results[0]["losses"]
        apart = max(abs(a - b) for a, b in zip(roomy, results[-1]["losses"], strict=True))
        results[-1]["largest_loss_difference"] = apart
        print(json.dumps({k: v for k, v in results[-1].items() if k != "losses"}), flush=True)
        (options.out / "shrink.json").write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
