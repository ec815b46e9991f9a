"""Make base models of real shapes with random weights, and rows to train them on; nothing is downloaded.

    python -m tests.bench.h200.make_models FOLDER --models llama-1b,qwen3-4b

The models are those of core.models.random_base, which `factory bench finetune` measures too.
"""

import argparse
import json
import random
import time
from pathlib import Path

from transformers import PreTrainedTokenizerFast

from core.models.random_base.making import invented_words, make_model


def make_rows(target: Path, tokenizer: PreTrainedTokenizerFast, n: int, length: int) -> float:
    """Write chat rows of nearly ``length`` tokens each; returns their mean length in tokens.

    The question is short and the answer long, so that nearly every position is trained.
    """
    rng, total = random.Random(7), 0
    target.parent.mkdir(parents=True, exist_ok=True)
    with target.open("w", encoding="utf-8") as out:
        for _ in range(n):
            question, answer = " ".join(invented_words(rng, 12)) + "?", _answer(rng, tokenizer, length - 48)
            turns = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
            total += len(tokenizer(tokenizer.apply_chat_template(turns, tokenize=False)).input_ids)
            out.write(json.dumps({"messages": turns}) + "\n")
    return total / n


def _answer(rng: random.Random, tokenizer: PreTrainedTokenizerFast, tokens: int) -> str:
    words = invented_words(rng, tokens)
    ids = tokenizer(" ".join(words), add_special_tokens=False).input_ids[: max(4, tokens - 16)]
    return str(tokenizer.decode(ids)).strip()


def main() -> None:
    """Make the models named on the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--models", default="llama-1b")
    parser.add_argument("--tiny", action="store_true")
    options = parser.parse_args()
    for name in options.models.split(","):
        began = time.monotonic()
        make_model(name, options.folder / name, tiny=options.tiny)
        print(f"{name}: {time.monotonic() - began:.1f} s", flush=True)


if __name__ == "__main__":
    main()
