"""Tiny models and tokenizers of every supported kind, made on the spot."""

from pathlib import Path
from typing import Any

import transformers
from tokenizers import (
    AddedToken,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

from core.deployment.gguf import write_gguf
from tests.families import perturb
from tests.families.texts import TEXTS, TRICKY, TWI, mixed_strings
from tests.families.vocabularies import (
    DIGITS,
    SPACE,
    leading_space_decoder,
    sentencepiece_model,
    sentencepiece_parts,
    split,
    starts_with,
)

__all__ = ["CHAT", "SPACE", "TRICKY", "TWI", "byte_level", "mixed_strings", "save", "sentencepiece", "split"]

# Its constructors have no types.
hub: Any = transformers
CHAT = (
    "{{ bos_token }}{% for m in messages %}{{ '<|' + m['role'] + '|>' }}"
    "{% generation %}{{ m['content'] }}<|end|>{% endgeneration %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
CHAT_TOKENS = ("<|bos|>", "<|pad|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>")


SPLITTERS: dict[str, Any] = {
    "llama-3": split(DIGITS["llama-3"]),
    "qwen2": split(DIGITS["qwen2"]),
    "gpt-2": pre_tokenizers.ByteLevel(add_prefix_space=False),
    "smollm": pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    ),
}


def byte_level(kind: str = "qwen2", *, ignore_merges: bool = False, adds_bos: bool = False) -> Any:
    """Train a byte-level tokenizer with the chat tokens."""
    tokenizer = Tokenizer(models.BPE(ignore_merges=ignore_merges))
    tokenizer.pre_tokenizer = SPLITTERS[kind]
    tokenizer.decoder = decoders.ByteLevel()
    if adds_bos:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<|bos|> $A", pair="<|bos|> $A $B", special_tokens=[("<|bos|>", 0)]
        )
    trainer = trainers.BpeTrainer(
        vocab_size=340,
        special_tokens=[AddedToken(text, special=True, normalized=False) for text in CHAT_TOKENS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXTS * 3, trainer)
    fast = hub.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<|bos|>",
        eos_token="<|end|>",
        pad_token="<|pad|>",
        additional_special_tokens=list(CHAT_TOKENS[3:]),
    )
    fast.chat_template = CHAT
    return fast


def sentencepiece(kind: str) -> Any:
    """Build a tokenizer of SentencePiece's kind: llama, legacy, gemma, prepend or phi-3."""
    vocab, merges = sentencepiece_parts()
    if kind in ("llama", "legacy"):
        return hub.LlamaTokenizer(vocab=vocab, merges=merges, legacy=kind == "legacy")
    if kind == "gemma":
        return hub.GemmaTokenizer(vocab=vocab, merges=merges, bos_token="<s>", eos_token="</s>")
    tokenizer = sentencepiece_model()
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend(SPACE), normalizers.Replace(" ", SPACE)])
    tokenizer.decoder = leading_space_decoder()
    tokenizer.post_processor = starts_with(tokenizer, "<s>")
    if kind == "phi-3":
        names = ("<|endoftext|>", "<|user|>", "<|end|>", "<|assistant|>")
        trimmed = [AddedToken(n, special=True, rstrip=n != "<|endoftext|>", normalized=False) for n in names]
        tokenizer.add_special_tokens(
            [AddedToken("</s>", special=True, rstrip=True, normalized=False), *trimmed]
        )
    return hub.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    )


def save(folder: Path, kind: str, tokenizer: Any, **settings: Any) -> Path:
    """Save a random model of a family, given as the prefix of its class, with a tokenizer."""
    names = {"Gemma3": "Gemma3TextConfig"}
    shape = {
        "vocab_size": len(tokenizer) + 5,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 256,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    config = getattr(hub, names.get(kind, f"{kind}Config"))(**(shape | settings))
    model = getattr(hub, f"{kind}ForCausalLM")(config)
    perturb(model)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def wide(folder: Path) -> Path:
    """Save a random Llama wide enough for blocks of 256 weights."""
    return save(folder, "Llama", byte_level(), hidden_size=256, intermediate_size=512)


def half(checkpoint: Path) -> Path:
    """Write a checkpoint as a 16-bit GGUF file beside it."""
    path = checkpoint.parent / "f16.gguf"
    write_gguf(checkpoint, path, dtype="f16", name="tiny")
    return path
