"""What became of the model when it was quantized."""

from core.config import Frozen
from core.evaluation.reports import EvalReport


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
    evaluation: EvalReport


class QuantReport(Frozen):
    """All files made from one merged model."""

    merged_digest: str
    merged_bytes: int
    files: tuple[QuantizedFile, ...]
