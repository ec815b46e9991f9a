"""Tiny models and tokenizers of every supported kind, made on the spot."""

import json
import random
import unicodedata
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

# Its constructors have no types.
hub: Any = transformers
SPACE = "\u2581"
TEXTS = [
    "Sɛ wo wɔ GH₵17 na wotua GH₵5 a, ɛka sɛn? GH₵12.\nQuestion: what is 12 + 7? Answer: 19\n\n",
    "The capital of Ghana is Accra, isn't it? They'll say so.  Two  spaces   here.\n",
    "Ɔkɔɔ fie. Meda wo ase paa. Ɛyɛ me dɛ sɛ mahu wo. 3 kilometres are 3000 metres.",
]
TWI = ("GH₵17", "ɛyɛ dɛ, Ɔkɔɔ fie ɛnnɛ", "Sɛ wotua GH₵5 a, ɛka GH₵12.")
TRICKY = (
    *TWI,
    "12345 6789 0",
    "a\nb\n\nc\r\n d\r\n\r\n",
    "  two  leading   and trailing  ",
    unicodedata.normalize("NFD", "é è ü ɛ́ ɔ̀ ñ"),
    "don't DON'T we'LL 's 'ſ",
    "\t\tx\t y",
    "日本語 텍스트 👩‍👩‍👧 👍🏽",
    "½ ² Ⅳ ١٢٣ １２",
    "x\u00a0y\u2003z\u200bw",
    "snake_case...!!??\n\n",
)
CHAT = (
    "{{ bos_token }}{% for m in messages %}{{ '<|' + m['role'] + '|>' }}"
    "{% generation %}{{ m['content'] }}<|end|>{% endgeneration %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
CHAT_TOKENS = ("<|bos|>", "<|pad|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>")
WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+"
TAIL = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


def mixed_strings(count: int, seed: int = 7) -> list[str]:
    """Return the tricky strings, then random mixes of awkward characters."""
    draw = random.Random(seed)
    alphabet = "ab 1 2\n\r\t'sStTɛɔ₵é\u0301.,!?<|>-_  \u00a0\u2003½²日👍\u200d'llLL"
    mixes = ["".join(draw.choices(alphabet, k=draw.randint(1, 40))) for _ in range(count)]
    return [*TRICKY, *mixes]


def split(numbers: str) -> Any:
    """Return the splitter of Llama 3 and Qwen 2; they differ in how many digits stay together."""
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORDS + "|" + numbers + TAIL), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


SPLITTERS: dict[str, Any] = {
    "llama-3": split(r"\p{N}{1,3}"),
    "qwen2": split(r"\p{N}"),
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


def sentencepiece_parts() -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Train a vocabulary of SentencePiece's kind: every way to make a piece is a merge, best pieces first."""
    specials = ["<unk>", "<s>", "</s>", "<pad>"]
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    tokenizer.normalizer = normalizers.Replace(" ", SPACE)
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(f"{SPACE}*[^{SPACE}]+|{SPACE}+"), "isolated")
    trainer = trainers.BpeTrainer(
        vocab_size=460,
        special_tokens=[*specials, *(f"<0x{byte:02X}>" for byte in range(256))],
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXTS * 3, trainer)
    model = json.loads(tokenizer.to_str())["model"]
    vocab = model["vocab"]
    pieces = dict.fromkeys(a + b for a, b in model["merges"])
    merges = [(p[:n], p[n:]) for p in pieces for n in range(1, len(p)) if p[:n] in vocab and p[n:] in vocab]
    return vocab, merges


def sentencepiece(kind: str) -> Any:
    """Build a tokenizer of SentencePiece's kind: llama, legacy, gemma, prepend or phi-3."""
    vocab, merges = sentencepiece_parts()
    if kind in ("llama", "legacy"):
        return hub.LlamaTokenizer(vocab=vocab, merges=merges, legacy=kind == "legacy")
    if kind == "gemma":
        return hub.GemmaTokenizer(vocab=vocab, merges=merges, bos_token="<s>", eos_token="</s>")
    tokenizer = Tokenizer(
        models.BPE(vocab=vocab, merges=merges, byte_fallback=True, unk_token="<unk>", fuse_unk=True)
    )
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend(SPACE), normalizers.Replace(" ", SPACE)])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 1)]
    )
    if kind == "phi-3":
        names = ("<|endoftext|>", "<|user|>", "<|end|>", "<|assistant|>")
        trimmed = [AddedToken(n, special=True, rstrip=n != "<|endoftext|>", normalized=False) for n in names]
        tokenizer.add_special_tokens(
            [AddedToken("</s>", special=True, rstrip=True, normalized=False), *trimmed]
        )
    return hub.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    )


def perturb(model: torch.nn.Module, seed: int = 1) -> None:
    """Move every norm and bias off its initial value, and sharpen the rest, so mapping errors show."""
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim == 1:
                weight.add_(torch.randn(weight.shape, generator=draw) * 0.3)
            else:
                weight.copy_(torch.randn(weight.shape, generator=draw) * 0.06)


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
