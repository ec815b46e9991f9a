"""The dated report, in Markdown for people and in JSON for programs."""

from collections.abc import Sequence
from datetime import date
from pathlib import Path

from core.artifacts import write_json, write_text
from core.training.benchmark import floors
from core.training.benchmark.reports import LOSS_TOLERANCE, RULE, Measured, OpClass, Profile
from flows.bench.results import Comparison, Line

GIB = 1 << 30
DAGGER = "†"
"""Beside a cosine that passed by being as near to float32 as hf's."""
IN_REPOSITORY = Path("tests/bench/reports")
ELSEWHERE = Path("bench-reports")
HEAD = ("system", "ms/step", "p10–p90", "wall", "tok/s", "labelled tok/s", "peak GiB", "reserved", "pinned", "loss",
        "loss error", "worst cosine", "ours is")  # fmt: skip
PROFILE_HEAD = ("work", "ms", "share", "launches", "floor ms", "× floor", "reached")


def report_folder(out: Path | None) -> Path:
    """Choose where the report goes: as asked, beside the others in our repository, else a folder here."""
    if out is not None:
        return out
    return IN_REPOSITORY if IN_REPOSITORY.is_dir() and Path("core/training").is_dir() else ELSEWHERE


def write_report(folder: Path, found: Sequence[Comparison], notes: Sequence[str] = ()) -> tuple[Path, Path]:
    """Write both files; an earlier report of the same day stays.

    Returns:
        The Markdown and the JSON file.
    """
    folder.mkdir(parents=True, exist_ok=True)
    stem = f"{date.today().isoformat()}-finetune"
    number, name = 1, stem
    while any((folder / f"{name}{ending}").exists() for ending in (".md", ".json")):
        number, name = number + 1, f"{stem}-{number + 1}"
    data = {"notes": list(notes), "comparisons": [each.model_dump(mode="json") for each in found]}
    json_file = write_json(folder / f"{name}.json", data)
    return write_text(folder / f"{name}.md", markdown(found, notes)), json_file


def markdown(found: Sequence[Comparison], notes: Sequence[str] = ()) -> str:
    """Lay everything out in Markdown."""
    parts = [
        f"# Fine-tuning step: ours beside the peers, {date.today().isoformat()}",
        *notes,
        machine_line(found),
        RULES,
    ]
    for comparison in found:
        parts += [
            f"## {title_of(comparison)}",
            grid(HEAD, [cells(comparison, line) for line in comparison.lines]),
        ]
        parts += [f"- {line.system}: {line.problem}" for line in comparison.lines if line.problem]
        parts += [f"- {line.system}: {line.remark}" for line in comparison.lines if line.remark]
        parts += [
            f"- {line.system}: {note}"
            for line in comparison.lines
            for note in (line.measured.notes if line.measured else ())
        ]
        parts += [
            profile_part(p) for line in comparison.lines if (p := line.measured and line.measured.profile)
        ]
    return "\n\n".join(part for part in parts if part) + "\n"


RULES = (
    "One process per system; the same rows, the same adapter (B not zero), AdamW in 8 bits, no clipping. Median of all timed steps "
    "between GPU events, from zeroing the gradients to the optimizer's end; wall is the mean by the clock. Peaks are of the timed "
    f"steps. Speed is shown only where two rows give the float32 reference's loss within {LOSS_TOLERANCE:g} and the gradient of every "
    f"adapter tensor a {RULE}; {DAGGER} marks cosines that passed by hf's. Loss is that of the first step. “ours is” says how many "
    "times as fast."
)


def machine_line(found: Sequence[Comparison]) -> str:
    """Name device and library versions."""
    seen: list[Measured] = [line.measured for each in found for line in each.lines if line.measured]
    named: dict[str, str] = {}
    for measured in seen:
        named |= {k: v for k, v in measured.machine.items() if k not in ("base", "gpu after the steps")}
    return (
        ", ".join(f"{name} {value}" if name != "device" else value for name, value in named.items()) + "."
        if named
        else ""
    )


def title_of(comparison: Comparison) -> str:
    """Say in a line what was run."""
    case = comparison.case
    size = f"{case.rows} × {case.length}" + (f" by {case.micro_batch}" if case.micro_batch else "")
    held = case.storage if case.has_gpu or case.storage == "nf4" else "float32"
    extra = [
        f"r = {case.rank}", f"checkpointing {'on' if case.checkpointing else 'off'}",
        f"budget {'auto' if case.budget is None else f'{case.budget:g} GiB'}", *(["packed"] if case.packed else []),
        *(["half of the labels"] if case.labels == "half" else []),
    ]  # fmt: skip
    return f"{Path(comparison.model).name} {held}, {size}, {', '.join(extra)}"


def cells(comparison: Comparison, line: Line) -> list[str]:
    """Write one system's row; figures of speed only where it may be shown."""
    measured, relative = line.measured, comparison.relative(line)
    memory, parity = (measured.memory, measured.parity) if measured else (None, None)
    spread = (
        f"{line.ms_p10:.0f}–{line.ms_p90:.0f}" if line.ms_p10 is not None and line.ms_p90 is not None else ""
    )
    word = line.problem.split(":", 1)[0] if line.problem else ""
    sizes = (
        [f"{n / GIB:.2f}" for n in (memory.allocated, memory.reserved, memory.pinned)] if memory else [""] * 3
    )
    loss = measured.first_loss if measured else None
    cosine = shown(parity.worst_cosine if parity else None, ".5f") + (DAGGER if line.remark else "")
    return [
        line.system, shown(line.ms, ".1f") or word, spread, shown(line.wall_ms, ".1f"),
        shown(line.tokens_per_second, ",.0f"), shown(line.labelled_per_second, ",.0f"), *sizes, shown(loss, ".5f"),
        shown(parity.loss_error if parity else None, ".1e"), cosine, f"{relative:.2f}×" if relative else "",
    ]  # fmt: skip


def shown(value: float | None, form: str) -> str:
    """Format a figure; nothing for none."""
    return "" if value is None else format(value, form)


def profile_cells(each: OpClass, profile: Profile) -> list[str]:
    """Write one kind of work."""
    factor = each.ms / each.floor_ms if each.floor_ms else None
    share = each.ms / profile.step_ms if profile.step_ms else 0.0
    return [each.name, f"{each.ms:.2f}", f"{share:.1%}", f"{each.launches:.0f}", shown(each.floor_ms, ".2f"),
            shown(factor, ".2f"), each.rate]  # fmt: skip


def profile_part(profile: Profile) -> str:
    """Lay out where the time of a step goes, and how floors are computed."""
    floor = sum(each.floor_ms or 0.0 for each in profile.classes)
    head = (
        f"### Where {profile.step_ms:.1f} ms a step go\n\nThree steps under the profiler, which lengthens the gaps. Copies run beside "
        f"products, so shares may add up to more than 1. Floors: {profile.gemm_tflops:.0f} TFLOP/s, the best of the model's own products "
        f"measured alone, and {floors.BANDWIDTH / 1e12:.1f} TB/s; together {floor:.1f} ms. Trace: `{Path(profile.trace).name}`."
    )
    formulas = f"```\n{(floors.__doc__ or '').strip()}\n```"
    return "\n\n".join(
        [head, grid(PROFILE_HEAD, [profile_cells(c, profile) for c in profile.classes]), formulas]
    )


def grid(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Lay out a Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "/") for cell in line) + " |" for line in lines)
