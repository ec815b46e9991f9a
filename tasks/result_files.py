"""The result files of an evaluation, in ``metrics/``."""

from pathlib import Path

from core.artifacts import write_json
from core.evaluation.config import EvaluationConfig
from core.evaluation.reports import BaselineReport, EvalReport


def write_results(
    folder: Path, base: BaselineReport, tuned: EvalReport, config: EvaluationConfig
) -> tuple[Path, ...]:
    """Write every result file, and remove those of an earlier run that there is no ground for any more.

    Args:
        folder: Where they lie.
        base: Every arm of the base.
        tuned: The tuned model's report.
        config: What both were measured with.

    Returns:
        The files.
    """
    from core.evaluation.results import FILES, result_files

    made = result_files(base, tuned, config)
    for name in FILES.keys() - made.keys():
        (folder / name).unlink(missing_ok=True)
    return tuple(write_json(folder / name, content) for name, content in made.items())
