"""What quantization did to the file that ships, in sentences for the documents."""

from core.quantization.reports import QuantizedFile, QuantReport
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


def scored_line(chosen: QuantizedFile) -> str:
    """Say in one sentence what the file scored and how fast it was."""
    scored = chosen.evaluation
    return (
        f"The file has {chosen.bytes / 1e6:.1f} MB. On {scored.n} test questions it scored {scored.metric} "
        f"{scored.value:.4f}, at {scored.tokens_per_second:.0f} tokens per second, one question after the other."
    )


def _measured(file: QuantizedFile) -> str:
    return f"{file.bytes / 1e6:.1f} MB, {file.evaluation.metric} {file.evaluation.value:.4f}"
