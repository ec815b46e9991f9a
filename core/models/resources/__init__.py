"""How much memory and disk a model needs, from its published shape alone; no framework is loaded.

Everything is counted from the numbers in a model's config.json. The estimates are upper bounds for
examples that fill the window; they exist so that a run which cannot fit is refused before it starts,
and one that leaves a card half empty is told so.
"""

from core.models.resources.advice import (
    HARDWARE,
    VRAM_TABLE,
    Advice,
    VramRow,
    fit,
    hardware_row,
    recommended_settings,
)
from core.models.resources.counting import (
    adapted,
    count_block_weights,
    count_lora,
    count_packed_weights,
    count_parameters,
    linears,
)
from core.models.resources.fused import fused_obstacle
from core.models.resources.outlook import Outlook, find_outlook
from core.models.resources.phases import (
    GGUF_BYTES,
    ONNX_TRACE_BYTES,
    PYTORCH_ROUND_BYTES,
    estimate_disk,
    estimate_gguf,
    estimate_inference,
    estimate_merge,
    estimate_onnx,
    estimate_pytorch,
)
from core.models.resources.shapes import (
    FAMILIES,
    PUBLISHED,
    Family,
    ModelShape,
    VisionShape,
    published_shape,
    shape_from_config,
)
from core.models.resources.training import (
    NF4_BYTES,
    OPTIMIZER_BYTES,
    Memory,
    Storage,
    TrainingLoad,
    estimate_training,
    optimizer_bytes,
    storage_of,
    stored_weights,
)

GB = 1024**3

__all__ = [
    "FAMILIES",
    "GB",
    "GGUF_BYTES",
    "HARDWARE",
    "NF4_BYTES",
    "ONNX_TRACE_BYTES",
    "OPTIMIZER_BYTES",
    "PUBLISHED",
    "PYTORCH_ROUND_BYTES",
    "VRAM_TABLE",
    "Advice",
    "Family",
    "Memory",
    "ModelShape",
    "Outlook",
    "Storage",
    "TrainingLoad",
    "VisionShape",
    "VramRow",
    "adapted",
    "count_block_weights",
    "count_lora",
    "count_packed_weights",
    "count_parameters",
    "estimate_disk",
    "estimate_gguf",
    "estimate_inference",
    "estimate_merge",
    "estimate_onnx",
    "estimate_pytorch",
    "estimate_training",
    "find_outlook",
    "fit",
    "fused_obstacle",
    "hardware_row",
    "linears",
    "optimizer_bytes",
    "published_shape",
    "recommended_settings",
    "shape_from_config",
    "storage_of",
    "stored_weights",
]
