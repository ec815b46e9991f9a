"""Loss curves of the fused engine beside those of hf, on rows that can be learned.

    python -m tests.bench.h200.curves OUT [--models llama-1b,qwen3-4b,gemma3-1b] [--steps 300] [--layers N] [--tiny]

Every run is a process of its own, or with ``--together`` one after the other in this one: QLoRA through core.training.sft.finetune, as `factory run` trains, on the rows of
lessons.py, about 4096 tokens a step. `hf` and `fused` differ in nothing but the engine; `hf-seed` is hf with other first
weights of the adapter on the same rows, and its distance to `hf` is the noise that the distance of `fused` is held
against. `fused-packed` puts the same rows end to end and is held against hf's by the loss on validation rows.
`fused-frugal` may keep nothing, `hf-order` takes the rows in another order, `hf-again` is hf once more.

Writes OUT/curves.json and OUT/curves.md after every model, and OUT/curves-MODEL.png where matplotlib is installed.
"""

import argparse
import importlib.util
import json
import shutil
import subprocess
import sys
import time
import traceback
import warnings
from pathlib import Path
from typing import Any, NamedTuple

from core.models.config import Framework
from tests.bench.h200.lessons import entropy, make_lessons, rows
from tests.bench.h200.overlay import RULE, WIDTH, compare, smoothed, table

ROOT = Path(__file__).parents[3]
VALIDATION = 36
"""Rows of which the loss is taken now and then."""
LOOKS = 6
"""How often."""
AMPLIFIED = 6
"""The square root of how many times wider a real model is than a tiny one, roughly."""


class Variant(NamedTuple):
    """How a run differs from the plain one of hf."""

    framework: Framework = "hf"
    adapter: int = 0
    """Added to the seed of the adapter's first weights."""
    order: int = 0
    """Added to the seed of the order of rows."""
    packing: bool = False
    budget: float | None = None
    """GiB of activations; None lets the engine choose."""


VARIANTS = {
    "hf": Variant(),
    "fused": Variant("fused"),
    "hf-seed": Variant(adapter=1),
    "hf-order": Variant(order=1),
    "hf-again": Variant(),
    "fused-packed": Variant("fused", packing=True),
    "fused-frugal": Variant("fused", budget=0.0),
}


class Load(NamedTuple):
    """What a step is made of."""

    rows: int
    shortest: int
    """Tokens of a row."""
    longest: int
    packed: int
    """Rows of a step when several share one."""

    @property
    def window(self) -> int:
        """Return the tokens of a packed row, so that a step has as many tokens either way."""
        return self.rows * (self.shortest + self.longest) // 2 // self.packed


REAL, TINY = Load(12, 192, 448, 3), Load(4, 24, 56, 2)


def child(base: Path, name: str, target: Path, options: argparse.Namespace) -> None:
    """Train one run, and write its curve."""
    from core.models.adapters import attach
    from core.models.config import LoraConfig, ModelConfig
    from core.models.loading import load_model
    from core.sinks import ListSink
    from core.training.sft import finetune

    variant, sink = VARIANTS[name], ListSink()
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always", UserWarning)
        model = ModelConfig(
            name=str(base), framework=variant.framework, dtype=None if options.tiny else "bfloat16",
            load_in_4bit=not options.unquantized,
        )  # fmt: skip
        # Without recomputation hf takes a third less time; the fused engine plans what it keeps.
        lora = LoraConfig(
            r=16, lora_alpha=16, random_state=3407 + variant.adapter,
            use_gradient_checkpointing=variant.framework == "fused",
        )  # fmt: skip
        adapted = attach(load_model(model, trainable=True), lora)
        vocabulary = adapted.config.get_text_config().vocab_size
        tuned = finetune(
            adapted, inputs(vocabulary, options), settings(variant, options), checkpoints=target.with_suffix(""),
            fingerprint=name, sink=sink, on_checkpoint=lambda: None, on_start=lambda progress: None,
        )  # fmt: skip
    result = {
        "losses": tuned.progress.losses, "validation": tuned.progress.eval_losses,
        "norms": [row["grad_norm"] for _, row in sink.rows if "grad_norm" in row], "seconds": tuned.seconds,
        "tokens_per_second": tuned.tokens_per_second, "peak_gib": tuned.peak_memory / 2**30,
        "micro_batch": tuned.micro_batch, "accumulation": tuned.accumulation, "vocabulary": vocabulary,
        "device": tuned.device, "base": tuned.base_format, "notices": notices(told),
    }  # fmt: skip
    target.write_text(json.dumps(result), encoding="utf-8")


def settings(variant: Variant, options: argparse.Namespace) -> Any:
    """Return the training block."""
    from core.training.config import TrainingConfig

    load, steps = load_of(options), options.steps
    return TrainingConfig(
        per_device_train_batch_size=load.packed if variant.packing else load.rows, gradient_accumulation_steps=1,
        max_steps=steps, warmup_steps=max(1, steps // 30), learning_rate=options.rate, lr_scheduler_type="cosine",
        optim="adamw_torch", eval_steps=max(1, steps // LOOKS), save_steps=steps, load_best_model_at_end=False,
        packing=variant.packing, seed=3407 + variant.order,
        activation_budget="auto" if variant.budget is None else variant.budget,
    )  # fmt: skip


def inputs(vocabulary: int, options: argparse.Namespace) -> Any:
    """Draw the rows; they are the same for every run."""
    from core.training.rows import SftInputs

    load, lessons = load_of(options), make_lessons(vocabulary)
    train = rows(lessons, options.steps * load.rows, load.shortest, load.longest)
    val = rows(lessons, VALIDATION, load.shortest, load.longest, seed=1)
    return SftInputs(train, val, pad_id=0, window=load.window)


def notices(told: list[warnings.WarningMessage]) -> list[str]:
    """Return what the engine said about itself."""
    from core.models.frameworks import FrameworkNotice
    from core.models.fused.state import FusedNotice

    kinds = (FrameworkNotice, FusedNotice)
    return sorted({f"{w.category.__name__}: {w.message}" for w in told if issubclass(w.category, kinds)})


def load_of(options: argparse.Namespace) -> Load:
    """Choose the size of a step."""
    load = TINY if options.tiny else REAL
    return load if options.rows is None else load._replace(rows=options.rows)


def measured(model: str, base: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Carry out every run on one base."""
    found: dict[str, Any] = {}
    for name in options.runs.split(","):
        target = options.scratch / f"{base.name}-{name}.json"
        target.unlink(missing_ok=True)
        # Checkpoints of an earlier call would be resumed.
        shutil.rmtree(target.with_suffix(""), ignore_errors=True)
        began = time.monotonic()
        problem = (here if options.together else apart)(base, name, target, options)
        if problem or not target.is_file():
            found[name] = {"error": problem}
            print(f"{model} {name}: failed\n{problem}", flush=True)
            continue
        found[name] = json.loads(target.read_text(encoding="utf-8"))
        found[name]["process_s"] = time.monotonic() - began
        losses = found[name]["losses"]
        print(f"{model} {name}: {losses[0]:.4f} -> {smoothed(losses)[-1]:.4f}, {found[name]['seconds']:.1f} s of "
              f"training, {found[name]['process_s']:.1f} s in all", flush=True)  # fmt: skip
    return found


def apart(base: Path, name: str, target: Path, options: argparse.Namespace) -> str:
    """Carry out a run in a process of its own; return what went wrong."""
    command = [sys.executable, "-m", "tests.bench.h200.curves", str(options.out), *passed_on(options)]
    done = subprocess.run([*command, "--child", str(base), name, str(target)], cwd=ROOT, check=False,
                          capture_output=True, text=True)  # fmt: skip
    return done.stderr[-2000:] if done.returncode else ""


def here(base: Path, name: str, target: Path, options: argparse.Namespace) -> str:
    """Carry out a run in this process; return what went wrong."""
    from core.training.memory import free_memory

    try:
        child(base, name, target, options)
    except Exception:  # noqa: BLE001 - one failing run must not end the others
        return traceback.format_exc()[-2000:]
    finally:
        free_memory()
    return ""


def passed_on(options: argparse.Namespace) -> list[str]:
    """Return what a child has to know."""
    flags = [f"--{name}" for name in ("tiny", "unquantized") if getattr(options, name)]
    rows = [] if options.rows is None else ["--rows", str(options.rows)]
    return ["--steps", str(options.steps), "--rate", str(options.rate), *rows, *flags]


def plot(model: str, runs: dict[str, Any], target: Path) -> None:
    """Draw the curves, smoothed, and their distances to hf's."""
    if importlib.util.find_spec("matplotlib") is None:
        return
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (above, below) = pyplot.subplots(2, 1, figsize=(9, 8), sharex=True, height_ratios=[2, 1])
    known = {name: smoothed(run["losses"]) for name, run in runs.items() if "losses" in run}
    for name, losses in known.items():
        style = "--" if name == "fused" else "-"
        above.plot(range(1, len(losses) + 1), losses, style, label=name, linewidth=1.2)
        if name != "hf" and "hf" in known and "packed" not in name:
            apart = [abs(a - b) for a, b in zip(losses, known["hf"], strict=True)]
            below.semilogy(
                range(1, len(apart) + 1), [max(each, 1e-9) for each in apart], label=f"{name} - hf"
            )
    above.set_title(f"{model}: QLoRA r = 16, loss per labelled token (mean of {WIDTH} steps)")
    above.legend(), below.legend()
    above.grid(alpha=0.3), below.grid(alpha=0.3)
    below.set_xlabel("optimizer step"), below.set_ylabel("distance to hf")
    figure.tight_layout()
    figure.savefig(target, dpi=110)
    pyplot.close(figure)


def amplify(base: Path) -> None:
    """Make the weights of a tiny base so large that its layers and its head do as much as those of a wide one.

    Otherwise its logits lie within one of each other whatever an adapter does, and nothing could be learned.
    """
    from safetensors.torch import load_file, save_file

    for file in base.glob("model-*.safetensors"):
        tensors = {
            name: each * AMPLIFIED if each.ndim > 1 else each for name, each in load_file(file).items()
        }
        save_file(tensors, file, metadata={"format": "pt"})


def report(results: dict[str, Any], options: argparse.Namespace) -> None:
    """Write everything that is known so far."""
    (options.out / "curves.json").write_text(json.dumps(results), encoding="utf-8")
    load = load_of(options)
    words = (
        f"# Loss curves, fused beside hf\n\n{options.steps} steps of {load.rows} rows of {load.shortest} to "
        f"{load.longest} tokens, half of each learned; learning rate {options.rate:g}, cosine; an order-2 chain of "
        f"{entropy():.2f} nats with copied spans.\n\n{RULE}\n\n"
    )
    (options.out / "curves.md").write_text(words + table(results), encoding="utf-8")


def parsed() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--models", default="llama-1b,qwen3-4b,gemma3-1b")
    parser.add_argument("--runs", default="hf,fused,hf-seed,fused-packed", help=", ".join(VARIANTS))
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--rate", type=float, default=5e-4, help="learning rate")
    parser.add_argument("--layers", type=int, help="of every model; the published depth if not given")
    parser.add_argument("--unquantized", action="store_true", help="LoRA instead of QLoRA")
    parser.add_argument("--scratch", type=Path, default=Path("/dev/shm/curves"))
    parser.add_argument("--rows", type=int, help="of a step")
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--together", action="store_true", help="all runs in one process")
    parser.add_argument("--child", nargs=3, metavar=("BASE", "RUN", "TARGET"))
    return parser.parse_args()


def main() -> int:
    """Make the bases, and carry out every run on each."""
    options = parsed()
    if options.child:
        base, name, target = options.child
        child(Path(base), name, Path(target), options)
        return 0
    from core.models.random_base.making import make_model
    from core.training.memory import free_memory

    options.out.mkdir(parents=True, exist_ok=True)
    results: dict[str, Any] = {}
    for model in options.models.split(","):
        base = options.scratch / f"{model}-{options.layers or 'all'}{'-tiny' * options.tiny}"
        if not (base / "generation_config.json").is_file():
            make_model(model, base, tiny=options.tiny, layers=options.layers)
            if options.tiny:
                amplify(base)
            free_memory()
        runs = measured(model, base, options)
        results[model] = {"layers": options.layers, "runs": runs, "verdicts": compare(runs)}
        plot(model, runs, options.out / f"curves-{model}.png")
        report(results, options)
    print((options.out / "curves.md").read_text(encoding="utf-8"))
    good = [
        verdict["verdict"] == "within noise"
        for each in results.values()
        for verdict in each["verdicts"].values()
    ]
    return 0 if good and all(good) else 1


if __name__ == "__main__":
    sys.exit(main())
