"""Hold an ONNX model against the model it was made from: logits at once and step by step, answers, speed."""

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from core.artifacts import path_digest
from core.deployment.onnx.responder import OnnxResponder
from core.deployment.onnx.runner import OnnxRunner
from core.errors import ModelError
from core.evaluation.config import EvaluationConfig
from core.evaluation.evaluate import evaluate
from core.evaluation.metrics import Tools
from core.evaluation.responders import Tick
from core.quantization.config import OnnxType
from core.quantization.reference import Reference, distance
from core.quantization.reports import Distance, OnnxBenchmark, OnnxFile

if TYPE_CHECKING:
    from core.data.chat import ChatTokenizer

WARM_UP, ITERATIONS, NEW_TOKENS = 10, 100, 64
FEWEST = 3
"""Passes over the prompt that are timed even if each takes long."""

Row = dict[str, Any]


class OnnxBench(NamedTuple):
    """What every ONNX model is held against."""

    merged: Sequence[Mapping[str, Any]]
    """What the merged model answered to every test question; of each row, ``answer`` counts."""
    references: Sequence[Reference]
    """The merged model's logits on some of its answers."""
    test: Path
    config: EvaluationConfig
    chat: "ChatTokenizer"
    """Of the exported folder, so that the answers are those of its own tokenizer and template."""
    tools: Tools = Tools()
    """What some metrics need beside the answers."""


def verify(runner: OnnxRunner, references: Sequence[Reference]) -> tuple[Distance, Distance]:
    """Compare logits with the merged model's, read in one pass and token by token through the cache.

    Args:
        runner: The open model.
        references: The merged model's logits.

    Returns:
        The distances of the one pass and of the steps.

    Raises:
        ModelError: If the ONNX model's logits are no numbers.
    """

    def at_once(ids: list[int], first: int) -> Any:
        return runner.logits(np.array([ids], dtype=np.int64))[0, first:]

    def by_steps(ids: list[int], first: int) -> Any:
        return runner.decode_logits(np.array([ids], dtype=np.int64))[0, first:]

    prompt = distance(at_once, references, answers_only=False)
    steps = distance(by_steps, references, answers_only=False)
    if prompt is None or steps is None:
        raise ModelError(
            "the ONNX model computes logits that are no numbers",
            where=str(runner.path),
            fix="leave this type out of quantization.onnx",
        )
    return prompt, steps


def benchmark(
    runner: OnnxRunner,
    prompt: Sequence[int],
    *,
    warm_up: int = WARM_UP,
    iterations: int = ITERATIONS,
    new_tokens: int = NEW_TOKENS,
    seconds: float = 60.0,
    clock: Callable[[], float] = time.perf_counter,
) -> OnnxBenchmark:
    """Time passes over a prompt, and the generation of new tokens after it.

    Args:
        runner: The open model.
        prompt: Token ids, [s].
        warm_up: Passes that are not timed.
        iterations: Passes that are timed.
        new_tokens: Tokens to generate.
        seconds: After so long no further pass is started, once there are three; the report says how many there were.
        clock: Seconds.
    """
    end = clock() + seconds
    for _ in range(warm_up):
        runner.begin([prompt])
        if clock() > end - seconds / 2:
            break
    times: list[float] = []
    while len(times) < iterations and (clock() < end or len(times) < FEWEST):
        start = clock()
        scores, state = runner.begin([prompt])
        times.append(1000 * (clock() - start))
    start = clock()
    for _ in range(new_tokens):
        scores, state = runner.advance(scores[:, -1].argmax(-1)[:, None], state)
    spent = max(clock() - start, 1e-9)
    return OnnxBenchmark(
        provider=runner.provider,
        prompt_tokens=len(prompt),
        mean_ms=float(np.mean(times)),
        std_ms=float(np.std(times)),
        min_ms=min(times),
        max_ms=max(times),
        tokens_per_second=new_tokens / spent,
        iterations=len(times),
    )


def examine_onnx(
    folder: Path, kind: OnnxType, bench: OnnxBench, *, shown: str, threads: int, tick: Tick
) -> tuple[OnnxFile, list[Row]]:
    """Ask an exported model the test questions, compare its logits, time it.

    Args:
        folder: What ``export`` wrote.
        kind: Its type.
        bench: What it is held against.
        shown: The folder's path as the report gives it.
        threads: Threads that compute.
        tick: Progress listener.

    Returns:
        What was measured, and one row per question.

    Raises:
        ModelError: If the model cannot be opened, or computes logits that are no numbers.
    """
    runner, digest = OnnxRunner(folder, threads=threads), path_digest(folder)
    prompt, steps = verify(runner, bench.references)
    result = evaluate(
        OnnxResponder(runner, bench.chat, bench.config.batch_size),
        bench.test,
        bench.config,
        arm=f"onnx-{kind}",
        model_digest=digest,
        clock=time.monotonic,
        tick=tick,
        tools=bench.tools,
    )
    equal = [row["answer"] == before["answer"] for before, row in zip(bench.merged, result.rows, strict=True)]
    measured = OnnxFile(
        type=kind,
        path=shown,
        digest=digest,
        bytes=sum(file.stat().st_size for file in folder.glob("model.onnx*")),
        distance=prompt,
        decode_distance=steps,
        text_agreement=sum(equal) / len(equal),
        benchmark=benchmark(runner, _typical(bench.references)),
        evaluation=result.report,
    )
    return measured, result.rows


def _typical(references: Sequence[Reference]) -> list[int]:
    """Take the prompt of middle length."""
    prompts = sorted((reference.ids[: reference.answer + 1] for reference in references), key=len)
    return prompts[len(prompts) // 2]
