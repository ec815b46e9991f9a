"""What was bundled and how it behaved when it was started."""

from core.config import Frozen


class BundledFile(Frozen):
    """One file of the bundle."""

    path: str
    """Relative to the bundle."""
    digest: str
    bytes: int


class Smoke(Frozen):
    """One real question to the bundled file, through the runtime that will serve it."""

    prompt: str
    answer: str
    tokens: int
    tokens_per_second: float
    load_seconds: float
    memory_mb: float
    """Resident memory of the serving process."""


class BundleReport(Frozen):
    """Evidence that the bundle can be deployed."""

    gguf_type: str
    gguf_digest: str
    """Digest of the GGUF file inside the bundle."""
    verified_digest: str
    """Digest of the GGUF file that quantization-verified judged."""
    files: tuple[BundledFile, ...]
    missing: tuple[str, ...]
    """Required files that are not in the bundle."""
    card_errors: tuple[str, ...]
    """What the model card lacks, by its schema."""
    smoke: Smoke
