"""Exports models to ONNX with a key-value cache, and runs them under ONNX Runtime.

    with traced_graph(merged, target, threads=n) as traced:      once per model
        export(merged, target, kind, threads=n, traced=traced)   once per type: fp32, fp16, int8, int4
    examine_onnx(target, kind, bench, ...) -> OnnxFile, rows     logits, answers, speed

``OnnxRunner`` opens an exported folder; ``OnnxResponder`` asks it test questions. Nothing here needs the packages of
the extra before it is called.
"""

from core.deployment.onnx.examine import OnnxBench, benchmark, examine_onnx, verify
from core.deployment.onnx.export import export, traced_graph
from core.deployment.onnx.probe import require_onnx
from core.deployment.onnx.responder import OnnxResponder
from core.deployment.onnx.runner import OnnxRunner

__all__ = [
    "OnnxBench",
    "OnnxResponder",
    "OnnxRunner",
    "benchmark",
    "examine_onnx",
    "export",
    "require_onnx",
    "traced_graph",
    "verify",
]
