"""Traces a causal language model into one ONNX graph that reads any number of tokens after any number before them.

The tracing, and the fusions into ONNX Runtime's operators, are those of ``transformers.exporters``. What is ours: one
graph instead of its pair for prompt and steps (which would store the weights twice), and the names of its inputs.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch

from core.deployment.onnx.names import INPUTS, past_names, present_names
from core.errors import ModelError
from core.models.failures import clear_messages, first_line
from core.models.files import require_loadable

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Model = Any  # of onnx_ir
BATCH, BEFORE, NOW = 2, 5, 3
"""Rows, tokens in the cache and new tokens of the example that is traced; none of them is 1, which would be fixed."""
WITHOUT = "leave ONNX out for this model (quantization.onnx: []); GGUF may well take it"


def load_for_export(folder: Path) -> "PreTrainedModel":
    """Load a model folder in float32 on the CPU.

    Raises:
        ModelError: If it is missing, truncated, not in safetensors, or no causal language model.
        ResourceError: If memory runs out.
    """
    from transformers import AutoModelForCausalLM

    require_loadable(folder)
    with clear_messages(str(folder)):
        model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, use_safetensors=True, trust_remote_code=False, local_files_only=True
        )
    model.eval()
    return model


def trace(model: "PreTrainedModel", *, fused: bool = True) -> Model:
    """Trace a model, with its cache as inputs and outputs.

    Args:
        model: In float32 or float16, on the CPU.
        fused: Whether norms and rotary embeddings become ONNX Runtime's own operators.

    Returns:
        A graph of input_ids [b, s], attention_mask [b, t + s], position_ids [b, s] and per layer keys and values
        [b, g, t, d], to logits [b, s, v] and per layer keys and values [b, g, t + s, d]. t may be 0.

    Raises:
        ModelError: If the model keeps other state than keys and values, or cannot be traced.
    """
    from transformers.exporters.configs import OnnxConfig
    from transformers.exporters.exporter_onnx import OnnxExporter

    fusions: Literal["cpu"] | None = "cpu" if fused else None
    try:
        example = _example(model)
        settings = OnnxConfig(dynamic=True, dynamic_shapes=_free_axes(example), ort_fusions=fusions)
        program = OnnxExporter().export(model, example, settings).program
    except (MemoryError, OSError, ModelError):
        raise
    except Exception as error:
        what = f"{type(model).__name__} cannot be traced to ONNX: {first_line(error)[:300]}"
        raise ModelError(what, fix=WITHOUT) from error
    _rename(program, _layers(example))
    _strip(program)
    return program


def _example(model: "PreTrainedModel") -> dict[str, Any]:
    from transformers import DynamicCache

    # Without the config every layer keeps all keys. A window that dropped old ones would give layers of unequal
    # length, which no other tool expects; the mask hides what lies outside it.
    cache = DynamicCache()
    # The shape is all that counts; every vocabulary has these ids.
    config = model.config.get_text_config()
    ids = torch.arange(BATCH * (BEFORE + NOW)).reshape(BATCH, -1) % min(int(config.vocab_size), 16)
    with torch.no_grad():
        model(input_ids=ids[:, :BEFORE], past_key_values=cache, use_cache=True)
    filled = [getattr(layer, "keys", None) for layer in cache.layers]
    if len(filled) != int(config.num_hidden_layers) or any(keys is None for keys in filled):
        what = f"{type(model).__name__} keeps other state than keys and values; that is not exported to ONNX"
        raise ModelError(what, fix=WITHOUT)
    return {
        "input_ids": ids[:, BEFORE:].contiguous(),
        "attention_mask": torch.ones_like(ids),
        "position_ids": torch.arange(BEFORE, BEFORE + NOW).repeat(BATCH, 1),
        "past_key_values": cache,
    }


def _layers(example: dict[str, Any]) -> int:
    return len(example["past_key_values"].layers)


def _free_axes(example: dict[str, Any]) -> dict[str, Any]:
    """Name the axes that vary: batch, tokens, cached tokens."""
    free = torch.export.Dim.AUTO
    both = {0: free, 1: free}
    caches = [{0: free, 2: free}] * (2 * _layers(example))
    return {**dict.fromkeys(INPUTS, both), "past_key_values": caches}


def _rename(program: Model, layers: int) -> None:
    import onnx_ir

    graph = program.graph
    for value, name in zip(graph.inputs, [*INPUTS, *past_names(layers)], strict=True):
        value.name = name
    for value, name in zip(graph.outputs, ["logits", *present_names(layers)], strict=True):
        value.name = name
    now, before, total = "sequence_length", "past_sequence_length", "total_sequence_length"
    axes: dict[str, list[Any]] = {"attention_mask": ["batch_size", total]}
    for value in (*graph.inputs, *graph.outputs):
        length = before if value.name.startswith("past") else total
        if value.name.startswith(("past", "present")):
            shape: list[Any] = ["batch_size", _size(value.shape[1]), length, _size(value.shape[3])]
        else:
            shape = axes.get(value.name, ["batch_size", now]) + [_size(n) for n in value.shape[2:]]
        value.shape = onnx_ir.Shape(shape)


def _size(axis: Any) -> int:
    """Read a fixed size; the exporter writes some as the symbol "2"."""
    return int(str(getattr(axis, "value", axis)))


def _strip(program: Model) -> None:
    """Take out source lines and stack traces (which name this machine's folders), and the symbols of inner shapes."""
    program.metadata_props.clear()
    program.graph.metadata_props.clear()
    program.doc_string = program.graph.doc_string = None
    kept = set(program.graph.outputs)
    for value in (*program.graph.inputs, *program.graph.initializers.values()):
        value.metadata_props.clear()
    for node in program.graph.all_nodes():
        node.metadata_props.clear()
        node.doc_string = None
        for value in node.outputs:
            value.metadata_props.clear()
            if value not in kept:
                value.shape = None
