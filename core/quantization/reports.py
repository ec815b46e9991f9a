"""What became of the model when it was quantized."""

from core.config import Frozen
from core.evaluation.reports import EvalReport


class Distance(Frozen):
    """How far a file's logits are from the merged model's, on the same tokens."""

    max_abs: float
    """Largest difference of any logit."""
    kl: float
    """Mean divergence of the next-token distributions from the merged model's, in nats."""
    argmax_agreement: float
    """Share of positions with the same likeliest token."""
    tokens: int
    """Positions compared."""


class QuantizedFile(Frozen):
    """One GGUF file, checked by running it."""

    type: str
    path: str
    digest: str
    bytes: int
    has_magic: bool
    """The file starts with the bytes GGUF."""
    loads: bool
    """llama.cpp opened it and produced tokens."""
    prompt_mismatches: int
    """Test prompts whose token ids differ between the trained model's tokenizer and the file's own."""
    distance: Distance | None = None
    """Logits against the merged model's, on answers of the test set."""
    broken: int = 0
    """Answers that were right before and are not now (primary metric below its old value)."""
    fixed: int = 0
    """Answers that are better than before."""
    text_agreement: float | None = None
    """Share of questions answered with exactly the merged model's text."""
    load_seconds: float | None = None
    """From the start of the process until the file was ready to answer."""
    evaluation: EvalReport


class OnnxBenchmark(Frozen):
    """Speed of one ONNX model under ONNX Runtime."""

    provider: str
    prompt_tokens: int
    mean_ms: float
    """One pass over the prompt."""
    std_ms: float
    min_ms: float
    max_ms: float
    tokens_per_second: float
    """Generated tokens over time, prompt not counted."""
    iterations: int


class OnnxFile(Frozen):
    """One ONNX model, checked by running it."""

    type: str
    path: str
    digest: str
    bytes: int
    distance: Distance
    """Prompt logits against the merged model's."""
    decode_distance: Distance
    """Logits of step-by-step decoding with the cache against the merged model's."""
    text_agreement: float
    """Share of questions answered with exactly the merged model's text."""
    benchmark: OnnxBenchmark
    evaluation: EvalReport | None = None


class PytorchFile(Frozen):
    """One quantized PyTorch model, checked by running it."""

    type: str
    path: str
    digest: str
    bytes: int
    distance: Distance
    """Logits against the merged model's."""
    text_agreement: float
    """Share of questions answered with exactly the merged model's text."""
    evaluation: EvalReport


class QuantReport(Frozen):
    """All files made from one merged model."""

    merged_digest: str
    merged_bytes: int
    family: str = ""
    """The merged model's architecture."""
    parity: Distance | None = None
    """Logits of the 16-bit GGUF against the merged model's: an export bug shows here."""
    reference_dtype: str = ""
    """Dtype in which the merged model's logits were computed: float32, or bfloat16 for want of memory."""
    causes: tuple[str, ...] = ()
    """What usually goes wrong in exports of this family, for the message about such a bug."""
    source_type: str = "f16"
    """The 16-bit type that the other types were made from."""
    importance_tokens: int = 0
    """Training tokens behind the importance matrix; 0 without one."""
    files: tuple[QuantizedFile, ...]
    skipped: tuple[str, ...] = ()
    """Types not measured because a smaller one was good enough."""
    onnx: tuple[OnnxFile, ...] = ()
    pytorch: tuple[PytorchFile, ...] = ()
