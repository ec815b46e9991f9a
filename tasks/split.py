"""Split: divide conversations so that nothing in the test set can be copied from training."""

from core.artifacts import Dataset, PhaseResult, Splits
from core.data.config import SplitConfig
from core.data.reports import FormatReport, SplitReport
from core.data.split import split as divide
from tasks.context import RunContext
from tasks.phase import Outcome, phase


class Divided(PhaseResult[Splits, SplitReport]):
    """The splits and what they share."""


@phase("split", Divided, reads=("core.data.split", "core.data.dedup", "core.data.leakage"))
def split(
    context: RunContext, key: str, dataset: Dataset, formatted: FormatReport, config: SplitConfig
) -> Outcome:
    """Divide, then measure leakage from the written files."""
    target = context.workspace.splits
    report = divide(dataset.verified(), target, config, formatted=formatted)
    note = f"train {report.train:,} · val {report.val:,} · test {report.test:,}"
    return Outcome(Divided(artifact=Splits.of(target), report=report), (target,), note)
