"""One place that says whether the ONNX packages are there."""

import importlib.util

from core.errors import ConfigError

_PACKAGES = ("onnx", "onnxscript", "onnxruntime")


def require_onnx() -> None:
    """Refuse to start without the packages of the extra.

    Raises:
        ConfigError: If one is missing.
    """
    missing = [name for name in _PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise ConfigError(
            f"ONNX needs {', '.join(missing)}, which {'is' if len(missing) == 1 else 'are'} not installed",
            where="quantization.onnx",
            fix="pip install 'data-factory[onnx]', or set quantization.onnx: []",
        )
