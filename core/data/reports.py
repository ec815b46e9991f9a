"""The numbers the data phases hand to gates and people."""

from core.config import Frozen


class SourceCount(Frozen):
    """What one source gave."""

    path: str
    files: int
    rows: int
    """Rows read."""
    taken: int
    """Rows kept for the mix."""


class IngestReport(Frozen):
    """What was gathered."""

    rows: int
    sources: tuple[SourceCount, ...]
    notes: tuple[str, ...] = ()
    """What a person should know, such as files in a folder that were passed over."""


class FormatReport(Frozen):
    """What became of every raw row."""

    rows: int
    kept: int
    rejected: int
    duplicates: int
    """Rows dropped because an equal one (after normalisation) was kept."""
    reasons: dict[str, int]
    """Rejected rows by reason."""
    formats: dict[str, int]
    """Kept rows by detected format."""
    max_rejected: float


class Leakage(Frozen):
    """Rows that two splits have in common."""

    exact: int
    """Questions equal byte for byte."""
    normalised: int
    """Questions equal after Unicode, case and whitespace normalisation."""
    groups: int
    """Values of group_by present on both sides."""


class SplitReport(Frozen):
    """How the rows were divided, and what the splits share."""

    train: int
    val: int
    test: int
    requested: dict[str, float]
    """Shares asked for, by split name."""
    duplicates: int
    """Rows equal to another row of the same split, after normalisation."""
    leakage: dict[str, Leakage]
    """By pair of splits: train/val, train/test, val/test."""
    digests: dict[str, str]
    """Digest of each split's file."""
    rejected_share: float
    """Share of raw rows that were unusable."""
    max_rejected: float
    strategy: str
    seed: int
    removed: int = 0
    """Rows left out of train and test because the given validation file holds their question."""
