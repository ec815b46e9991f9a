"""Look before a run: is the data there, is the model usable, will it fit? No framework is loaded."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from core.data.config import SourceConfig
from core.data.quality import check_patterns
from core.data.sources import kind_of, open_sources
from core.errors import UserError
from core.models.frameworks import find_caveat, find_obstacle
from core.models.resources import count_parameters, published_shape, shape_from_config
from core.training.packing import packing_obstacle
from flows.config_file import resolve_path
from flows.measuring import judge_variable
from flows.preflight.fit import find_advice, find_estimates, find_shortfalls
from flows.preflight.machine import Device, find_device, find_integer_obstacle
from flows.preflight.models import find_model
from flows.preflight.report import Estimate, Finding, PreflightReport
from flows.run_config import RunConfig
from flows.settings import read_secret

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
    cache = workspace / ".factory/downloads"
    device = find_device()
    findings = [*_data_findings(config, config_path, cache), *_software_findings(config, device)]
    findings += _measuring_findings(config)
    findings += _integer_findings(config, device)
    findings += _rounding_findings(config)
    model, of_model = find_model(config, config_path)
    findings += of_model
    findings += _packing_findings(config, model.config if model else {}, device)
    shape = shape_from_config(model.config) if model and model.config else published_shape(config.model.name)
    estimates: list[Estimate] = []
    if model and shape:
        estimates = find_estimates(config, shape, device, workspace, must_download=model.folder is None)
        findings += find_shortfalls(config, shape, device, estimates)
        findings += find_advice(config, shape, device)
    elif model:
        what = "its size is unknown here, so memory and disk were not checked"
        findings.append(Finding(level="warning", kind="model", where="model.name", what=what))
    return PreflightReport(
        findings=tuple(findings),
        estimates=tuple(estimates),
        device=device.words,
        parameters=count_parameters(shape) if shape else None,
    )


def _data_findings(config: RunConfig, config_path: Path, cache: Path) -> Iterator[Finding]:
    validation = config.dataset and config.dataset.validation_path
    given = [*config.training_sources, *([SourceConfig(path=validation)] if validation else [])]
    given += [SourceConfig(path=path) for path in config.quality.contamination.files]
    sources = [_from_here(source, config_path) for source in given]
    trained = len(config.training_sources)
    try:
        check_patterns(config.quality)
        opened = open_sources(sources[:trained], Path.cwd(), cache=cache)
        for other in sources[trained:]:
            open_sources([other], Path.cwd(), cache=cache)
    except UserError as error:
        yield Finding(level="error", kind="data", where=error.where, what=error.what, fix=error.fix)
        return
    for number, part in enumerate(opened):
        if part.passed_over:
            names = ", ".join(part.passed_over[:3])
            what = f"{len(part.passed_over)} files are of a type that is not read: {names}"
            yield Finding(level="warning", kind="data", where=f"sources.{number}", what=what)


def _measuring_findings(config: RunConfig) -> Iterator[Finding]:
    from core.evaluation.harness import check_harness
    from core.evaluation.metrics import check_metrics

    variable = judge_variable(config.evaluation)
    try:
        check_metrics(config.evaluation, Path.cwd())
        check_harness(config.evaluation.harness, Path.cwd())
        if variable:
            read_secret(variable, "evaluation.judge.key_variable")
    except UserError as error:
        yield Finding(level="error", kind="setting", where=error.where, what=error.what, fix=error.fix)


def _from_here(source: SourceConfig, config_path: Path) -> SourceConfig:
    if kind_of(source.path) != "files":
        return source
    return source.model_copy(update={"path": str(resolve_path(source.path, config_path))})


def _software_findings(config: RunConfig, device: Device) -> Iterator[Finding]:
    """Say what keeps the chosen engine from working here, or that another one will take its place."""
    framework, where = config.model.framework, "model.framework"
    obstacle = find_obstacle(framework, has_gpu=device.is_gpu)
    caveat = find_caveat(framework, has_gpu=device.is_gpu)
    if caveat:
        yield Finding(level="warning", kind="software", where=where, what=caveat)
    if obstacle and config.model.fall_back:
        what = f"{obstacle.what}; hf trains instead, as model.fall_back allows"
        yield Finding(level="warning", kind="software", where=where, what=what)
    elif obstacle:
        yield Finding(level="error", kind="software", where=where, what=obstacle.what, fix=obstacle.fix)
    if framework != "fused" and config.training.activation_budget != "auto":
        what = f"has no effect with {framework}: the fused engine alone plans what it keeps"
        fix = "model.framework: fused, or leave it auto"
        yield Finding(level="warning", kind="setting", where="training.activation_budget", what=what, fix=fix)


def _integer_findings(config: RunConfig, device: Device) -> Iterator[Finding]:
    """Say whether 8-bit PyTorch models can be made on this processor, and that a GPU has no part in it."""
    if not config.quantization or not config.quantization.pytorch:
        return
    obstacle, where = find_integer_obstacle(), "quantization.pytorch"
    if obstacle:
        yield Finding(level="error", kind="software", where=where, what=obstacle.what, fix=obstacle.fix)
    elif device.is_gpu:
        what = "8-bit PyTorch models are for processors: they are made and measured on this machine's, not on its GPU"
        yield Finding(level="note", kind="hardware", where=where, what=what)


def _rounding_findings(config: RunConfig) -> Iterator[Finding]:
    """Say what training with a type's rounding costs."""
    kind = config.quantized.aware
    if kind:
        times = "three times" if config.lora.use_gradient_checkpointing else "twice"
        what = (
            f"every micro-batch rounds each weight to {kind} {times}, however few its tokens are: "
            "larger micro-batches cost less time"
        )
        yield Finding(level="note", kind="setting", where="quantization.aware", what=what)


def _packing_findings(config: RunConfig, settings: dict[str, Any], device: Device) -> Iterator[Finding]:
    """Say why this model cannot be trained on packed rows, before hours of measuring it untrained."""
    wanted = config.model
    falls_back = wanted.fall_back and find_obstacle(wanted.framework, has_gpu=device.is_gpu)
    framework = "hf" if falls_back else wanted.framework
    obstacle = (
        packing_obstacle(settings, framework, wanted.max_seq_length) if config.training.packing else None
    )
    if obstacle:
        yield Finding(
            level="error", kind="setting", where=obstacle.where, what=obstacle.what, fix=obstacle.fix
        )
