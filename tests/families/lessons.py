"""A toy skill that a tiny model learns in seconds: to say which colour a sentence gave to a thing."""

import itertools
import json
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from core.data.batches import pack
from core.models.seed import seed_everything
from core.training.config import TrainingConfig
from core.training.pretrain import pretrain
from tests.families.models import random_model
from tests.families.vocabularies import tokenizer_for

THINGS = ("kente", "house", "canoe", "goat", "market", "drum", "stool", "mango", "lorry", "basket")
PLACES = ("Accra", "Kumasi", "Tamale", "Ho", "Cape Coast", "Wa", "Sunyani", "Axim")
COLOURS = ("red", "blue", "green", "white", "yellow", "black")
LENGTH = 64


class Quiet:
    """Keeps the losses."""

    def __init__(self) -> None:
        """Start with none."""
        self.losses: list[float] = []

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Remember the loss of a step."""
        self.losses += [metrics["loss"]] if "loss" in metrics else []


def rows() -> list[dict[str, str]]:
    """Return one question for every thing, place and colour, in random order."""
    every = list(itertools.product(THINGS, PLACES, COLOURS))
    random.Random(1).shuffle(every)
    return [
        {
            "instruction": f"The {thing} in {place} is {colour}. Which colour has the {thing}?",
            "output": f"{colour}",
            "id": f"{thing}-{place}-{colour}",
        }
        for thing, place, colour in every
    ]


def write_rows(path: Path) -> Path:
    """Write the questions as a file the factory reads."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows()), encoding="utf-8")
    return path


def statements(count: int, seed: int = 2) -> list[str]:
    """Return texts from which the skill can be learnt, none of them a question or an answer."""
    draw = random.Random(seed)
    texts = []
    for _ in range(count):
        thing, place, colour = draw.choice(THINGS), draw.choice(PLACES), draw.choice(COLOURS)
        texts.append(f"The {thing} in {place} is {colour}. People like the {thing} because it is {colour}.")
    return texts


def pretrained(family: str, folder: Path, *, steps: int, layers: int = 2) -> Path:
    """Save a tiny base of a family that has read statements, in float32.

    Args:
        family: One of ``FAMILIES``.
        folder: Where to save it.
        steps: Steps of 16 rows.
        layers: Layers; Gemma has six at least.
    """
    seed_everything(3)
    texts = statements(32 * 40)
    words = (*texts[:200], *(row["instruction"] for row in rows()[:200]))
    tokenizer = tokenizer_for(family, words)
    model = random_model(family, tokenizer, layers=layers).train()
    config = TrainingConfig(
        per_device_train_batch_size=16, gradient_accumulation_steps=1, max_steps=steps, warmup_steps=steps // 10,
        learning_rate=4e-3, lr_scheduler_type="cosine", optim="adamw_torch", eval_steps=steps, save_steps=steps,
        logging_steps=max(1, steps // 10), bf16=False, fp16=False,
    )  # fmt: skip
    ids = tokenizer(texts, add_special_tokens=False)["input_ids"]
    separator = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.pad_token_id
    packed: Any = torch.tensor(list(pack(ids, LENGTH, separator)))
    pretrain(
        model, packed[8:], packed[:8], config, checkpoints=folder.parent / f".{folder.name}", fingerprint=family,
        sink=Quiet(),
    )  # fmt: skip
    model.eval().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
