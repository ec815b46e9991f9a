"""Look before a run: is the data there, is the model usable, will it fit? No framework is loaded."""

import difflib
import importlib.metadata
import importlib.util
import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple, Self

import psutil

from core.config import Frozen
from core.data.sources import expand_all
from core.errors import ConfigError, DataError, ModelError, ResourceError, UserError
from core.models.resources import (
    GB,
    PUBLISHED,
    Memory,
    ModelShape,
    TrainingLoad,
    estimate_disk,
    estimate_gguf,
    estimate_inference,
    estimate_merge,
    estimate_training,
    count_parameters,
    published_shape,
    recommended_settings,
    shape_from_config,
)
from flows.config_file import resolve_path
from flows.run_config import RunConfig

ERRORS: dict[str, type[UserError]] = {
    "setting": ConfigError,
    "data": DataError,
    "model": ModelError,
    "hardware": ResourceError,
    "software": ResourceError,
}

RUNTIME_BYTES = GB
"""What a process holds before the first weight: libraries, and on a GPU the CUDA context."""


class Finding(Frozen):
    """One thing that a run would stumble over."""

    level: Literal["error", "warning"]
    kind: Literal["setting", "data", "model", "hardware", "software"]
    where: str
    """The key it concerns."""
    what: str
    fix: str = ""

    @property
    def is_of_this_machine(self) -> bool:
        """Another machine would not have this problem: the config itself is fine."""
        return self.kind in {"hardware", "software"}

    def as_error(self) -> UserError:
        """Return the exception that carries this finding."""
        return ERRORS[self.kind](self.what, where=self.where, fix=self.fix)


class Estimate(Frozen):
    """What a phase needs, and what there is."""

    phase: str
    place: str
    """GPU memory, memory, or the folder whose disk it is."""
    needed_gb: float
    available_gb: float

    @property
    def is_enough(self) -> bool:
        """There is room."""
        return self.needed_gb <= self.available_gb


class PreflightReport(Frozen):
    """Everything found, and the table of estimates (empty if the model's size is unknown)."""

    findings: tuple[Finding, ...]
    estimates: tuple[Estimate, ...]
    device: str
    """The device a run would train on, in words."""
    parameters: int | None
    """Parameters of the base model, if known."""

    @property
    def errors(self) -> tuple[Finding, ...]:
        """Findings that make a run impossible."""
        return tuple(finding for finding in self.findings if finding.level == "error")

    @property
    def warnings(self) -> tuple[Finding, ...]:
        """Findings worth reading."""
        return tuple(finding for finding in self.findings if finding.level == "warning")

    def for_any_machine(self) -> Self:
        """Turn what only this machine lacks into warnings: the config may be meant for another one."""
        softened = (
            f.model_copy(update={"level": "warning"}) if f.is_of_this_machine else f for f in self.findings
        )
        return self.model_copy(update={"findings": tuple(softened)})

    def raise_errors(self) -> None:
        """Stop if there is any error.

        Raises:
            UserError: Of the first error's kind, with all of them in its message.
        """
        if not self.errors:
            return
        first, *rest = self.errors
        if not rest:
            raise first.as_error()
        lines = [str(finding.as_error()).replace("\n", "\n  ") for finding in self.errors]
        raise ERRORS[first.kind]("\n  ".join([f"{len(lines)} problems", *lines]), where="before the run")


class _Device(NamedTuple):
    words: str
    is_gpu: bool
    free: int
    """Bytes that a run could take."""


class _Model(NamedTuple):
    folder: Path | None
    """Where it lies; None while it must still be downloaded."""
    config: dict[str, Any]
    """Its config.json, empty if that is not here."""


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
    model, of_model = _find_model(config, config_path)
    findings += of_model
    shape = shape_from_config(model.config) if model and model.config else published_shape(config.model.name)
    estimates: list[Estimate] = []
    if shape:
        estimates = [
            *_memory_estimates(config, shape, device),
            *_disk_estimates(config, shape, device, workspace),
        ]
        if model and model.folder is None:
            estimates.append(_download_estimate(shape))
        findings += [_shortfall(config, estimate, device) for estimate in estimates if not estimate.is_enough]
    elif model:
        what = "its size is unknown here, so memory and disk were not checked"
        findings.append(Finding(level="warning", kind="model", where="model.name", what=what))
    return PreflightReport(
        findings=tuple(findings),
        estimates=tuple(estimates),
        device=device.words,
        parameters=count_parameters(shape) if shape else None,
    )


# Data and software


def _data_findings(config: RunConfig, config_path: Path) -> Iterator[Finding]:
    sources = [
        source.model_copy(update={"path": str(resolve_path(source.path, config_path))})
        for source in config.training_sources
    ]
    try:
        expanded = expand_all(sources, Path.cwd())
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
    if framework == "unsloth" and importlib.util.find_spec("unsloth") is None:
        yield Finding(
            level="error",
            kind="software",
            where="model.framework",
            what="unsloth is not installed",
            fix='pip install "data-factory[unsloth]", or model.framework: hf',
        )


# The model


def _find_model(config: RunConfig, config_path: Path) -> tuple[_Model | None, list[Finding]]:
    """Find the base model and what is wrong with it; no model if the name leads nowhere."""
    name = config.model.name
    place = resolve_path(name, config_path)
    if place.is_dir():
        found, wrong = _read_model(place), list(_folder_findings(place))
    elif place.exists():
        return None, [
            _bad_model("is a file", "give the folder with config.json, tokenizer.json and *.safetensors")
        ]
    elif not _is_hub_id(name):
        return None, [
            _bad_model(f"'{name}' is no folder here and no Hub id", _nearest_models(name, config_path))
        ]
    else:
        found, wrong = _hub_model(name)
    longest = found.config.get("text_config", found.config).get("max_position_embeddings")
    if isinstance(longest, int) and config.model.max_seq_length > longest:
        what = f"{config.model.max_seq_length} tokens exceed the model's own window of {longest}"
        fix = f"model.max_seq_length: {longest} or less"
        wrong.append(
            Finding(level="warning", kind="setting", where="model.max_seq_length", what=what, fix=fix)
        )
    return found, wrong


def _bad_model(what: str, fix: str) -> Finding:
    return Finding(level="error", kind="model", where="model.name", what=what, fix=fix)


def _is_hub_id(name: str) -> bool:
    """Tell whether a name reads owner/name; a Hub id without an owner is too easily a typing error."""
    parts = name.split("/")
    plain = all(part and not part.startswith((".", "~", "-")) for part in parts)
    return len(parts) == 2 and plain and not any(c.isspace() or c in "\\:" for c in name)


def _nearest_models(name: str, config_path: Path) -> str:
    folders = {
        p.parent for base in (Path.cwd(), config_path.resolve().parent) for p in base.glob("*/config.json")
    }
    folders |= {
        p.parent for base in (Path.cwd(), config_path.resolve().parent) for p in base.glob("*/*/config.json")
    }
    known = {folder.name.lower(): str(folder) for folder in folders}
    known |= {hub_id.rsplit("/", 1)[-1].lower(): hub_id for hub_id in PUBLISHED}
    close = difflib.get_close_matches(Path(name).name.lower(), known, n=2, cutoff=0.5)
    general = "give a folder with config.json, or a Hub id such as google/gemma-3-4b-it"
    return f"did you mean {' or '.join(known[each] for each in close)}?" if close else general


def _read_model(folder: Path) -> _Model:
    try:
        content = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        content = {}  # _folder_findings reports it
    return _Model(folder, content if isinstance(content, dict) else {})


def _folder_findings(folder: Path) -> Iterator[Finding]:
    if not _read_model(folder).config:
        yield _bad_model(f"{folder} has no readable config.json", "give the folder of a Hugging Face model")
    if not list(folder.glob("*.safetensors")):
        pickled = list(folder.glob("*.bin")) + list(folder.glob("*.pt"))
        what = (
            "only pickled weights (*.bin), which can run code when loaded" if pickled else "no *.safetensors"
        )
        yield _bad_model(f"{folder} has {what}", "convert or download the weights as safetensors")
    missing = sorted(name for name in _shards(folder) if not (folder / name).is_file())
    if missing:
        yield _bad_model(
            f"{folder} lacks {len(missing)} weight files: {', '.join(missing[:3])}", "download it again"
        )
    yield from _pointer_findings(folder)
    if not any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer.model", "vocab.json")):
        yield _bad_model(
            f"{folder} has no tokenizer", "put tokenizer.json and tokenizer_config.json beside the weights"
        )


def _shards(folder: Path) -> set[str]:
    index = folder / "model.safetensors.index.json"
    if not index.is_file():
        return set()
    try:
        return set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    except (ValueError, KeyError, AttributeError, TypeError):
        return {index.name + " (unreadable)"}


def _pointer_findings(folder: Path) -> Iterator[Finding]:
    """Find weights that git left as pointers: a clone without Git LFS looks complete and is not."""
    for file in sorted(folder.glob("*.safetensors")):
        with file.open("rb") as stream:
            if stream.read(20).startswith(b"version https://git"):
                yield _bad_model(f"{file} is a Git LFS pointer, not weights", f"git -C {folder} lfs pull")
                return


def _hub_model(name: str) -> tuple[_Model, list[Finding]]:
    """Look for a Hub id in the local cache; what is not there a run downloads, if it may."""
    from huggingface_hub import constants, try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        cached = try_to_load_from_cache(name, "config.json")
    except HFValidationError as error:
        return _Model(None, {}), [_bad_model(f"'{name}' is no valid Hub id: {error}", "check its spelling")]
    if isinstance(cached, str):
        folder = Path(cached).parent
        if list(folder.glob("*.safetensors")) and not [
            f for f in _shards(folder) if not (folder / f).is_file()
        ]:
            return _read_model(folder), list(_folder_findings(folder))
    config = _read_model(Path(cached).parent).config if isinstance(cached, str) else {}
    if constants.HF_HUB_OFFLINE:
        what, fix = (
            f"'{name}' is not on this machine, and HF_HUB_OFFLINE forbids to download it",
            (f"unset HF_HUB_OFFLINE, or run: hf download {name}"),
        )
        return _Model(None, config), [
            Finding(level="error", kind="software", where="model.name", what=what, fix=fix)
        ]
    what = f"'{name}' is not on this machine; the run will download it from the Hugging Face Hub"
    fix = f"to do it now: hf download {name}" + (
        "" if published_shape(name) else "; and check the name's spelling"
    )
    return _Model(None, config), [
        Finding(level="warning", kind="model", where="model.name", what=what, fix=fix)
    ]


# Hardware


def find_device() -> _Device:
    """Find the first GPU and its free memory by nvidia-smi, else this machine's memory."""
    gpu = _first_gpu()
    if gpu:
        return gpu
    memory = psutil.virtual_memory()
    return _Device(f"CPU, {memory.total / GB:.1f} GB memory", False, memory.available)


def _first_gpu() -> _Device | None:
    tool = shutil.which("nvidia-smi")
    if tool is None or importlib.metadata.version("torch").endswith("+cpu"):
        return None
    query = [tool, "--query-gpu=name,memory.total,memory.free", "--format=csv,noheader,nounits"]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, timeout=20, check=True).stdout
        name, total, free = answer.splitlines()[0].rsplit(",", 2)
        return _Device(f"{name}, {int(total) / 1024:.1f} GB", True, int(free) * 1024**2)
    except (OSError, subprocess.SubprocessError, ValueError, IndexError):
        return None  # no driver behind the tool, or memory shared with the CPU: torch has no GPU memory of its own


def _width(config: RunConfig, device: _Device) -> int:
    """Return the bytes of a weight: as the dtype says, else 2 on a GPU and 4 on a CPU."""
    if config.model.dtype:
        return 4 if config.model.dtype == "float32" else 2
    return 2 if device.is_gpu else 4


def _memory_estimates(config: RunConfig, shape: ModelShape, device: _Device) -> list[Estimate]:
    width = _width(config, device)
    window = config.model.max_seq_length
    training = config.training
    load = TrainingLoad(
        micro_batch=training.per_device_train_batch_size,
        window=window,
        optimizer=training.optim,
        is_checkpointed=bool(config.lora.use_gradient_checkpointing),
        is_4bit=config.model.load_in_4bit,
        width=width,
    )
    asking = estimate_inference(
        shape, width, batch=config.evaluation.batch_size, window=window + config.evaluation.max_new_tokens
    )
    phases: dict[str, Memory] = {
        "baseline, evaluate": asking,
        "finetune": estimate_training(shape, config.lora, load),
        "merge": estimate_merge(shape, config.lora, width),
    }
    place = "GPU memory" if device.is_gpu else "memory"
    rows = [
        _estimate(phase, place, need.total + RUNTIME_BYTES, device.free) for phase, need in phases.items()
    ]
    largest = max(estimate_gguf(shape, gguf_type) for gguf_type in config.gguf_formats)
    memory = psutil.virtual_memory().available
    return [*rows, _estimate("quantize, serve", "memory", largest + RUNTIME_BYTES, memory)]


def _disk_estimates(
    config: RunConfig, shape: ModelShape, device: _Device, workspace: Path
) -> Iterator[Estimate]:
    parts = estimate_disk(shape, config.lora, _width(config, device), config.gguf_formats)
    place = _existing(workspace)
    yield _estimate("all files", f"disk of {place}", sum(parts.values()), shutil.disk_usage(place).free)


def _download_estimate(shape: ModelShape) -> Estimate:
    from huggingface_hub import constants

    place = _existing(Path(constants.HF_HUB_CACHE))
    return _estimate(
        "download", f"disk of {place}", count_parameters(shape) * 2, shutil.disk_usage(place).free
    )


def _existing(path: Path) -> Path:
    """Return the path or its nearest parent that exists."""
    absolute = path.expanduser().absolute()
    return next(place for place in (absolute, *absolute.parents) if place.is_dir())


def _estimate(phase: str, place: str, needed: int, available: int) -> Estimate:
    return Estimate(
        phase=phase, place=place, needed_gb=round(needed / GB, 2), available_gb=round(available / GB, 2)
    )


def _shortfall(config: RunConfig, estimate: Estimate, device: _Device) -> Finding:
    what = (
        f"{estimate.phase} needs about {estimate.needed_gb:.1f} GB of {estimate.place}, "
        f"{estimate.available_gb:.1f} GB are free"
    )
    if estimate.place.startswith("disk"):
        where, fix = "workspace", "free some space, or put it on another disk (--workspace)"
    elif estimate.phase == "finetune":
        where, fix = "training", _lighter_training(config, estimate.available_gb)
    elif estimate.phase == "baseline, evaluate":
        where, fix = (
            "evaluation.batch_size",
            "a smaller evaluation.batch_size or model.max_seq_length, or a smaller model",
        )
    else:
        where, fix = "model.name", "a smaller model, or a machine with more memory"
    return Finding(level="error", kind="hardware", where=where, what=what, fix=fix)


def _lighter_training(config: RunConfig, available_gb: float) -> str:
    """Name the settings of the table that are lighter than the config's, and what else helps."""
    settings = config.model_dump()
    lighter = [
        f"-o {key}={value}"
        for key, value in recommended_settings(available_gb).items()
        if not key.endswith("accumulation_steps") and value < settings[key.split(".")[0]][key.split(".")[1]]
    ]
    if not config.model.load_in_4bit:
        lighter.insert(0, "-o model.load_in_4bit=true")
    return " ".join([*lighter, "or a smaller model"] if lighter else ["a smaller model, or a larger machine"])
