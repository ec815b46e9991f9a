"""Pretrain the quickstart's base model through the factory's own training loop.

    python -m data.tutor_base.build [--out DIR] [--set training.max_steps=100 ...]

Reads ``base.yaml`` beside this file. The same settings and seed give the same text, tokenizer and
order of examples everywhere; weights differ in the last bits between processors.
"""

import argparse
import itertools
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from core.artifacts import fingerprint
from core.config import Frozen
from core.data.batches import pack
from core.models.loading import moved
from core.models.scratch import LlamaShape, build_llama, save_model, train_tokenizer
from core.training.config import TrainingConfig
from core.training.pretrain import pretrain
from data.tutor_base.corpus import documents

HERE = Path(__file__).parent
TOKENIZER_DOCUMENTS = 40_000
CHUNK = 20_000


class BaseRecipe(Frozen):
    """The contents of base.yaml."""

    shape: LlamaShape
    documents: int
    held_out: int
    row_length: int
    seed: int
    training: TrainingConfig


class Lines:
    """Prints metrics as they come."""

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Print one step."""
        print(step, " ".join(f"{k}={v:.4g}" for k, v in metrics.items()), flush=True)


def read_recipe(changes: list[str]) -> BaseRecipe:
    """Read base.yaml with ``dotted.key=value`` changes."""
    content: dict[str, Any] = yaml.safe_load((HERE / "base.yaml").read_text(encoding="utf-8"))
    for change in changes:
        key, value = change.split("=", 1)
        *path, last = key.split(".")
        block = content
        for name in path:
            block = block[name]
        block[last] = yaml.safe_load(value)
    return BaseRecipe.model_validate(content)


def token_streams(tokenizer: PreTrainedTokenizerFast, texts: Iterable[str]) -> Iterator[list[int]]:
    """Encode documents."""
    stream = iter(texts)
    while chunk := list(itertools.islice(stream, CHUNK)):
        encoded = tokenizer.backend_tokenizer.encode_batch_fast(chunk, add_special_tokens=False)
        yield from (item.ids for item in encoded)


def packed(tokenizer: PreTrainedTokenizerFast, seed: int, count: int, length: int) -> Tensor:
    """Encode and pack documents into rows [n, length], BOS between two documents."""
    texts = itertools.islice(documents(seed), count)
    return torch.tensor(list(pack(token_streams(tokenizer, texts), length, tokenizer.bos_token_id)))


def build(recipe: BaseRecipe, out: Path, checkpoints: Path) -> None:
    """Make the tokenizer, the rows and the model, train, and save in float16."""
    tokenizer = train_tokenizer(
        itertools.islice(documents(recipe.seed + 1), TOKENIZER_DOCUMENTS), recipe.shape.vocab_size
    )
    rows = packed(tokenizer, recipe.seed, recipe.documents, recipe.row_length)
    held_out = packed(tokenizer, recipe.seed + 2, recipe.held_out, recipe.row_length)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = moved(build_llama(recipe.shape, tokenizer, recipe.seed), device)
    size = sum(p.numel() for p in model.parameters())
    print(f"{size:,} parameters on {device}; {rows.numel():,} tokens in {len(rows):,} rows", flush=True)
    pretrain(model, rows, held_out, recipe.training, checkpoints=checkpoints,
             fingerprint=fingerprint(recipe), sink=Lines())  # fmt: skip
    save_model(model.half().cpu(), tokenizer, out)


def main() -> None:
    """Build from the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=HERE / "model")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as checkpoints:
        build(read_recipe(chosen.set), chosen.out, Path(checkpoints))


if __name__ == "__main__":
    main()
