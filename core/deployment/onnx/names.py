"""What files, inputs and outputs are called: the names that Optimum, Transformers.js and others expect."""

MODEL_FILE = "model.onnx"
WEIGHTS_FILE = "model.onnx.data"
INPUTS = ("input_ids", "attention_mask", "position_ids")
CACHE_AXES = ("batch_size", "heads", "past_sequence_length", "width")


def past_names(layers: int) -> list[str]:
    """Name the cache inputs, each [b, g, t, d]."""
    return [f"past_key_values.{layer}.{part}" for layer in range(layers) for part in ("key", "value")]


def present_names(layers: int) -> list[str]:
    """Name the cache outputs, each [b, g, t + s, d]."""
    return [f"present.{layer}.{part}" for layer in range(layers) for part in ("key", "value")]
