"""Which chat template a tokenizer speaks: its own, or one of those that ship here."""

import re
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from core.data.config import ChatTemplateName
from core.errors import ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

_FOLDER = Path(__file__).parent / "templates"
_DAY = date(2024, 7, 26)
_CALL = re.compile(r"""strftime_now\(\s*(?P<quote>["'])(?P<form>[^"']*)(?P=quote)\s*\)""")
_ASKED = re.compile(r"strftime_now\s+is\s+defined")
_MACRO = "{% macro strftime_now(form) %}" + _DAY.strftime("%d %b %Y") + "{% endmacro %}"
_EOS = "eos_token"


class _Family(NamedTuple):
    """What tells that a tokenizer was made for a template."""

    needed: tuple[str, ...]
    """Tokens that end turns must be single tokens, or a model cannot be stopped by them."""
    marks: tuple[str, ...]
    """Tokens that only this family's tokenizers have; the first family that has them all is suggested."""
    model_types: tuple[str, ...] = ()
    """What config.json calls models of the family."""


_TURNS = ("<|im_start|>", "<|im_end|>")
_FAMILIES: dict[ChatTemplateName, _Family] = {
    "gemma-3": _Family(
        ("<start_of_turn>", "<end_of_turn>"),
        ("<start_of_turn>", "<end_of_turn>"),
        ("gemma3", "gemma3_text"),
    ),
    "llama-3": _Family(
        ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
        ("<|start_header_id|>", "<|eot_id|>"),
        ("llama",),
    ),
    "phi-4": _Family((*_TURNS, "<|im_sep|>"), (*_TURNS, "<|im_sep|>"), ("phi3",)),
    "qwen3": _Family(_TURNS, (*_TURNS, "<tool_call>", "<think>"), ("qwen3",)),
    "qwen2.5": _Family(_TURNS, (*_TURNS, "<tool_call>", "<|vision_start|>"), ("qwen2",)),
    "chatml": _Family(_TURNS, _TURNS),
    "phi-3": _Family(
        ("<|user|>", "<|assistant|>", "<|end|>"), ("<|user|>", "<|assistant|>", "<|end|>"), ("phi3",)
    ),
    "mistral": _Family((_EOS,), ("[INST]", "[/INST]"), ("mistral",)),
    "zephyr": _Family((_EOS,), (_EOS,)),
}


def template_for(
    tokenizer: "PreTrainedTokenizerFast", name: ChatTemplateName, *, model_type: str | None = None
) -> str:
    """Return the chat template to use with a tokenizer.

    A tokenizer's own template wins: the model has learnt it.

    Args:
        tokenizer: The base model's tokenizer.
        name: Template for tokenizers that bring none.
        model_type: What the model's config.json calls it; helps to suggest another template.

    Returns:
        Jinja source.

    Raises:
        ModelError: If the named template needs tokens that the vocabulary lacks.
    """
    own = tokenizer.chat_template
    if isinstance(own, dict):
        own = own.get("default")
    if own:
        return str(own)
    missing = _missing(tokenizer, _FAMILIES[name].needed)
    if missing:
        raise ModelError(
            f"the tokenizer brings no chat template, and {name} needs {', '.join(missing)}, which it does not have",
            where="dataset.chat_template",
            fix=_advice(tokenizer, model_type),
        )
    return shipped(name)


def suggest(tokenizer: "PreTrainedTokenizerFast", model_type: str | None = None) -> ChatTemplateName | None:
    """Return the template a tokenizer was made for, by its tokens; None if none would work.

    Args:
        tokenizer: Any tokenizer, with or without a template of its own.
        model_type: What the model's config.json calls it; decides where tokens fit several templates.
    """
    fitting = [name for name, family in _FAMILIES.items() if not _missing(tokenizer, family.needed)]
    made_for = [name for name in fitting if not _missing(tokenizer, _FAMILIES[name].marks)]
    named = [name for name in made_for if model_type in _FAMILIES[name].model_types]
    if not named and made_for == ["zephyr"]:
        # Nothing but an end token: any of the two goes, unless the model says which.
        named = [name for name in fitting if model_type in _FAMILIES[name].model_types]
    return next(iter([*named, *made_for]), None)


def shipped(name: ChatTemplateName) -> str:
    """Return the source of one of our own templates."""
    return (_FOLDER / f"{name}.jinja").read_text(encoding="utf-8")


def _advice(tokenizer: "PreTrainedTokenizerFast", model_type: str | None) -> str:
    best = suggest(tokenizer, model_type)
    if best is None:
        return "choose a base model whose tokenizer has an eos_token"
    others = [n for n, f in _FAMILIES.items() if n != best and not _missing(tokenizer, f.needed)]
    return f"choose {best}, which its tokens fit best" + (
        f"; {' or '.join(others)} would also work" if others else ""
    )


def _missing(tokenizer: "PreTrainedTokenizerFast", names: tuple[str, ...]) -> list[str]:
    vocabulary = tokenizer.get_vocab()
    has_eos = tokenizer.eos_token is not None
    return [token for token in names if not (has_eos if token == _EOS else token in vocabulary)]


def without_today(template: str) -> str:
    """Fix the date in a template that writes today's, such as Llama 3.2's.

    A prompt must be the same tomorrow: scores of two days are compared, and what is served is what was measured.
    The date is the one that template itself falls back to.
    """
    fixed = _CALL.sub(lambda call: repr(_DAY.strftime(call["form"])), template)
    fixed = _ASKED.sub("true", fixed)
    # Called with something else than a text: the name itself is taken over.
    return _MACRO + fixed if "strftime_now" in fixed else fixed
