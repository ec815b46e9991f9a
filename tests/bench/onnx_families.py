"""Measure ONNX models of every family and type against PyTorch, and the quickstart's base for speed.

    python -m tests.bench.onnx_families --report tests/bench/reports/2026-11-21-onnx.md

Tiny random models, so the distances of int8 and int4 are those of flat distributions over few tokens; the trained
base at the end shows what rounding does to a real one. Speeds are per second of processor time, on one thread.
"""

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from core.deployment.onnx import OnnxRunner, export, traced_graph
from core.deployment.onnx.files import save
from core.deployment.onnx.graph import load_for_export, trace
from core.quantization.config import OnnxType
from core.quantization.distance import DistanceSum
from tests.families import FAMILIES, VARIANTS, build

KINDS: tuple[OnnxType, ...] = ("fp32", "fp16", "int8", "int4")
SHAPES = ((1, 64), (1, 128), (2, 200), (1, 400))
NEW = 40
BASE = Path("data/tutor_base/model")
NO_STOPS: frozenset[int] = frozenset()


class Case(NamedTuple):
    """A model, token ids to compare on, and what it says greedily."""

    model: Any
    rows: list[torch.Tensor]
    wanted: list[np.ndarray]
    prompts: list[list[int]]
    said: list[list[int]]


def case(model: Any, rows: list[torch.Tensor], prompts: list[list[int]]) -> Case:
    with torch.no_grad():
        wanted = [model(row).logits.numpy() for row in rows]
    said = [torch_greedy(model, [prompt], NEW)[0] for prompt in prompts]
    return Case(model, rows, wanted, prompts, said)


def torch_greedy(model: Any, prompts: list[list[int]], count: int) -> list[list[int]]:
    made = model.generate(
        torch.tensor(prompts),
        max_new_tokens=count,
        min_new_tokens=count,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=0,
    )
    return made[:, len(prompts[0]) :].tolist()


def random_case(folder: Path) -> Case:
    model = load_for_export(folder)
    draw = torch.Generator().manual_seed(0)
    v = model.config.vocab_size
    rows = [torch.randint(5, v, shape, generator=draw) for shape in SHAPES]
    prompts = [torch.randint(5, v, (n,), generator=draw).tolist() for n in (2, 3, 9, 17, 33, 50, 70, 240)]
    return case(model, rows, prompts)


def compared(runner: OnnxRunner, one: Case) -> list[str]:
    at_once, steps = DistanceSum(), DistanceSum()
    for row, wanted in zip(one.rows, one.wanted, strict=True):
        for reference, found in zip(wanted, runner.logits(row.numpy()), strict=True):
            at_once.add(reference, found)
    by_steps = runner.decode_logits(one.rows[0][:, :64].numpy())
    for reference, found in zip(one.wanted[0][:, :64], by_steps, strict=True):
        steps.add(reference, found)
    batch = runner.generate(one.prompts, NEW, NO_STOPS)
    same = sum(a == b for a, b in zip(batch, one.said, strict=True))
    far, near = at_once.total(), steps.total()
    return [f"{far.max_abs:.1e}", f"{near.max_abs:.1e}", f"{far.kl:.1e}", f"{far.argmax_agreement:.4f}",
            f"{same}/{len(one.said)}"]  # fmt: skip


def megabytes(folder: Path) -> str:
    return f"{sum(file.stat().st_size for file in folder.glob('model.onnx*')) / 1e6:.2f}"


def families(names: list[str], work: Path) -> list[list[str]]:
    lines = []
    for name in names:
        source = build(name, work / name / "model")
        one = random_case(source)
        started = time.perf_counter()
        with traced_graph(source, work / name / "any", threads=1) as traced:
            tracing = time.perf_counter() - started
            for kind in KINDS:
                started, target = time.perf_counter(), work / name / kind
                export(source, target, kind, threads=1, traced=traced)
                seconds = f"{tracing:.0f} + {time.perf_counter() - started:.0f}"
                row = [name, kind, *compared(OnnxRunner(target, threads=1), one), seconds, megabytes(target)]
                lines.append(row)
                print(*row, flush=True)
    return lines


def speed(generate: Any, prompts: list[list[int]]) -> str:
    """Time one prompt at a time, then all in one batch; tokens per second of processor time."""
    results = []
    for groups in ([[prompt] for prompt in prompts[:4]], [prompts]):
        started = time.process_time()
        made = sum(len(row) for group in groups for row in generate(group))
        results.append(made / (time.process_time() - started))
    return f"{results[0]:.0f} / {results[1]:.0f}"


def trained(work: Path) -> list[list[str]]:
    from transformers import AutoTokenizer

    from data.tutor_base.corpus import documents

    tokenizer, stream = AutoTokenizer.from_pretrained(BASE), iter(documents(991))
    texts = [tokenizer(next(stream))["input_ids"][:128] for _ in range(60)]
    texts = [ids for ids in texts if len(ids) > 64]
    one = case(
        load_for_export(BASE), [torch.tensor([ids]) for ids in texts], [ids[:20] for ids in texts[:16]]
    )
    lines = [["torch", "", "", "", "", "", speed(lambda p: torch_greedy(one.model, p, 60), one.prompts)]]
    folders = {f"ONNX {kind}": work / kind for kind in KINDS}
    with traced_graph(BASE, work / "any", threads=1) as traced:
        for kind in KINDS:
            export(BASE, work / kind, kind, threads=1, traced=traced)
    folders["ONNX fp32, not fused"] = work / "plain"
    (work / "plain").mkdir()
    save(trace(one.model, fused=False), work / "plain")
    for name, folder in folders.items():
        runner = OnnxRunner(folder, threads=1)
        fast = speed(lambda p, runner=runner: runner.generate(p, 60, NO_STOPS), one.prompts)
        lines.append([name, *compared(runner, one), fast, megabytes(folder)])
        print(*lines[-1], flush=True)
    return lines


def table(head: str, lines: list[list[str]]) -> str:
    names = head.split("|")
    rows = [names, ["---"] * len(names), *(line + [""] * (len(names) - len(line)) for line in lines)]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows) + "\n"


def main() -> None:
    options = argparse.ArgumentParser()
    options.add_argument("--families", nargs="*", default=[*FAMILIES, *VARIANTS])
    options.add_argument("--report", type=Path)
    asked = options.parse_args()
    torch.set_num_threads(1)
    measures = "max Δ prompt|max Δ steps|KL|argmax|greedy texts"
    with tempfile.TemporaryDirectory() as folder:
        real = trained(Path(folder))
        made = families(asked.families, Path(folder))
    text = "\n".join(
        [
            "# ONNX against PyTorch, 2026-11-21\n",
            f"`python -m tests.bench.onnx_families`; torch {torch.__version__}, 2 shared cores, one thread.\n",
            "## The quickstart's base (3.4M, trained), 60-token answers one at a time / 16 at once\n",
            table(f"model|{measures}|tokens per CPU second|MB", real),
            "## Every family, tiny random weights, lengths 64 to 400 and a batch of two\n",
            "Logits reach from -3 to 3. Seconds are tracing (once a model) + writing, on a busy machine.\n",
            table(f"family|type|{measures}|seconds|MB", made),
        ]
    )
    print(text) if asked.report is None else asked.report.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
