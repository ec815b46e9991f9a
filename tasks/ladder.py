"""Measure quantized files, each as the file it is: through llama.cpp, with its own tokenizer and template."""

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from core.artifacts import Evaluation, file_digest, read_jsonl
from core.data.records import Message
from core.errors import ConfigError
from core.evaluation.config import LOWER_IS_BETTER, EvaluationConfig
from core.quantization.reports import Distance, QuantizedFile
from tasks.chat_tokens import chat_tokenizer
from tasks.context import RunContext
from tasks.measure import tools_for
from tasks.uses import use_test_set

if TYPE_CHECKING:
    from core.deployment.llama import LlamaRuntime
    from core.deployment.llama.scoring import Encode
    from core.evaluation.evaluate import Evaluated
    from core.evaluation.responders import Responder
    from core.quantization.reference import Compute, Passage, Reference

Rows = list[dict[str, Any]]
Prepare = Callable[[Rows], Rows]
"""Turns of a row in, turns for the file's own template out."""

TEXT_WINDOW = 1024
"""Tokens of a plain text that are read together, as when the merged model was scored."""


class Bench(NamedTuple):
    """What every file is held against."""

    merged: Rows
    """What the merged model answered to every test question, with its scores."""
    references: list["Reference"]
    """Its logits on its own answers to some of them."""
    test: Path
    config: EvaluationConfig
    prepare: Prepare
    encode: "Encode"
    window: int
    """Tokens that the longest question needs, answer included."""
    opened: int
    """Context that files are opened with; ``window``, unless the model is served with other angles."""
    dtype: str
    """What the merged model's logits were computed in."""


def set_up(
    merged: Path,
    scored: Evaluation,
    test: Path,
    config: EvaluationConfig,
    examples: int,
    work: Path,
    serving: int | None = None,
) -> Bench:
    """Read the merged model's answers and compute its logits on some of them.

    Args:
        merged: The merged model.
        scored: Its answers.
        test: The test split's file.
        config: How it was asked.
        examples: Answers whose logits are compared.
        work: Folder for the logits.
        serving: Context that the file will be served with, for models whose angles depend on it.

    Raises:
        ConfigError: If the files cannot be measured as they would be served.
    """
    rows = list(read_jsonl(scored.verified()))
    passages = read_passages(merged, rows, examples)
    references, dtype = reference_logits(merged, passages, work)
    encode = encoder(merged)
    longest = max(len(row["prompt_ids"]) for row in rows) + config.max_new_tokens
    needed = [*(len(reference.ids) for reference in references), *shown_lengths(test, config, encode)]
    window = max(128, longest, *needed) + 8
    opened = opened_with(merged, window, serving)
    return Bench(rows, references, test, config, with_tools(merged), encode, window, opened, dtype)


def serving_context(merged: Path, context_length: int) -> int | None:
    """Return the context that the file is served with, if the model's angles depend on it; else None."""
    from core.deployment.onnx.runner import read_switch

    return None if read_switch(merged) is None else context_length


def opened_with(merged: Path, window: int, serving: int | None) -> int:
    """Choose the context to measure files with: as large as needed, and with the angles they are served with.

    llama.cpp takes longrope's factors by the context that a file is opened with, not by the tokens in it.

    Raises:
        ConfigError: If only a context too small for the test questions would have those angles.
    """
    from core.deployment.onnx.runner import read_switch

    switch = read_switch(merged)
    if serving is None or switch is None or (window > switch) == (serving > switch):
        return window
    if serving < window:
        raise ConfigError(
            f"{serving} tokens are served with the angles of up to {switch} tokens, "
            f"but the test questions take {window} and cannot be measured with them",
            where="deployment.context_length",
            fix=f"deployment.context_length: {max(window, switch + 1)}",
        )
    return serving


def encoder(merged: Path) -> "Encode":
    """Return the function that makes tokens of answers that a file is shown instead of asked for."""
    from core.evaluation.shown import shown_examples

    chat = chat_tokenizer(merged, "chatml")
    return lambda prompts, references: shown_examples(chat, prompts, references, TEXT_WINDOW)


def shown_lengths(test: Path, config: EvaluationConfig, encode: "Encode") -> list[int]:
    """Return the lengths of what files are shown: nothing, unless likelihoods are asked for."""
    from core.evaluation.aggregate import PERPLEXITY
    from core.evaluation.metrics import wanted
    from core.evaluation.questions import read_questions

    names = wanted(config)
    if PERPLEXITY not in names:
        return []
    asked = read_questions(test, config.max_examples, texts=names == (PERPLEXITY,))
    groups = encode([question.messages for question in asked], [question.turn for question in asked])
    return [len(example.input_ids) for group in groups for example in group]


def read_passages(merged: Path, rows: Rows, examples: int) -> list["Passage"]:
    """Take questions with the merged model's own answers, spread evenly over the test set, as tokens."""
    from core.quantization.reference import Passage

    tokenizer = chat_tokenizer(merged, "chatml").tokenizer
    found = []
    for row in rows[:: max(1, len(rows) // examples)][:examples]:
        # A plain text has no question: it is read as it stands.
        said = row["answer"] if row["prompt_ids"] else row["reference"]
        ids = [*row["prompt_ids"], *tokenizer(said, add_special_tokens=False)["input_ids"]]
        found.append(Passage(ids, max(1, len(row["prompt_ids"]))))
    return [passage for passage in found if passage.ids]


def reference_logits(
    merged: Path, passages: Sequence["Passage"], work: Path
) -> tuple[list["Reference"], str]:
    """Run the merged model once, as exactly as this machine can; return where its logits lie, and their dtype."""
    from core.quantization.reference import load_reference, model_logits, write_reference

    model = load_reference(merged)
    vocabulary = model.config.get_text_config().vocab_size
    dtype = str(model.dtype).removeprefix("torch.")
    return write_reference(model_logits(model), passages, work, vocabulary), dtype


def with_tools(merged: Path) -> Prepare:
    """Return the function that writes tool turns as the model was taught them; others stay as they are."""
    chat = chat_tokenizer(merged, "chatml")

    def prepare(turns: Rows) -> Rows:
        if not any(turn["role"] == "tool" or turn.get("tool_calls") for turn in turns):
            return turns
        return chat.template_messages([Message.model_validate(turn) for turn in turns])

    return prepare


def measure_parity(context: RunContext, source: Path, bench: Bench) -> Distance | None:
    """Compare the 16-bit file's logits with the merged model's, in float32 but for the weights."""
    from core.deployment.llama import LlamaRuntime
    from core.quantization.reference import distance

    context.watcher.advanced("quantize", 0, len(bench.references), "passages through the 16-bit file")
    with LlamaRuntime(source, context_length=bench.window, threads=context.threads, exact=True) as runtime:
        return distance(file_logits(runtime), bench.references, answers_only=False)


def file_logits(runtime: "LlamaRuntime") -> "Compute":
    """Return the function that runs a file on a passage."""
    return lambda ids, first: runtime.logits(ids, first=first)


def examine(context: RunContext, path: Path, kind: str, bench: Bench) -> tuple[QuantizedFile, Rows]:
    """Run one file on the test split and hold it against the merged model.

    Returns:
        What was measured, and one row per question.
    """
    from core.deployment.llama import LlamaRuntime
    from core.deployment.llama.scoring import LlamaScorer
    from core.quantization.reference import distance

    digest = file_digest(path)
    with LlamaRuntime(path, context_length=bench.opened, threads=context.threads) as runtime:
        result = ask(context, LlamaScorer(runtime, bench.prepare, bench.encode), kind, digest, bench)
        apart = distance(file_logits(runtime), bench.references, answers_only=True)
        speaks = (
            runtime.generate(bench.references[0].ids, max_new_tokens=4).token_ids if bench.references else []
        )
        load = runtime.load_seconds
    broken, fixed = flips(bench.merged, result.rows, bench.config.primary_metric)
    measured = QuantizedFile(
        type=kind,
        path=path.relative_to(context.workspace.root).as_posix(),
        digest=digest,
        bytes=path.stat().st_size,
        has_magic=path.open("rb").read(4) == b"GGUF",
        loads=bool(speaks) or any(row["answer"] for row in result.rows),
        prompt_mismatches=differing(bench.merged, result.rows, "prompt_ids"),
        distance=apart,
        broken=broken,
        fixed=fixed,
        text_agreement=text_agreement(bench.merged, result.rows),
        load_seconds=load,
        evaluation=result.report,
    )
    return measured, result.rows


def ask(context: RunContext, model: "Responder", arm: str, digest: str, bench: Bench) -> "Evaluated":
    """Ask a file, whatever runs it, the test questions."""
    from core.evaluation.evaluate import evaluate

    result = evaluate(
        model,
        bench.test,
        bench.config,
        arm=arm,
        model_digest=digest,
        clock=time.monotonic,
        tick=lambda done, total: context.watcher.advanced("quantize", done, total, f"{arm} questions"),
        tools=tools_for(context, "quantize", arm),
    )
    use_test_set(result.report.split_digest, "quantize", arm)
    return result


def text_agreement(merged: Rows, rows: Rows) -> float:
    """Return the share of questions answered with exactly the merged model's text."""
    return 1 - differing(merged, rows, "answer") / len(rows)


def flips(merged: Rows, rows: Rows, metric: str) -> tuple[int, int]:
    """Count the questions whose answer became worse, and those whose answer became better."""
    sign = -1 if metric in LOWER_IS_BETTER else 1
    changes = [sign * (row[metric] - before[metric]) for before, row in zip(merged, rows, strict=True)]
    return sum(change < 0 for change in changes), sum(change > 0 for change in changes)


def differing(merged: Rows, rows: Rows, key: str) -> int:
    """Count the questions at which two models' rows differ in one respect."""
    return sum(before[key] != row[key] for before, row in zip(merged, rows, strict=True))
