"""What a tokenizer and its chat template say beyond the vocabulary: ends of turns, and how text is treated."""

import json
from pathlib import Path
from typing import Any, NamedTuple

from transformers import GenerationConfig

from core.data.chat import ChatTokenizer
from core.deployment.gguf.vocab import steps_of
from core.deployment.llama.spelling import Spelling
from core.errors import ModelError


class Stops(NamedTuple):
    """Tokens that end generation, in GGUF's terms."""

    eot: int | None
    """Ends a turn."""
    eom: int | None
    """Ends a message within a turn, or any third token that ends generation."""


def chat_template(tokenizer: Any) -> str | None:
    """Return the chat template a tokenizer brings, None if it has none.

    Raises:
        ModelError: If it brings several and none is the default.
    """
    template = tokenizer.chat_template
    if isinstance(template, dict):
        if "default" not in template:
            raise ModelError("none of the chat templates is called default", where="tokenizer_config.json")
        template = template["default"]
    return str(template) if template else None


def speech_of(tokenizer: Any) -> ChatTokenizer | None:
    """Return the tokenizer with its template, None if it has none that ends answers."""
    template = chat_template(tokenizer)
    try:
        return ChatTokenizer(tokenizer, template) if template else None
    except ModelError:
        return None


def stops_of(tokenizer: Any, chat: ChatTokenizer | None, model_dir: Path) -> Stops:
    """Find the tokens that end generation besides EOS.

    The token that ends the template's answers comes first, also where generation_config.json forgot it.

    Args:
        tokenizer: The transformers tokenizer.
        chat: The same with its template.
        model_dir: Folder that may hold a ``generation_config.json``.
    """
    ends = [*(chat.end_of_turn_ids if chat else ()), *listed_stops(model_dir)]
    others = [token for token in dict.fromkeys(ends) if token != tokenizer.eos_token_id]
    # Of more than two the least likely to be met go: reserved slots for tools come last.
    eot, eom = [*others[:2], None, None][:2]
    return Stops(eot, eom)


def spelling_of(tokenizer: Any, chat: ChatTokenizer | None, model_dir: Path) -> Spelling:
    """Return the rules for text and ends that llama.cpp does not know.

    Args:
        tokenizer: The transformers tokenizer.
        chat: The same with its template.
        model_dir: Folder that may hold a ``generation_config.json``.
    """
    spec = json.loads(tokenizer.backend_tokenizer.to_str())
    forms = [step["type"] for step in steps_of(spec.get("normalizer"), "normalizers")]
    added = spec["added_tokens"]
    special = {token["content"] for token in added if token["special"]} | set(tokenizer.all_special_tokens)
    return Spelling(
        chat.control_tokens if chat else special,
        plain=[token["content"] for token in added],
        strip_left=[token["content"] for token in added if token["lstrip"]],
        strip_right=[token["content"] for token in added if token["rstrip"]],
        normalization="NFC" if "NFC" in forms else "",
        stops={*(chat.stop_ids if chat else ()), *listed_stops(model_dir)},
    )


def listed_stops(model_dir: Path) -> list[int]:
    """Return the ids that generation_config.json lists as ends."""
    if not (model_dir / "generation_config.json").is_file():
        return []
    ids = GenerationConfig.from_pretrained(model_dir, local_files_only=True).eos_token_id
    return [ids] if isinstance(ids, int) else list(ids or [])
