"""A model's tokenizer with the chat template it speaks."""

from pathlib import Path
from typing import TYPE_CHECKING

from core.data.config import ChatTemplateName

if TYPE_CHECKING:
    from core.data.chat import ChatTokenizer

READS = (
    "core.data.batches",
    "core.data.chat",
    "core.data.control_text",
    "core.data.examples",
    "core.data.records",
    "core.data.template_probe",
    "core.data.templates",
    "core.data.token_store",
    "core.data.tool_turns",
    "core.models",
    "tasks.chat_tokens",
)


def chat_tokenizer(folder: Path, fallback: ChatTemplateName) -> "ChatTokenizer":
    """Load a model folder's tokenizer; ``fallback`` names the template if it brings none."""
    from core.data.chat import ChatTokenizer
    from core.data.templates import template_for
    from core.models.loading import load_tokenizer, read_hf_config

    tokenizer = load_tokenizer(str(folder))
    kind = read_hf_config(folder).get("model_type")
    return ChatTokenizer(tokenizer, template_for(tokenizer, fallback, model_type=kind))
