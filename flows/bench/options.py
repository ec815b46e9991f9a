"""What was asked for, checked."""

import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple, get_args

from core.errors import ConfigError
from core.models.random_base.shapes import SHAPES
from core.training.benchmark.case import Case, Rank, System

OURS: System = "fused"
PEERS: tuple[System, ...] = ("hf", "hf-plain", "liger", "unsloth")
TOY = {"length": 64, "rows": 2, "steps": 3, "warmup": 1}
"""Most of everything where there is no GPU."""
PARITY_LENGTH = 512


class Asked(NamedTuple):
    """The command line as it was typed."""

    peers: str = "hf,liger,unsloth"
    models: tuple[str, ...] = ("llama-1b",)
    seq: int = 2048
    rows: int = 8
    micro_batch: int | None = None
    storage: str = "nf4"
    rank: int = 16
    checkpointing: str = "on"
    budget: str = "auto"
    steps: int = 20
    warmup: int = 5
    rounds: int = 1
    packed: bool = False
    labels: str = "all"
    profile: bool = False
    ours: str = OURS
    timeout: int = 1800


class Options(NamedTuple):
    """The same, understood."""

    systems: tuple[System, ...]
    """Ours first."""
    models: tuple[str, ...]
    case: Case
    """The load; system and model are filled in later."""
    rounds: int
    profile: bool
    timeout: int
    """Seconds that one process may take."""


def understood(asked: Asked) -> Options:
    """Check every option.

    Raises:
        ConfigError: For the first that makes no sense; its message names the option.
    """
    for option, value in (("--seq", asked.seq - 7), ("--rows", asked.rows), ("--steps", asked.steps),
                          ("--warmup", asked.warmup), ("--rounds", asked.rounds), ("--timeout", asked.timeout),
                          ("--micro-batch", 1 if asked.micro_batch is None else asked.micro_batch)):  # fmt: skip
        if value < 1:
            raise ConfigError(
                "too small", where=option, fix="at least 8 tokens" if option == "--seq" else "at least 1"
            )
    one_of("--storage", asked.storage, ("nf4", "bf16"))
    one_of("--labels", asked.labels, ("all", "half"))
    one_of("--checkpointing", asked.checkpointing, ("on", "off"))
    one_of("--rank", str(asked.rank), tuple(str(rank) for rank in get_args(Rank)))
    case = Case.model_validate(
        {
            "system": one_of("--ours", asked.ours, (OURS, *PEERS)), "model": "", "storage": asked.storage,
            "rank": asked.rank, "length": asked.seq, "rows": asked.rows, "steps": asked.steps,
            "micro_batch": asked.micro_batch and min(asked.micro_batch, asked.rows), "warmup": asked.warmup,
            "checkpointing": asked.checkpointing == "on", "budget": gib(asked.budget), "packed": asked.packed,
            "labels": asked.labels, "parity_length": min(PARITY_LENGTH, asked.seq),
        }
    )  # fmt: skip
    models = tuple(known_model(name) for name in asked.models)
    return Options(systems_of(asked), models, case, asked.rounds, asked.profile, asked.timeout)


def one_of(option: str, value: str, choices: Iterable[str]) -> str:
    """Return a value that is among the choices.

    Raises:
        ConfigError: If it is not.
    """
    if value not in choices:
        raise ConfigError(f"{value!r} is not a choice", where=option, fix=f"one of {', '.join(choices)}")
    return value


def systems_of(asked: Asked) -> tuple[System, ...]:
    """List the systems, ours first, each once."""
    named = [name.strip() for name in asked.peers.split(",") if name.strip()]
    for name in named:
        one_of("--peers", name, PEERS)
    return tuple(dict.fromkeys((asked.ours, *named)))  # type: ignore[arg-type]


def gib(text: str) -> float | None:
    """Read a budget; None for auto.

    Raises:
        ConfigError: If it is neither.
    """
    if text == "auto":
        return None
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < 1e6:
        raise ConfigError(
            f"{text!r} is no amount of memory", where="--budget", fix="auto, or GiB such as 4.5"
        )
    return value


def known_model(name: str) -> str:
    """Return a name of a shape, or the folder of a model.

    Raises:
        ConfigError: If it is neither.
    """
    if name in SHAPES:
        return name
    if not (Path(name) / "config.json").is_file():
        fix = f"a folder with config.json and safetensors, or one of {', '.join(SHAPES)} (random weights)"
        raise ConfigError(f"{name!r} is neither a model folder nor a known shape", where="--model", fix=fix)
    if not any(Path(name).glob("*.safetensors")):
        fix = "convert its weights: model.save_pretrained(folder, safe_serialization=True)"
        raise ConfigError(f"{name!r} holds no *.safetensors", where="--model", fix=fix)
    return str(Path(name).resolve())


def writable(option: str, folder: Path) -> Path:
    """Make a folder and try to write into it, before anything is measured.

    Raises:
        ConfigError: If that does not work.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return folder
    except OSError as error:
        why = error.strerror or type(error).__name__
        fix = f"{option} FOLDER, with a folder that you may write to"
        raise ConfigError(f"cannot write to {folder}: {why}", where=option, fix=fix) from error


def for_cpu(options: Options) -> Options:
    """Cut a load down to what a processor does in seconds."""
    most: dict[str, int] = {name: min(limit, getattr(options.case, name)) for name, limit in TOY.items()}
    case = options.case.model_copy(update={**most, "has_gpu": False, "parity_length": most["length"]})
    return options._replace(case=case)
