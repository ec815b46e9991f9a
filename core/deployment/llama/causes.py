"""What is usually wrong when a family's GGUF file computes other logits than its checkpoint."""

_COMMON = (
    "rotary base (rope_theta) or its scaling is not what the checkpoint was trained with",
    "RMS norm epsilon differs, or a norm was taken from another layer",
)
_TIED = "the output layer is tied to the embedding in one of the two only"
_PERMUTED = (
    "query and key rows were not permuted into llama.cpp's rotary order (or twice), or the head counts differ"
)
_WINDOW = "a sliding window is honoured on one side only"
_FUSED = "the fused query-key-value or gate-up matrix was split at the wrong rows"

_CAUSES: dict[str, tuple[str, ...]] = {
    "LlamaForCausalLM": (
        _PERMUTED,
        "Llama 3 rope scaling (factor, low and high frequency factors, original context) was lost",
        _TIED,
    ),
    "MistralForCausalLM": (_PERMUTED, _WINDOW),
    "Qwen2ForCausalLM": ("the biases of the query, key and value projections were lost", _TIED),
    "Qwen3ForCausalLM": (
        "the norms of queries and keys were lost or swapped",
        "the head width (head_dim) was taken as width over heads",
        _TIED,
    ),
    "Phi3ForCausalLM": (
        _FUSED,
        "only a share of each head is rotated (partial_rotary_factor)",
        "LongRoPE uses the long factors on one side and the short ones on the other",
        _WINDOW,
    ),
    "Gemma3ForCausalLM": (
        "the norms' weights are stored minus one (1 + w) in the checkpoint",
        "local layers turn with another rotary base than full ones",
        "which layers slide their window, or how wide it is",
        "the embedding is not multiplied by the root of the width, or queries are scaled by another head width",
        "soft-capping of logits is on in one of the two only",
    ),
}
_CAUSES["Gemma3ForConditionalGeneration"] = _CAUSES["Gemma3ForCausalLM"]


def family_causes(architecture: str) -> tuple[str, ...]:
    """Return the likely causes of unequal logits, likeliest first.

    Args:
        architecture: As the first entry of ``architectures`` in config.json has it.
    """
    return (*_CAUSES.get(architecture, ()), *_COMMON)
