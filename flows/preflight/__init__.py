"""Look before a run: is the data there, is the model usable, will it fit? No framework is loaded."""

import importlib.util
from collections.abc import Iterator
from pathlib import Path

from core.data.sources import expand, expand_all
from core.errors import DataError
from core.models.resources import count_parameters, published_shape, shape_from_config
from flows.config_file import resolve_path
from flows.preflight.fit import find_estimates, find_shortfalls
from flows.preflight.machine import find_device
from flows.preflight.models import find_model
from flows.preflight.report import Estimate, Finding, PreflightReport
from flows.run_config import RunConfig

__all__ = ["Estimate", "Finding", "PreflightReport", "preflight"]


def preflight(config: RunConfig, config_path: Path, workspace: Path) -> PreflightReport:
    """Check data, model, software, memory and disk without loading anything heavy.

    Args:
        config: The run.
        config_path: Its file; paths in it may start from its folder.
        workspace: Where the run would write.

    Returns:
        Findings at the level that a run gives them; see ``PreflightReport.for_any_machine``.
    """
    findings = [*_data_findings(config, config_path), *_software_findings(config)]
    device = find_device()
    model, of_model = find_model(config, config_path)
    findings += of_model
    shape = shape_from_config(model.config) if model and model.config else published_shape(config.model.name)
    estimates: list[Estimate] = []
    if model and shape:
        estimates = find_estimates(config, shape, device, workspace, must_download=model.folder is None)
        findings += find_shortfalls(config, estimates)
    elif model:
        what = "its size is unknown here, so memory and disk were not checked"
        findings.append(Finding(level="warning", kind="model", where="model.name", what=what))
    return PreflightReport(
        findings=tuple(findings),
        estimates=tuple(estimates),
        device=device.words,
        parameters=count_parameters(shape) if shape else None,
    )


def _data_findings(config: RunConfig, config_path: Path) -> Iterator[Finding]:
    sources = [
        source.model_copy(update={"path": str(resolve_path(source.path, config_path))})
        for source in config.training_sources
    ]
    validation = config.dataset and config.dataset.validation_path
    try:
        expanded = expand_all(sources, Path.cwd())
        if validation:
            expand(str(resolve_path(validation, config_path)), Path.cwd())
    except DataError as error:
        yield Finding(level="error", kind="data", where=error.where, what=error.what, fix=error.fix)
        return
    for number, part in enumerate(expanded):
        if part.passed_over:
            names = ", ".join(part.passed_over[:3])
            what = f"{len(part.passed_over)} files are of a type that is not read: {names}"
            yield Finding(level="warning", kind="data", where=f"sources.{number}", what=what)


def _software_findings(config: RunConfig) -> Iterator[Finding]:
    framework = config.model.framework
    if framework == "fused":
        yield Finding(
            level="error",
            kind="software",
            where="model.framework",
            what="fused kernels are not built yet",
            fix="model.framework: hf trains the same model with the stock kernels",
        )
    if framework == "unsloth" and importlib.util.find_spec("unsloth") is not None:
        yield Finding(
            level="error",
            kind="software",
            where="model.framework",
            what="the unsloth engine is not wired in yet",
            fix="model.framework: hf trains the same adapter with the stock kernels",
        )
    if framework == "unsloth" and importlib.util.find_spec("unsloth") is None:
        yield Finding(
            level="error",
            kind="software",
            where="model.framework",
            what="unsloth is not installed",
            fix='pip install "data-factory[unsloth]", or model.framework: hf',
        )
