"""Write the GGUF files of the quantize phase: one 16-bit file first, and every other type from it."""

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from core.artifacts import Splits
from core.data.records import Conversation, read_records
from core.quantization.config import GgufType, QuantizationConfig
from tasks.chat_tokens import chat_tokenizer
from tasks.context import RunContext

if TYPE_CHECKING:
    from core.quantization.source import SixteenBits

CONTAINERS: tuple[GgufType, ...] = ("f16", "bf16")


class Written(NamedTuple):
    """What the phase has made."""

    source: Path
    """The 16-bit file: among the others if it was asked for, else in the work folder."""
    source_type: GgufType
    files: dict[GgufType, Path]
    importance_tokens: int
    """Tokens behind the importance matrix; 0 without one."""


def write_files(
    context: RunContext,
    merged: Path,
    splits: Splits,
    target: Path,
    work: Path,
    settings: QuantizationConfig,
    name: str,
) -> Written:
    """Write one file per type; the folder ends up holding these and nothing else.

    Args:
        context: The run.
        merged: The merged model.
        splits: Training rows, for the importance matrix.
        target: Folder of the files.
        work: Folder for what is not kept, on the same disk.
        settings: Which types, and whether with an importance matrix.
        name: Name recorded in the files.
    """
    from core.quantization.gguf import quantize_gguf
    from core.quantization.source import sixteen_bit_type

    files = {kind: target / f"model-{kind}.gguf" for kind in settings.formats}
    clear_others(target, set(files.values()))
    half = sixteen_bit_type(merged)
    source = files.get(half, work / f"model-{half}.gguf")
    context.watcher.advanced("quantize", 0, len(files), f"writing {half}")
    export(merged, source, half, name)
    importance = work / "importance.npz" if settings.imatrix else None
    tokens = measure_importance(context, merged, splits, source, importance, settings.imatrix_rows)
    for number, (kind, path) in enumerate(files.items()):
        context.watcher.advanced("quantize", number, len(files), f"writing {kind}")
        if kind in CONTAINERS and path != source:
            export(merged, path, "f16" if kind == "f16" else "bf16", name)
        elif kind not in CONTAINERS:
            quantize_gguf(source, path, kind, threads=context.threads, importance=importance)
    return Written(source, half, files, tokens)


def export(merged: Path, target: Path, kind: "SixteenBits", name: str) -> None:
    """Write the model as one 16-bit file."""
    from core.deployment.gguf import write_gguf
    from core.quantization.engine import short_writes_explained

    with short_writes_explained(target.parent):
        write_gguf(merged, target, dtype=kind, name=name)


def clear_others(target: Path, wanted: set[Path]) -> None:
    """Delete files of types that are no longer asked for."""
    target.mkdir(parents=True, exist_ok=True)
    for stale in [path for path in target.glob("*.gguf") if path not in wanted]:
        stale.unlink()


def measure_importance(
    context: RunContext, merged: Path, splits: Splits, source: Path, target: Path | None, rows: int
) -> int:
    """Measure on training rows what weighs rounding errors; nothing without a target."""
    if target is None:
        return 0
    from core.quantization.importance import collect_importance

    context.watcher.advanced("quantize", 0, rows, "rows for the importance matrix")
    texts = training_texts(merged, splits.train, rows)
    return collect_importance(source, texts, target, threads=context.threads)


def training_texts(merged: Path, train: Path, rows: int) -> Iterator[list[int]]:
    """Yield the tokens of training rows, as many as asked for, spread evenly over the file."""
    from core.quantization.importance import LONGEST

    with train.open(encoding="utf-8") as lines:
        step = max(1, sum(1 for _ in lines) // rows)
    chat = chat_tokenizer(merged, "chatml")
    for record in islice(islice(read_records(train), 0, None, step), rows):
        if isinstance(record, Conversation):
            made = chat.encode(record)
        else:
            made = chat.encode_document(record.text, LONGEST)
        yield from (encoded.input_ids for encoded in made)
