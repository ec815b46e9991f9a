"""What quantization did to the file that ships, in sentences for the documents."""

from core.quantization.reports import PytorchFile, QuantizedFile, QuantReport
from gates.rungs import ladder


def file_story(chosen: QuantizedFile, report: QuantReport) -> tuple[str, ...]:
    """Tell what changed against the model before quantization, and what else was measured.

    Args:
        chosen: The file that ships.
        report: All files.
    """
    told = []
    if chosen.text_agreement is not None:
        told.append(
            f"Of {chosen.evaluation.n} answers, quantization made {chosen.broken} worse and {chosen.fixed} better; "
            f"{100 * chosen.text_agreement:.1f} % are word for word those of the model before it."
        )
    if chosen.distance is not None:
        told.append(
            f"The file's next-token distributions diverge by {chosen.distance.kl:.2g} nats on "
            f"{chosen.distance.tokens} positions of the model's own answers, and "
            f"{100 * chosen.distance.argmax_agreement:.1f} % of the likeliest tokens are the same."
        )
    others = [f"{f.type} ({_measured(f)})" for f in ladder(report.files) if f.digest != chosen.digest]
    if others:
        told.append(f"Measured beside it: {', '.join(others)}.")
    return tuple(told)


def rounding_story(aware: str | None) -> tuple[str, ...]:
    """Tell which type's rounding the model was trained with, if it was with one."""
    if aware is None:
        return ()
    return (
        f"Every forward pass of training rounded the linear layers as {aware} does, and the weights are the rounded "
        "ones: a file of that type holds them as they were trained, but for the last bits of a scale.",
    )


def scored_line(chosen: QuantizedFile | PytorchFile) -> str:
    """Say in one sentence what the file scored and how fast it was."""
    scored = chosen.evaluation
    pace = ", one question after the other" if isinstance(chosen, QuantizedFile) else ""
    return (
        f"The file has {chosen.bytes / 1e6:.1f} MB. On {scored.n} test questions it scored {scored.metric} "
        f"{scored.value:.4f}, at {scored.tokens_per_second:.0f} tokens per second{pace}."
    )


def _measured(file: QuantizedFile) -> str:
    return f"{file.bytes / 1e6:.1f} MB, {file.evaluation.metric} {file.evaluation.value:.4f}"
