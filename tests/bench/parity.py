"""Is the exported model the one that was trained? Every family in every format, beside transformers.

    python -m tests.bench.parity [--families gemma-3 qwen3] [--report FILE]

Tiny random models of the real classes (width 256, every norm and bias moved), so the weights are the hardest to
round: their logits are nearly flat. Tokenizer equality counts prompts with texts that spell control tokens.
"""

import argparse
import random
import tempfile
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer

from core.data.chat import ChatTokenizer
from core.data.records import Message
from core.deployment.gguf import write_gguf
from core.deployment.llama import LlamaRuntime
from core.quantization.distance import DistanceSum
from core.quantization.gguf import quantize_gguf
from core.quantization.reports import Distance
from tests.families import FAMILIES, VARIANTS, build
from tests.families.texts import TEXTS, mixed_strings

REPORT = Path(__file__).parent / "reports" / "2026-11-21-parity.md"
GGUF = ("f32", "f16", "bf16", "Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M")
ONNX = ("fp32", "fp16", "int8", "int4")
STRINGS = 400
# Opened with more than its original context, llama.cpp uses LongRoPE's long factors for short text too.
WINDOW = 256

Logits = Callable[[list[int]], Any]


class Row(NamedTuple):
    """One family in one format."""

    family: str
    format: str
    distance: Distance
    greedy: str
    """Questions answered with the same tokens as transformers, of how many."""
    tokenizer: str
    """Prompts with the same ids, of how many; only GGUF brings a tokenizer of its own."""


class Subject(NamedTuple):
    """A family's model and what it is asked."""

    family: str
    folder: Path
    chat: ChatTokenizer
    model: Any
    prompts: list[list[int]]


def main() -> None:
    """Measure and write the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--families", nargs="*", default=[*FAMILIES, *VARIANTS])
    parser.add_argument("--report", type=Path, default=REPORT)
    options = parser.parse_args()
    transformers.utils.logging.disable_progress_bar()
    torch.set_num_threads(1)
    rows = [row for family in options.families for row in measured(family)]
    options.report.parent.mkdir(parents=True, exist_ok=True)
    options.report.write_text(report(rows), encoding="utf-8")
    print(table(rows))


def measured(family: str) -> Iterator[Row]:
    """Yield the rows of one family."""
    with tempfile.TemporaryDirectory() as scratch:
        one = subject(family, Path(scratch) / "model")
        yield from (shown(row) for row in gguf_rows(one, Path(scratch)))
        if find_spec("onnxruntime") and find_spec("onnxscript"):
            yield from (shown(row) for row in onnx_rows(one, Path(scratch)))


def shown(row: Row) -> Row:
    """Say what was measured; the whole takes minutes."""
    print(table([row]).splitlines()[-1], flush=True)
    return row


def subject(family: str, folder: Path) -> Subject:
    """Build a family's model as a finished training leaves it."""
    build(family, folder, hidden=256)
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    chat = ChatTokenizer(tokenizer, tokenizer.chat_template)
    tokenizer.chat_template = chat.serving_template
    tokenizer.save_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    prompts = [chat.prompt_ids([Message(role="user", content=text)])[: WINDOW - 40] for text in TEXTS]
    return Subject(family, folder, chat, model, prompts)


def gguf_rows(one: Subject, scratch: Path) -> Iterator[Row]:
    """Yield one row for each GGUF type, run by llama.cpp with float32 keys and values."""
    for kind in GGUF:
        path = scratch / f"{kind}.gguf"
        if kind in ("f32", "f16", "bf16"):
            write_gguf(one.folder, path, dtype=kind, name="tiny")  # type: ignore[arg-type]
        else:
            quantize_gguf(scratch / "f16.gguf", path, kind, threads=1)  # type: ignore[arg-type]
        with LlamaRuntime(path, context_length=WINDOW, exact=True) as runtime:
            said = [runtime.generate(ids, max_new_tokens=16).token_ids for ids in one.prompts]
            equal = f"{sum(same_ids(one, runtime))}/{STRINGS}" if kind == "f32" else "as f32"
            yield Row(one.family, f"GGUF {kind}", distance(one, runtime.logits), greedy(one, said), equal)


def onnx_rows(one: Subject, scratch: Path) -> Iterator[Row]:
    """Yield one row for each ONNX type, run by ONNX Runtime on the processor."""
    from core.deployment.onnx import OnnxRunner, export, traced_graph

    with traced_graph(one.folder, scratch, threads=1) as traced:
        for kind in ONNX:
            folder = scratch / f"onnx-{kind}"
            export(one.folder, folder, kind, threads=1, traced=traced)  # type: ignore[arg-type]
            runner: Any = OnnxRunner(folder, threads=1)
            logits = lambda ids, run=runner: run.logits(np.array([ids]))[0]  # noqa: E731
            said = [continued(logits, ids, one.chat.stop_ids | listed(one)) for ids in one.prompts]
            yield Row(one.family, f"ONNX {kind}", distance(one, logits), greedy(one, said), "the same one")


def distance(one: Subject, logits: Logits) -> Distance:
    """Compare on the prompts, and on as many random tokens."""
    total = DistanceSum()
    draw = np.random.default_rng(3407)
    random_ids = [int(n) for n in draw.integers(0, one.model.config.vocab_size, 96)]
    for ids in [*one.prompts, random_ids]:
        with torch.inference_mode():
            wanted = one.model(input_ids=torch.tensor([ids])).logits[0].numpy()
        total.add(wanted, logits(ids))
    return total.total()


def greedy(one: Subject, said: list[list[int]]) -> str:
    """Count the answers that are the reference's."""

    def reference(ids: list[int]) -> Any:
        with torch.inference_mode():
            return one.model(input_ids=torch.tensor([ids])).logits[0].numpy()

    wanted = [continued(reference, ids, one.chat.stop_ids | listed(one)) for ids in one.prompts]
    return f"{sum(a == b for a, b in zip(said, wanted, strict=True))}/{len(wanted)}"


def listed(one: Subject) -> frozenset[int]:
    """Return the ends that generation_config.json lists."""
    ids = one.model.generation_config.eos_token_id
    return frozenset([ids] if isinstance(ids, int) else ids)


def continued(logits: Logits, ids: list[int], stops: frozenset[int]) -> list[int]:
    """Answer greedily without a cache."""
    said: list[int] = []
    for _ in range(16):
        token = int(np.asarray(logits([*ids, *said]))[-1].argmax())
        if token in stops:
            break
        said.append(token)
    return said


def same_ids(one: Subject, runtime: LlamaRuntime) -> Iterator[bool]:
    """Tell for every text whether both tokenizers make the same prompt of it."""
    draw = random.Random(11)
    control, texts = sorted(one.chat.control_tokens), mixed_strings(STRINGS)[:STRINGS]
    for number, text in enumerate(texts):
        spelled = text[:12] + draw.choice(control) + text[12:] if number % 2 else text
        turns = [Message(role="user", content=spelled)]
        yield one.chat.prompt_ids(turns) == runtime.encode([{"role": "user", "content": spelled}])


def table(rows: list[Row]) -> str:
    """Lay the rows out in Markdown."""
    head = (
        "| family | format | max logit difference | argmax agreement | KL (nats) | greedy text | tokenizer |"
    )
    lines = [head, "| --- | --- | ---: | ---: | ---: | ---: | ---: |"]
    lines += [
        f"| {row.family} | {row.format} | {row.distance.max_abs:.1e} | {row.distance.argmax_agreement:.3f} "
        f"| {row.distance.kl:.1e} | {row.greedy} | {row.tokenizer} |"
        for row in rows
    ]
    return "\n".join(lines)


def report(rows: list[Row]) -> str:
    """Write the report around the table."""
    import llama_cpp

    versions = f"torch {torch.__version__}, transformers {transformers.__version__}, llama-cpp-python {llama_cpp.__version__}"
    return (
        "# Exported models beside transformers, 2026-11-21\n\n"
        f"{versions}; one processor thread, float32 keys and values in llama.cpp. Tiny random models of the real "
        "classes (width 256, two layers, Gemma six, every norm and bias moved off its initial value): no real "
        "checkpoint. Positions: three chat prompts with Twi text and 96 random tokens. Greedy text: 16 tokens after "
        f"each prompt. Tokenizer: prompts of {STRINGS} awkward texts (Twi, emoji, decomposed letters, white space; "
        "half of them with a control token written out) with the same ids from the Hugging Face tokenizer and from "
        "our llama.cpp worker. Random weights give nearly flat logits, so argmax agreement and greedy text of the "
        "small types say little; the ladder measures those on real answers.\n\n"
        f"{table(rows)}\n"
    )


if __name__ == "__main__":
    main()
