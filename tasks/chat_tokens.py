"""A model's tokenizer with the chat template it speaks."""

from pathlib import Path
from typing import TYPE_CHECKING

from core.data.config import ChatTemplateName

if TYPE_CHECKING:
    from core.data.chat import ChatTokenizer

LOADING = (
    "core.kernels",
    "core.models.architectures",
    "core.models.devices",
    "core.models.engines",
    "core.models.failures",
    "core.models.files",
    "core.models.frameworks",
    "core.models.fused",
    "core.models.hf",
    "core.models.loading",
    "core.models.quantized",
    "core.models.seed",
    "core.models.target_names",
    "core.models.targeting",
    "core.models.unsloth",
    "core.models.weight_files",
)
"""What loading a model or a tokenizer runs; the estimates of memory and time are none of it."""
READS = (
    *LOADING,
    "core.data.batches",
    "core.data.chat",
    "core.data.control_text",
    "core.data.examples",
    "core.data.records",
    "core.data.template_probe",
    "core.data.templates",
    "core.data.token_store",
    "core.data.tool_turns",
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
