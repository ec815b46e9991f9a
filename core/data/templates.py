"""Which chat template a tokenizer speaks: its own, or one of five that ship here."""

from pathlib import Path
from typing import TYPE_CHECKING

from core.data.config import ChatTemplateName
from core.errors import ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

_FOLDER = Path(__file__).parent / "templates"
_EOS = "eos_token"
# The tokens that end turns must be single tokens, or a model cannot be stopped by them.
_NEEDED: dict[ChatTemplateName, tuple[str, ...]] = {
    "gemma-3": ("<start_of_turn>", "<end_of_turn>"),
    "llama-3": ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
    "mistral": (_EOS,),
    "chatml": ("<|im_start|>", "<|im_end|>"),
    "zephyr": (_EOS,),
}


def template_for(tokenizer: "PreTrainedTokenizerFast", name: ChatTemplateName) -> str:
    """Return the chat template to use with a tokenizer.

    A tokenizer's own template wins: the model has learnt it.

    Args:
        tokenizer: The base model's tokenizer.
        name: Template for tokenizers that bring none.

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
    missing = _missing(tokenizer, name)
    if missing:
        fitting = [other for other in _NEEDED if not _missing(tokenizer, other)]
        raise ModelError(
            f"the chat template {name} needs {', '.join(missing)}, which the tokenizer does not have",
            where="dataset.chat_template",
            fix=f"choose {' or '.join(fitting)}"
            if fitting
            else "choose a base model whose tokenizer has an eos_token",
        )
    return shipped(name)


def shipped(name: ChatTemplateName) -> str:
    """Return the source of one of our own templates."""
    return (_FOLDER / f"{name}.jinja").read_text(encoding="utf-8")


def _missing(tokenizer: "PreTrainedTokenizerFast", name: ChatTemplateName) -> list[str]:
    vocabulary = tokenizer.get_vocab()
    has_eos = tokenizer.eos_token is not None
    return [token for token in _NEEDED[name] if not (has_eos if token == _EOS else token in vocabulary)]
