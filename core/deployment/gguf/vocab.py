"""Vocabularies: which llama.cpp tokenizer equals a Hugging Face one, and in what form it wants it.

llama.cpp knows pre-tokenizers by name only. A name is written only if the
pre-tokenizer is, regex and all, one that was measured to be equal.
"""

import json
import re
from dataclasses import dataclass
from typing import Any

from gguf import TokenType

from core.errors import ModelError

_CONTRACTION = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_BORDER = r"[^\r\n\p{L}\p{N}]?"
_TAIL = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_WORDS = _CONTRACTION + r"|[^\r\n\p{L}\p{N}]?\p{L}+"
LLAMA3_SPLIT = _WORDS + r"|\p{N}{1,3}" + _TAIL
QWEN2_SPLIT = _WORDS + r"|\p{N}" + _TAIL
O200K_SPLIT = (
    f"{_BORDER}{_UPPER}*{_LOWER}+{_CONTRACTION}?|{_BORDER}{_UPPER}+{_LOWER}*{_CONTRACTION}?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

# (pre-tokenizer steps, whether whole words skip the merges) -> llama.cpp's name for it.
PRE_TOKENIZERS: dict[tuple[tuple[tuple[str, Any], ...], bool], str] = {
    ((("Split", LLAMA3_SPLIT), ("ByteLevel", False)), True): "llama-bpe",
    ((("Split", LLAMA3_SPLIT), ("ByteLevel", False)), False): "smaug-bpe",
    ((("Split", O200K_SPLIT), ("ByteLevel", False)), False): "gpt-4o",
    ((("Split", QWEN2_SPLIT), ("ByteLevel", False)), False): "qwen2",
    ((("ByteLevel", True),), False): "gpt-2",
    ((("Digits", True), ("ByteLevel", True)), False): "smollm",
}
SUPPORTED = (
    "byte-level BPE split like GPT-2, SmolLM, Llama 3, Phi-4 or Qwen 2, "
    "and BPE with byte fallback (Llama 2, Mistral, Phi-3, Gemma)"
)

SPACE = "\u2581"
BYTE = re.compile(r"<0x[0-9A-F]{2}>")
# Tokens that no merge makes must lose against every merge when llama.cpp compares scores.
NEVER_MERGED = -1e9
PHI3_TOKENS = ("</s>", "<unk>", "<s>", "<|endoftext|>")


@dataclass(frozen=True)
class Vocab:
    """A vocabulary in GGUF's terms; lists run over token ids."""

    model: str
    """gpt2 for byte-level BPE, llama for SentencePiece's kind."""
    pre: str
    tokens: list[str]
    types: list[int]
    scores: list[float] | None
    """Merge priority of each token; SentencePiece's kind only."""
    merges: list[str] | None
    space_prefix: bool
    """Put a space before the text and after every control token."""
    trims_after_control: bool
    """Drop white space after control tokens, as Phi-3 does."""


def read_vocab(spec: dict[str, Any], rows: int) -> Vocab:
    """Translate a fast tokenizer.

    Args:
        spec: What ``tokenizer.json`` holds.
        rows: Rows of the embedding; ids without a token get a placeholder.

    Returns:
        The vocabulary for the file.

    Raises:
        ModelError: If llama.cpp has no tokenizer that splits text the same way, or
            there are more tokens than rows.
    """
    model = spec["model"]
    if (
        model.get("type") != "BPE"
        or model.get("continuing_subword_prefix")
        or model.get("end_of_word_suffix")
    ):
        raise _unsupported(f"tokenizer model {model.get('type')}")
    tokens, types = _list_tokens(spec, rows)
    trims = _trims_after_control(spec, model["vocab"] | {t["content"]: t["id"] for t in spec["added_tokens"]})
    merges = [pair.split(" ") if isinstance(pair, str) else pair for pair in model["merges"]]
    if not model.get("byte_fallback"):
        joined = [" ".join(pair) for pair in merges]
        return Vocab("gpt2", _byte_level_name(spec), tokens, types, None, joined, False, trims)
    _check_spm(spec)
    scores = _scores(tokens, merges)
    return Vocab("llama", "default", tokens, types, scores, None, _space_prefix(spec), trims)


def _unsupported(what: str) -> ModelError:
    return ModelError(
        f"{what} has no equal in llama.cpp",
        where="tokenizer.json",
        fix=f"use a tokenizer of a supported kind: {SUPPORTED}",
    )


def _list_tokens(spec: dict[str, Any], rows: int) -> tuple[list[str], list[int]]:
    by_id = {number: token for token, number in spec["model"]["vocab"].items()}
    added = {entry["id"]: entry for entry in spec["added_tokens"]}
    by_id |= {number: entry["content"] for number, entry in added.items()}
    if max(by_id) >= rows:
        raise ModelError(
            f"the tokenizer has ids up to {max(by_id)}, the embedding only {rows} rows",
            where="tokenizer.json",
            fix="resize the embedding to the tokenizer and save both again",
        )
    fallback = bool(spec["model"].get("byte_fallback"))
    unknown = spec["model"].get("unk_token")
    tokens = [by_id.get(number, f"[PAD{number}]") for number in range(rows)]
    types = [
        _type_of(token, added.get(number), fallback, unknown) if number in by_id else TokenType.UNUSED
        for number, token in enumerate(tokens)
    ]
    return tokens, [int(kind) for kind in types]


def _type_of(token: str, added: dict[str, Any] | None, fallback: bool, unknown: str | None) -> TokenType:
    if fallback and token == unknown:
        return TokenType.UNKNOWN
    if fallback and BYTE.fullmatch(token):
        return TokenType.BYTE
    if added is None or (fallback and not added["special"] and SPACE in token):
        # An added token with the space mark never matches raw text; it is reached by merging.
        return TokenType.NORMAL
    return TokenType.CONTROL if added["special"] else TokenType.USER_DEFINED


def steps_of(part: dict[str, Any] | None, key: str) -> list[dict[str, Any]]:
    """Return the single steps of a normalizer or pre-tokenizer, however they are nested."""
    if part is None:
        return []
    if part["type"] == "Sequence":
        return [step for inner in part[key] for step in steps_of(inner, key)]
    return [part]


def _byte_level_name(spec: dict[str, Any]) -> str:
    normalizers = [step["type"] for step in steps_of(spec.get("normalizer"), "normalizers")]
    # llama.cpp normalises nothing; our worker does, by a rule in the file.
    if normalizers not in ([], ["NFC"]):
        raise _unsupported(f"normalizer {'+'.join(normalizers)}")
    steps = tuple(_signature(step) for step in steps_of(spec.get("pre_tokenizer"), "pretokenizers"))
    name = PRE_TOKENIZERS.get((steps, bool(spec["model"].get("ignore_merges"))))
    if name is None:
        shown = json.dumps(spec.get("pre_tokenizer"), ensure_ascii=False)
        raise _unsupported(
            f"pre-tokenizer {shown} (ignore_merges {bool(spec['model'].get('ignore_merges'))})"
        )
    return name


def _signature(step: dict[str, Any]) -> tuple[str, Any]:
    kind = step["type"]
    if kind == "Split" and step["behavior"] == "Isolated" and not step["invert"]:
        return kind, step["pattern"].get("Regex")
    if kind == "ByteLevel" and not step["add_prefix_space"]:
        return kind, step["use_regex"]
    if kind == "Digits":
        return kind, step["individual_digits"]
    return kind, json.dumps(step, sort_keys=True)


def _check_spm(spec: dict[str, Any]) -> None:
    for step in steps_of(spec.get("normalizer"), "normalizers"):
        replaces = (
            step["type"] == "Replace" and step["pattern"] == {"String": " "} and step["content"] == SPACE
        )
        prepends = step["type"] == "Prepend" and step["prepend"] == SPACE
        if not (replaces or prepends):
            raise _unsupported(f"normalizer {step['type']}")
    for step in steps_of(spec.get("pre_tokenizer"), "pretokenizers"):
        marks = step["type"] == "Metaspace" and step["replacement"] == SPACE
        idle = step["type"] == "Split" and step["pattern"] == {"String": " "}
        if not (marks or idle):
            raise _unsupported(f"pre-tokenizer {step['type']}")
    missing = [f"<0x{byte:02X}>" for byte in range(256) if f"<0x{byte:02X}>" not in spec["model"]["vocab"]]
    if missing:
        raise _unsupported(f"byte fallback without {missing[0]}")


def _space_prefix(spec: dict[str, Any]) -> bool:
    """Tell whether every stretch of text gets a leading space.

    Metaspace's "first" touches only text at position 0. Chat prompts start with a
    control token there, so for them it equals no prefix; plain text differs by one mark.
    """
    if any(step["type"] == "Prepend" for step in steps_of(spec.get("normalizer"), "normalizers")):
        return True
    steps = steps_of(spec.get("pre_tokenizer"), "pretokenizers")
    return any(step["type"] == "Metaspace" and step.get("prepend_scheme") == "always" for step in steps)


def _scores(tokens: list[str], merges: list[list[str]]) -> list[float]:
    ranks: dict[str, int] = {}
    for rank, pair in enumerate(merges):
        ranks.setdefault("".join(pair), rank)
    return [float(-ranks[token]) if token in ranks else _unmerged(token) for token in tokens]


def _unmerged(token: str) -> float:
    return 0.0 if len(token) == 1 or BYTE.fullmatch(token) else NEVER_MERGED


def _trims_after_control(spec: dict[str, Any], ids: dict[str, int]) -> bool:
    trims = any(entry["rstrip"] for entry in spec["added_tokens"] if entry["special"])
    return trims and all(token in ids for token in PHI3_TOKENS)
