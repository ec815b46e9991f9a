"""What the rows are like beyond their shape: personal data, languages, labels, overlap with benchmarks."""

from core.data.quality.inspection import Findings, Prepared, check_patterns, inspect, prepare, redact

__all__ = ["Findings", "Prepared", "check_patterns", "inspect", "prepare", "redact"]
