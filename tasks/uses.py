"""How often the test set at hand was judged on before."""

from core.data.reports import SplitReport
from tasks.context import current
from tasks.test_uses import TestUse, TestUses, count_uses, record_use


def uses_of(split: SplitReport) -> TestUses:
    """Return all uses of a split's test set so far, this run's included."""
    ledger = current().test_uses
    return count_uses(ledger, split.digests["test"]) if ledger else TestUses(runs=0, evaluations=0)


def earlier_uses(split: SplitReport) -> int:
    """Return how many runs have judged a model on this test set; asked before this run does."""
    return uses_of(split).runs


def use_test_set(digest: str, phase: str, arm: str) -> None:
    """Record that this run judges a model on a test set."""
    run = current()
    if run.test_uses:
        use = TestUse(
            digest=digest, run=run.tracker.run_id, phase=phase, arm=arm, workspace=run.workspace.root.name
        )
        record_use(run.test_uses, use)
