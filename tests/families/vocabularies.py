"""Tokenizers of every family's kind, trained here in milliseconds.

What a family publishes is kept: the kind of vocabulary, the splitting, the control tokens under their
names and with their flags, what is put before a text, which token ends it.
"""

import json
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

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

from tests.families.texts import TEXTS

# Its constructors have no types.
hub: Any = transformers
SPACE = "\u2581"
CONTRACTION = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
TAIL = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
WORDS = CONTRACTION + r"|[^\r\n\p{L}\p{N}]?\p{L}+"
UPPER, LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
BORDER = r"[^\r\n\p{L}\p{N}]?"
O200K = (
    f"{BORDER}{UPPER}*{LOWER}+{CONTRACTION}?|{BORDER}{UPPER}+{LOWER}*{CONTRACTION}?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
DIGITS = {"llama-3": r"\p{N}{1,3}", "qwen2": r"\p{N}"}
ROOM = 160
"""Tokens for the words of further texts."""
TEMPLATES = Path(__file__).parent / "templates"


class Published(NamedTuple):
    """What the tokenizer of a family is published with."""

    control: tuple[str, ...]
    """Added tokens that are special."""
    plain: tuple[str, ...] = ()
    """Added tokens that are not."""
    bos: str | None = None
    eos: str = ""
    pad: str | None = None
    stops: tuple[str, ...] = ()
    """What generation_config.json lists as ends."""


_QWEN_CONTROL = (
    *("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|object_ref_start|>", "<|object_ref_end|>"),
    *(
        "<|box_start|>",
        "<|box_end|>",
        "<|vision_start|>",
        "<|vision_end|>",
        "<|vision_pad|>",
        "<|image_pad|>",
    ),
)
_QWEN_PLAIN = (
    "<tool_call>",
    "</tool_call>",
    "<|fim_prefix|>",
    "<|fim_suffix|>",
    "<|repo_name|>",
    "<|file_sep|>",
)
_QWEN = Published(
    _QWEN_CONTROL, _QWEN_PLAIN, None, "<|im_end|>", "<|endoftext|>", ("<|im_end|>", "<|endoftext|>")
)
_LLAMA = Published(
    (
        *(
            "<|begin_of_text|>",
            "<|end_of_text|>",
            "<|reserved_special_token_0|>",
            "<|finetune_right_pad_id|>",
        ),
        *("<|start_header_id|>", "<|end_header_id|>", "<|eom_id|>", "<|eot_id|>", "<|python_tag|>"),
    ),
    bos="<|begin_of_text|>",
    eos="<|eot_id|>",
    pad="<|finetune_right_pad_id|>",
    stops=("<|end_of_text|>", "<|eom_id|>", "<|eot_id|>"),
)
_PHI3_ROLES = ("<|assistant|>", "<|placeholder1|>", "<|system|>", "<|end|>", "<|user|>")

PUBLISHED: dict[str, Published] = {
    "gemma-3": Published(
        (
            "<pad>",
            "<eos>",
            "<bos>",
            "<unk>",
            "<mask>",
            "<start_of_turn>",
            "<end_of_turn>",
            "<start_of_image>",
        ),
        ("<unused0>", "\n\n", "\n\n\n", SPACE * 2, SPACE * 3, "<table>", "</table>"),
        bos="<bos>",
        eos="<eos>",
        pad="<pad>",
        stops=("<eos>", "<end_of_turn>"),
    ),
    "llama-3.1": _LLAMA,
    "llama-3.2": _LLAMA,
    "mistral": Published(
        (
            *("<unk>", "<s>", "</s>", "[INST]", "[/INST]", "[TOOL_CALLS]", "[AVAILABLE_TOOLS]"),
            *("[/AVAILABLE_TOOLS]", "[TOOL_RESULTS]", "[/TOOL_RESULTS]"),
        ),
        bos="<s>",
        eos="</s>",
        stops=("</s>",),
    ),
    "qwen2.5": _QWEN,
    "qwen3": _QWEN._replace(
        plain=(*_QWEN_PLAIN, "<tool_response>", "</tool_response>", "<think>", "</think>")
    ),
    "phi-3": Published(
        ("<unk>", "<s>", "<|endoftext|>", *_PHI3_ROLES),
        ("</s>",),
        bos="<s>",
        eos="<|endoftext|>",
        pad="<|endoftext|>",
        stops=("<|endoftext|>", "<|assistant|>", "<|end|>"),
    ),
    "phi-4": Published(
        (
            *("<|endoftext|>", "<|fim_prefix|>", "<|dummy_85|>", "<|im_start|>", "<|im_end|>", "<|im_sep|>"),
            "<|endofprompt|>",
        ),
        bos="<|endoftext|>",
        eos="<|im_end|>",
        pad="<|dummy_85|>",
        stops=("<|im_end|>",),
    ),
    "phi-4-mini": Published(
        ("<|endoftext|>", "<|assistant|>", "<|end|>", "<|user|>", "<|system|>", "<|endofprompt|>"),
        ("<|tool|>", "<|/tool|>", "<|tool_call|>", "<|/tool_call|>"),
        bos="<|endoftext|>",
        eos="<|endoftext|>",
        pad="<|endoftext|>",
        stops=("<|end|>", "<|endoftext|>"),
    ),
}


def tokenizer_for(family: str, more: tuple[str, ...] = ()) -> Any:
    """Return a new tokenizer of a family, with its chat template.

    Args:
        family: One of ``FAMILIES`` or ``VARIANTS``.
        more: Texts whose words are to become tokens, besides those of ``TEXTS``.
    """
    kind = "phi-3" if family == "phi-3-128k" else family
    names = PUBLISHED[kind]
    tokenizer = _MAKERS[kind](names, more)
    tokenizer.chat_template = (TEMPLATES / f"{kind}.jinja").read_text(encoding="utf-8")
    return tokenizer


def _named(names: Published, **extra: Any) -> dict[str, Any]:
    return {"bos_token": names.bos, "eos_token": names.eos, "pad_token": names.pad} | extra


def split(numbers: str) -> Any:
    """Return the splitter of Llama 3 and Qwen 2; they differ in how many digits stay together."""
    return by_regex(WORDS + "|" + numbers + TAIL)


def by_regex(pattern: str) -> Any:
    """Return a splitter by regex, then bytes."""
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


@lru_cache
def byte_level_json(pattern: str, ignore_merges: bool = False, more: tuple[str, ...] = ()) -> str:
    """Train a byte-level vocabulary of some 340 tokens; returned as ``tokenizer.json`` holds it."""
    tokenizer = Tokenizer(models.BPE(ignore_merges=ignore_merges))
    tokenizer.pre_tokenizer = by_regex(pattern)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=340 + ROOM * bool(more),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([*TEXTS * 3, *more], trainer)
    return str(tokenizer.to_str())


@lru_cache
def sentencepiece_parts(
    specials: tuple[str, ...] = ("<unk>", "<s>", "</s>", "<pad>"), more: tuple[str, ...] = ()
) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Train a vocabulary of SentencePiece's kind: every way to make a piece is a merge, best pieces first."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    tokenizer.normalizer = normalizers.Replace(" ", SPACE)
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(f"{SPACE}*[^{SPACE}]+|{SPACE}+"), "isolated")
    trainer = trainers.BpeTrainer(
        vocab_size=460 + ROOM * bool(more),
        special_tokens=[*specials, *(f"<0x{byte:02X}>" for byte in range(256))],
        show_progress=False,
    )
    tokenizer.train_from_iterator([*TEXTS * 3, *more], trainer)
    model = json.loads(tokenizer.to_str())["model"]
    vocab = model["vocab"]
    pieces = dict.fromkeys(a + b for a, b in model["merges"])
    merges = [(p[:n], p[n:]) for p in pieces for n in range(1, len(p)) if p[:n] in vocab and p[n:] in vocab]
    return vocab, merges


def sentencepiece_model(*specials: str, more: tuple[str, ...] = ()) -> Tokenizer:
    """Return a tokenizer with such a vocabulary, without any rule how to treat spaces."""
    vocab, merges = sentencepiece_parts(specials, more) if specials else sentencepiece_parts()
    return Tokenizer(
        models.BPE(vocab=vocab, merges=merges, byte_fallback=True, unk_token="<unk>", fuse_unk=True)
    )


def leading_space_decoder() -> Any:
    """Return the decoder that takes the dummy space away again."""
    return decoders.Sequence(
        [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )


def starts_with(tokenizer: Tokenizer, token: str) -> Any:
    """Return the post-processor that puts one token first."""
    return processors.TemplateProcessing(
        single=f"{token} $A",
        pair=f"{token} $A {token} $B",
        special_tokens=[(token, tokenizer.token_to_id(token))],
    )


def _special(names: tuple[str, ...], **flags: bool) -> list[AddedToken]:
    return [AddedToken(name, special=True, normalized=False, **flags) for name in names]


def _plain(names: tuple[str, ...], **flags: bool) -> list[AddedToken]:
    return [AddedToken(name, special=False, normalized=False, **flags) for name in names]


def _gemma(names: Published, more: tuple[str, ...]) -> Any:
    vocab, merges = sentencepiece_parts(names.control[:5] + names.plain[:1] + names.control[5:], more)
    tokenizer = hub.GemmaTokenizer(vocab=dict(vocab), merges=list(merges))
    tokenizer.add_tokens(_special(names.control), special_tokens=True)
    # Runs of spaces are pieces that merging makes; the published list names them once more.
    tokenizer.add_tokens(_plain(tuple(name for name in names.plain if SPACE not in name or name in vocab)))
    tokenizer.backend_tokenizer.post_processor = starts_with(tokenizer.backend_tokenizer, "<bos>")
    return tokenizer


def _llama(names: Published, more: tuple[str, ...]) -> Any:
    tokenizer = Tokenizer.from_str(byte_level_json(WORDS + "|" + DIGITS["llama-3"] + TAIL, True, more))
    tokenizer.add_special_tokens(_special(names.control))
    tokenizer.post_processor = processors.Sequence(
        [processors.ByteLevel(trim_offsets=False), starts_with(tokenizer, "<|begin_of_text|>")]
    )
    return hub.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **_named(names))


def _mistral(names: Published, more: tuple[str, ...]) -> Any:
    tokenizer = sentencepiece_model(*names.control, more=more)
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(SPACE, prepend_scheme="first", split=False)
    tokenizer.decoder = leading_space_decoder()
    tokenizer.add_special_tokens(_special(names.control))
    tokenizer.post_processor = starts_with(tokenizer, "<s>")
    return hub.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **_named(names, unk_token="<unk>"))


def _qwen(names: Published, more: tuple[str, ...]) -> Any:
    model = json.loads(byte_level_json(WORDS + "|" + DIGITS["qwen2"] + TAIL, more=more))["model"]
    merges = [tuple(pair) for pair in model["merges"]]
    tokenizer = hub.Qwen2Tokenizer(vocab=model["vocab"], merges=merges, unk_token=None, **_named(names))
    tokenizer.add_tokens(_special(names.control), special_tokens=True)
    tokenizer.add_tokens(_plain(names.plain))
    return tokenizer


def _phi3(names: Published, more: tuple[str, ...]) -> Any:
    tokenizer = sentencepiece_model("<unk>", "<s>", "</s>", more=more)
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend(SPACE), normalizers.Replace(" ", SPACE)])
    tokenizer.decoder = leading_space_decoder()
    tokenizer.add_special_tokens(_special(names.control[:2]))
    tokenizer.add_tokens(_plain(("</s>",), rstrip=True))
    tokenizer.add_special_tokens(_special(names.control[2:3]))
    tokenizer.add_special_tokens(_special(_PHI3_ROLES, rstrip=True))
    tokenizer.post_processor = starts_with(tokenizer, "<s>")
    return hub.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **_named(names, unk_token="<unk>"))


def _phi4(names: Published, more: tuple[str, ...]) -> Any:
    tokenizer = Tokenizer.from_str(byte_level_json(WORDS + "|" + DIGITS["llama-3"] + TAIL, more=more))
    tokenizer.add_special_tokens(_special(names.control, lstrip=True, rstrip=True))
    return hub.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **_named(names))


def _phi4_mini(names: Published, more: tuple[str, ...]) -> Any:
    tokenizer = Tokenizer.from_str(byte_level_json(O200K, more=more))
    tokenizer.add_special_tokens(_special(names.control))
    tokenizer.add_tokens(_plain(names.plain))
    return hub.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **_named(names))


_MAKERS = {
    "gemma-3": _gemma,
    "llama-3.1": _llama,
    "llama-3.2": _llama,
    "mistral": _mistral,
    "qwen2.5": _qwen,
    "qwen3": _qwen,
    "phi-3": _phi3,
    "phi-4": _phi4,
    "phi-4-mini": _phi4_mini,
}
