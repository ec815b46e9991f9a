"""The run config: one file is one complete run. Rules that span its blocks, and its errors in plain words."""

import difflib
import itertools
import json
import re
from collections.abc import Iterator, Sequence
from copy import deepcopy
from typing import Any, Self, get_args

from pydantic import BaseModel, Field, ValidationError, model_validator
from pydantic_core import ErrorDetails, PydanticCustomError

from core.config import Block
from core.data.config import (
    DatasetConfig,
    ExecutionConfig,
    FormatConfig,
    QualityConfig,
    SourceConfig,
    SplitConfig,
)
from core.deployment.config import DeploymentConfig
from core.evaluation.config import EvaluationConfig
from core.models.config import LoraConfig, ModelConfig
from core.quantization.config import GgufType, QuantizationConfig
from core.training.config import SaveConfig, TrainingConfig, WandbConfig
from flows.adapting import adapter_problems, rounding_problems
from flows.format_problems import format_problems
from flows.measuring import measuring_problems
from flows.run_outputs import Problem, shared_folders, stays_inside, taken_folders
from gates.thresholds import GatesConfig

NAME_PATTERN = r"^([A-Za-z0-9][A-Za-z0-9._-]*)?$"

COMMON_NAMES = {
    "lr": "training.learning_rate",
    "rank": "lora.r",
    "base_model": "model.name",
    "model_name": "model.name",
    "data": "sources",
    "metric": "evaluation.primary_metric",
    "qat": "quantization.aware",
}
"""What other tools call some of our keys, where spelling alone would not lead there."""


class TrackingConfig(Block):
    """What is recorded in MLflow."""

    experiment: str | None = Field(default=None, title="Experiment")
    """MLflow experiment; null uses the run's name."""
    max_file_mb: int = Field(default=512, ge=1, title="Largest copied file (MB)")
    """Larger files are recorded by digest instead of copied into the tracking store."""


class RunConfig(Block):
    """One complete run, from raw rows to a served model."""

    name: str = Field(default="", pattern=NAME_PATTERN, title="Name")
    """Names the workspace and the registered model; defaults to the config file's name."""
    model: ModelConfig = Field(title="Base model")
    """The model to start from."""
    lora: LoraConfig = Field(default=LoraConfig(), title="Adapter")
    """The low-rank adapter that is trained."""
    training: TrainingConfig = Field(default=TrainingConfig(), title="Training")
    """The fine-tuning run."""
    save: SaveConfig = Field(default=SaveConfig(), title="Saving")
    """Where results go inside the workspace."""
    wandb: WandbConfig = Field(default=WandbConfig(), title="Weights & Biases (unused)")
    """Accepted in training configs made for other tools; runs are tracked in MLflow."""
    dataset: DatasetConfig | None = Field(default=None, title="Dataset")
    """Training rows given the way plain training configs do; sources take precedence."""
    sources: tuple[SourceConfig, ...] = Field(default=(), title="Sources")
    """Where raw rows come from."""
    format: FormatConfig = Field(default=FormatConfig(), title="Formatting")
    """How raw rows become conversations."""
    quality: QualityConfig = Field(default=QualityConfig(), title="Quality")
    """What is looked for in the rows: personal data, benchmarks, languages."""
    execution: ExecutionConfig = Field(default=ExecutionConfig(), title="Execution")
    """Where the data phases compute."""
    split: SplitConfig = Field(default=SplitConfig(), title="Split")
    """How conversations are divided into train, val and test."""
    evaluation: EvaluationConfig = Field(default=EvaluationConfig(), title="Evaluation")
    """How the base, the tuned and the quantized models are measured."""
    quantization: QuantizationConfig | None = Field(default=None, title="Quantization")
    """GGUF files to make; without it save.gguf_quantization names the only one."""
    deployment: DeploymentConfig = Field(default=DeploymentConfig(), title="Deployment")
    """What is shipped, and what its model card says."""
    gates: GatesConfig = Field(default=GatesConfig(), title="Gates")
    """What every phase must show before the next may start."""
    tracking: TrackingConfig = Field(default=TrackingConfig(), title="Tracking")
    """What is recorded in MLflow."""

    @property
    def gguf_formats(self) -> tuple[GgufType, ...]:
        """GGUF types to make: the quantization block's, else the one in save.gguf_quantization."""
        return self.quantized.formats

    @property
    def quantized(self) -> QuantizationConfig:
        """Which files to make, and how."""
        return self.quantization or QuantizationConfig(formats=(self.save.gguf_quantization,))

    @property
    def training_sources(self) -> tuple[SourceConfig, ...]:
        """Where rows come from: sources, else dataset.path as the only source."""
        if self.sources or self.dataset is None:
            return self.sources
        return (SourceConfig(path=self.dataset.path),)

    @property
    def executed(self) -> ExecutionConfig:
        """Where the data phases compute; locally dataset.num_proc counts where execution.workers is silent."""
        given = self.execution
        if given.workers is not None or given.engine != "local":
            return given
        return given.model_copy(update={"workers": (self.dataset or DatasetConfig()).num_proc})

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        problems = [
            *_data_problems(self),
            *measuring_problems(self.evaluation, self.gates.model_performance),
            *_training_problems(self),
            *adapter_problems(self.model, self.lora),
            *rounding_problems(self.quantized.aware, self.model, self.lora),
            *_output_problems(self),
        ]
        if problems:
            text = "; ".join(f"{problem.keys[0]}: {problem.what}" for problem in problems)
            # The loader takes the list from the context, to say where each key stands in the file.
            raise PydanticCustomError("contradiction", "{text}", {"text": text, "problems": problems})
        return self


def _data_problems(run: RunConfig) -> Iterator[Problem]:
    if not run.sources and run.dataset is None:
        yield Problem(
            ("sources", "dataset"),
            "no data: give sources: [{path: data/rows.jsonl}] (or dataset: {path: ...})",
        )


def _training_problems(run: RunConfig) -> Iterator[Problem]:
    if run.training.fp16 and run.training.bf16:
        yield Problem(
            ("training.fp16", "training.bf16"), "fp16 and bf16 are both true; a run uses one of them"
        )
    if run.wandb.enabled:
        yield Problem(
            ("wandb.enabled",),
            "tracking goes to MLflow, Weights & Biases is not connected; set it to false or remove the block",
        )
    if run.save.push_to_hub and not run.save.hub_model_id:
        yield Problem(
            ("save.push_to_hub", "save.hub_model_id"),
            "needs save.hub_model_id: owner/name to know where to upload",
        )


def _output_problems(run: RunConfig) -> Iterator[Problem]:
    yield from format_problems(run.quantized, run.deployment.format)
    folders = {
        "save.lora_path": run.save.lora_path,
        "save.merged_path": run.save.merged_path,
        "save.gguf_path": run.save.gguf_path,
        "training.output_dir": run.training.output_dir,
    }
    for key, text in folders.items():
        if not stays_inside(text):
            yield Problem((key,), f"'{text}' must be a folder below the workspace: relative, without ..")
    yield from shared_folders(folders)
    yield from taken_folders(folders)


# Errors in plain words

_REQUIRED = "is required"

_KINDS = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "string": "text",
    "tuple": "a list such as [a, b]",
    "model": "a block of keys",
    "dict": "a block of keys",
    "finite": "a finite number",
}


def check(data: dict[str, Any]) -> RunConfig | list[Problem]:
    """Build the run config, or list everything that is wrong with the settings.

    The validator looks for contradictions only once every key is right; a second look without the
    wrong keys finds them among the others.
    """
    try:
        return RunConfig.model_validate(data)
    except ValidationError as error:
        errors = error.errors(include_url=False)
    if rules := _contradictions(errors):
        return rules
    problems = _translate(errors, data)
    try:
        RunConfig.model_validate(_pruned(data, [p.keys[0] for p in problems]))
    except ValidationError as error:
        rules = _contradictions(error.errors(include_url=False))
        wrong = [key for p in problems for key in p.keys]
        problems += [rule for rule in rules if not any(overlap(a, b) for a in rule.keys for b in wrong)]
    return problems


def _contradictions(errors: list[ErrorDetails]) -> list[Problem]:
    return [rule for error in errors if error["type"] == "contradiction" for rule in error["ctx"]["problems"]]


def overlap(key: str, other: str) -> bool:
    """Tell whether two dotted keys are one, or one lies inside the other."""
    return f"{key}.".startswith(f"{other}.") or f"{other}.".startswith(f"{key}.")


def _pruned(data: dict[str, Any], keys: list[str]) -> dict[str, Any]:
    """Copy the settings without the given keys; of a list with a wrong entry nothing is kept.

    The one required key is filled in if need be: no rule depends on it, but none is asked without it.
    """
    copy = deepcopy(data)
    for key in keys:
        names = list(itertools.takewhile(lambda step: not step.isdecimal(), key.split(".")))
        block: Any = copy
        for name in names[:-1]:
            block = block.get(name) if isinstance(block, dict) else None
        if names and isinstance(block, dict):
            block.pop(names[-1], None)
    copy.setdefault("model", {}).setdefault("name", "any")
    return copy


def _translate(errors: list[ErrorDetails], data: dict[str, Any]) -> list[Problem]:
    """Word the validator's errors, one problem a key, without those that follow from another."""
    by_path: dict[tuple[str | int, ...], list[ErrorDetails]] = {}
    for error in errors:
        by_path.setdefault(_real_path(error, data), []).append(error)
    problems = [_explained(path, group) for path, group in by_path.items()]
    meant = {key for problem in problems for key in problem.keys[1:]}
    parents = {problem.keys[0].rpartition(".")[0] for problem in problems}
    return [
        problem
        for problem in problems
        if not (problem.what == _REQUIRED and problem.keys[0] in meant)
        # A list is short only because its entries are wrong, and they are reported.
        and not (problem.what.startswith("must be a list of at least") and problem.keys[0] in parents)
    ]


def _real_path(error: ErrorDetails, data: object) -> tuple[str | int, ...]:
    """Cut off what the validator appends to a path to tell the members of a union apart."""
    if error["type"] in {"missing", "extra_forbidden"}:
        return error["loc"]
    path: list[str | int] = []
    for step in error["loc"]:
        entries = dict(enumerate(data)) if isinstance(data, list) else data
        if not isinstance(entries, dict) or step not in entries:
            break
        data = entries[step]
        path.append(step)
    return tuple(path)


def _explained(path: tuple[str | int, ...], group: list[ErrorDetails]) -> Problem:
    first, key = group[0], ".".join(map(str, path))
    if first["type"] == "extra_forbidden":
        meant, hint = _nearest_key(path)
        return Problem((key, meant) if meant else (key,), f"is not a key; {hint}")
    if first["type"] == "missing":
        return Problem((key,), _REQUIRED)
    if first["type"] == "value_error":
        return Problem((key,), str(first["ctx"]["error"]))
    wanted = " or ".join(dict.fromkeys(_wanted(error) for error in group))
    return Problem((key,), f"must be {wanted}, not {_shown(first['input'])}{_advice(group)}")


def _wanted(error: ErrorDetails) -> str:
    context = error.get("ctx", {})
    match error["type"]:
        case "literal_error":
            return str(context["expected"]).replace("'", "")
        case "greater_than_equal":
            return f"at least {context['ge']:g}"
        case "greater_than":
            return f"greater than {context['gt']:g}"
        case "less_than_equal":
            return f"at most {context['le']:g}"
        case "less_than":
            return f"less than {context['lt']:g}"
        case "string_too_short":
            return "text that is not empty"
        case "too_short":
            return f"a list of at least {context['min_length']}"
        case "string_pattern_mismatch":
            return "letters, digits, '.', '_' and '-', with a letter or digit first"
        case other:
            return _KINDS.get(other.split("_")[0], error["msg"])


def _shown(value: object) -> str:
    from core.data.sources.places import redacted  # brings pyarrow along

    # Before it is shortened: half an address is no longer known as one.
    text = redacted(json.dumps(value, ensure_ascii=False, default=str))
    return text if len(text) <= 60 else text[:57] + "..."


def _advice(group: list[ErrorDetails]) -> str:
    """Guess what was meant: a choice spelled nearly so, or a number that should be text."""
    given = group[0]["input"]
    if isinstance(given, str):
        wanted = " or ".join(_wanted(error) for error in group if error["type"] == "literal_error")
        choices = {choice.lower(): choice for choice in re.split(r", | or ", wanted) if choice}
        close = difflib.get_close_matches(given.lower(), choices, n=1)
        return f"; did you mean {choices[close[0]]}?" if close else ""
    wants_text = all(error["type"] == "string_type" for error in group)
    return "; put it in quotes" if wants_text and isinstance(given, int | float) else ""


def inner_model(annotation: object) -> type[BaseModel] | None:
    """Find the settings model inside an annotation such as ``tuple[SourceConfig, ...]``."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for arg in get_args(annotation) if (found := inner_model(arg))), None)


def _nearest_key(path: Sequence[str | int]) -> tuple[str, str]:
    """Guess the dotted key that an unknown one was meant to be (or nothing), and word a hint."""
    block, siblings = _block(path[:-1])
    wrong, names = str(path[-1]), list(siblings)
    inside = _closest(wrong, names) or _only_one_holding(wrong, names)
    keys = _all_keys(RunConfig)
    elsewhere = [key for key in keys if key.rsplit(".", 1)[-1] == wrong]
    leaves = {key.rsplit(".", 1)[-1]: key for key in reversed(keys)}
    if inside:
        meant = f"{block}{inside}"
    elif elsewhere or wrong in COMMON_NAMES:
        meant = elsewhere[0] if elsewhere else COMMON_NAMES[wrong]
    else:
        close = _closest(wrong, list(leaves)) or _only_one_holding(wrong, list(leaves))
        meant = leaves[close] if close else ""
    if meant:
        return meant, f"did you mean {meant}?"
    return "", f"keys here: {', '.join(names)}"


def _closest(wrong: str, names: list[str]) -> str:
    return next(iter(difflib.get_close_matches(wrong.lower().replace("-", "_"), names, n=1, cutoff=0.7)), "")


def _only_one_holding(part: str, names: list[str]) -> str:
    holding = [name for name in names if len(part) > 3 and part.lower() in name]
    return holding[0] if len(holding) == 1 else ""


def _block(path: Sequence[str | int]) -> tuple[str, dict[str, Any]]:
    """Return the dotted prefix and the fields of the block at a path."""
    model: type[BaseModel] = RunConfig
    for step in path:
        if isinstance(step, str):
            model = inner_model(model.model_fields[step].annotation) or model
    return "".join(f"{step}." for step in path), dict(model.model_fields)


def _all_keys(model: type[BaseModel], prefix: str = "") -> list[str]:
    """List every dotted key of the config, blocks before what they hold."""
    keys = []
    for name, field in model.model_fields.items():
        keys.append(f"{prefix}{name}")
        if inner := inner_model(field.annotation):
            keys += _all_keys(inner, f"{prefix}{name}.")
    return keys
