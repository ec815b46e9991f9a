"""What the quantization settings ask of each other, and of what is measured."""

from collections.abc import Iterator

from core.quantization.aware_limits import unmade_aware_type
from core.quantization.config import QuantizationConfig
from flows.run_outputs import Problem

WEIGHED = frozenset({"Q6_K", "Q5_K_M", "Q4_K_M", "Q4_0"})
"""Types whose rounding an importance matrix changes; llama.cpp ignores it for the others."""


def format_problems(made: QuantizationConfig, wanted: str) -> Iterator[Problem]:
    """Find settings of the quantized files that contradict each other.

    Args:
        made: Which files are made, and how.
        wanted: The type that is to ship, or smallest.
    """
    if wanted != "smallest" and wanted not in made.formats:
        yield Problem(
            ("deployment.format", "quantization.formats", "save.gguf_quantization"),
            f"{wanted} is not made by this run, which makes {', '.join(made.formats)}; "
            "add it to quantization.formats, or use smallest",
        )
    for key, kinds in (("formats", made.formats), ("onnx", made.onnx), ("pytorch", made.pytorch)):
        twice = sorted({kind for kind in kinds if kinds.count(kind) > 1})
        if twice:
            yield Problem((f"quantization.{key}",), f"names {', '.join(twice)} twice; name each type once")
    if made.imatrix and not WEIGHED & set(made.formats):
        yield Problem(
            ("quantization.imatrix", "quantization.formats"),
            f"changes nothing for {', '.join(made.formats)}; it is for {', '.join(sorted(WEIGHED))}",
        )
    if lacking := unmade_aware_type(made):
        yield Problem(
            ("quantization.aware", lacking),
            f"{made.aware} is trained for, but no such file is made; add it to {lacking}, or set aware: null",
        )
    if made.aware == "Q4_0" and made.imatrix:
        yield Problem(
            ("quantization.imatrix", "quantization.aware"),
            "an importance matrix makes the Q4_0 file round otherwise than it was trained for; use one of the two",
        )
