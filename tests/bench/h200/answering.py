"""How fast evaluation answers on a GPU, by questions at once: greedy, with a key-value cache.

    python -m tests.bench.h200.answering OUT [--model llama-1b] [--batches 1,8,32,128] [--tiny]

The responder of the evaluate phase over a base with random weights, which seldom stops by itself: 128 questions of
40 to 160 tokens, at most 64 new ones.
Writes OUT/answering.json.
"""

import argparse
import json
import random
import time
from pathlib import Path
from typing import Any

from core.models.random_base.making import make_model

QUESTIONS, NEW = 128, 64


def questions(n: int) -> list[list[dict[str, str]]]:
    """Make conversations of different lengths."""
    draw = random.Random(0)
    return [
        [
            {
                "role": "user",
                "content": " ".join(draw.choice("abcdefgh") * 3 for _ in range(draw.randint(5, 40))),
            }
        ]
        for _ in range(n)
    ]


def timed(responder: Any, asked: list[Any], new: int) -> dict[str, float]:
    """Answer everything once; the clock stops when the last token is on the CPU."""
    import torch

    on_gpu = torch.cuda.is_available()
    if on_gpu:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    began = time.perf_counter()
    answers = responder.answer(asked, new, lambda done, total: None)
    seconds = time.perf_counter() - began
    tokens = sum(answer.n_generated for answer in answers)
    peak = torch.cuda.max_memory_allocated() / 2**30 if on_gpu else 0.0
    return {"questions": len(asked), "seconds": seconds, "tokens": tokens, "tokens_per_second": tokens / seconds, "peak_gib": peak}  # fmt: skip


def main() -> None:
    """Make the base and time every batch size."""
    from core.data.chat import ChatTokenizer
    from core.data.templates import template_for
    from core.evaluation.generation import TorchResponder
    from core.models.loading import load_folder, load_tokenizer

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--model", default="llama-1b")
    parser.add_argument("--batches", default="1,8,32,128")
    parser.add_argument("--scratch", type=Path, default=Path("/dev/shm/answering"))
    parser.add_argument("--tiny", action="store_true")
    options = parser.parse_args()
    base = options.scratch / options.model
    if not base.is_dir():
        make_model(options.model, base, tiny=options.tiny)
    options.out.mkdir(parents=True, exist_ok=True)
    model, tokenizer = load_folder(base), load_tokenizer(str(base))
    chat = ChatTokenizer(tokenizer, template_for(tokenizer, "chatml"))
    asked, new = questions(8 if options.tiny else QUESTIONS), 4 if options.tiny else NEW
    timed(TorchResponder(model, chat, 8), asked[:8], new)
    results = []
    for size in map(int, options.batches.split(",")):
        # One at a time is slow enough to be timed on fewer.
        part = asked[:16] if size == 1 else asked
        results.append({"batch": size, **timed(TorchResponder(model, chat, size), part, new)})
        print(json.dumps(results[-1]), flush=True)
    (options.out / f"answering-{options.model}.json").write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
