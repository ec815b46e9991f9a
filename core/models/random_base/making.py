"""Write a base model of a published size with random weights, and a tokenizer trained on the spot.

What costs time and memory depends on a model's shape, not on what it has learned. Power and clocks of a GPU depend on
the numbers too, so these are drawn like those of a fresh model (std 0.02), never zeros.
"""

import json
import random
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedTokenizerFast

from core.models.random_base.shapes import MADE, SHAPES, Chat, recipe, settings_of

SHARD = 4 << 30
STD = 0.02
STARTS = "bdfgklmnprstvz"
ENDS = ("a", "e", "i", "o", "u", "an", "en", "on", "ar", "el")


def config_of(name: str, *, tiny: bool = False, layers: int | None = None) -> PretrainedConfig:
    """Build a family's config, of the real size or of a size for trying this on a CPU."""
    settings = settings_of(name, tiny=tiny, layers=layers)
    kind = settings.pop("model_type")
    return AutoConfig.for_model(kind, **settings, dtype="bfloat16")


def make_tokenizer(chat: Chat) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE tokenizer of about 600 tokens on invented words."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = [text for text in (chat.bos, chat.end, chat.pad, *chat.others) if text]
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        special_tokens=[AddedToken(text, special=True, normalized=False) for text in special],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    rng = random.Random(1)
    tokenizer.train_from_iterator((" ".join(invented_words(rng, 50)) for _ in range(400)), trainer)
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=chat.bos or None,
        eos_token=chat.end,
        pad_token=chat.pad,
        additional_special_tokens=list(chat.others),
        clean_up_tokenization_spaces=False,
    )
    wrapped.chat_template = chat.template
    return wrapped


def invented_words(rng: random.Random, n: int) -> list[str]:
    """Return words of two to four syllables that mean nothing."""
    return [
        "".join(rng.choice(STARTS) + rng.choice(ENDS) for _ in range(rng.randint(2, 4))) for _ in range(n)
    ]


def make_model(
    name: str, folder: Path, *, tiny: bool = False, seed: int = 0, layers: int | None = None
) -> None:
    """Write config, weights (bfloat16, in shards) and tokenizer of one model.

    Args:
        name: A key of ``SHAPES``.
        folder: Made if need be; what lies there under the same names is written over.
        tiny: The same architecture, 64 wide and two layers deep, to try things on a CPU.
        seed: Of the weights; a GPU draws other numbers than a CPU does.
        layers: Another depth than the published one.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / MADE).unlink(missing_ok=True)
    config, tokenizer = config_of(name, tiny=tiny, layers=layers), make_tokenizer(SHAPES[name][0])
    config.bos_token_id, config.eos_token_id = tokenizer.bos_token_id, tokenizer.eos_token_id
    config.pad_token_id = tokenizer.pad_token_id
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    _write_weights(model, folder, seed)
    config.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    ids = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    (folder / "generation_config.json").write_text(
        json.dumps({**ids, "pad_token_id": tokenizer.pad_token_id}), encoding="utf-8"
    )
    made_from = recipe(name, tiny=tiny, seed=seed, layers=layers)
    (folder / MADE).write_text(json.dumps(made_from), encoding="utf-8")


def _write_weights(model: torch.nn.Module, folder: Path, seed: int) -> None:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    generator = torch.Generator(device).manual_seed(seed)
    is_gemma = "gemma" in type(model).__name__.lower()
    placed: dict[str, str] = {}
    shard: dict[str, torch.Tensor] = {}
    total = held = number = 0
    stored = [(name, parameter.shape) for name, parameter in model.named_parameters()]
    for i, (name, shape) in enumerate(stored, 1):
        tensor = torch.empty(shape, dtype=torch.bfloat16, device=device)
        _fill(name, tensor, generator, is_gemma=is_gemma)
        shard[name] = tensor.cpu()
        held += tensor.numel() * 2
        if held > SHARD or i == len(stored):
            number, total = number + 1, total + held
            file = f"model-{number:05d}.safetensors"
            save_file(shard, folder / file, metadata={"format": "pt"})
            placed |= dict.fromkeys(shard, file)
            shard, held = {}, 0
    index = {"metadata": {"total_size": total}, "weight_map": placed}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")


def _fill(name: str, tensor: torch.Tensor, generator: torch.Generator, *, is_gemma: bool) -> None:
    if tensor.ndim > 1:
        tensor.normal_(0.0, STD, generator=generator)
    elif name.endswith("bias") or is_gemma:
        tensor.zero_()  # Gemma's norms multiply by 1 + weight
    else:
        tensor.fill_(1.0)
