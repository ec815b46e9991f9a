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
    wanted: float = 1.0
    """Share of the mix asked for, 0 to 1."""
    digest: str = ""
    """sha256 over the names and bytes of its files, or the revision of a hub dataset."""


class IngestReport(Frozen):
    """What was gathered."""

    rows: int
    sources: tuple[SourceCount, ...]
    notes: tuple[str, ...] = ()
    """What a person should know, such as files in a folder that were passed over."""
    is_weighted: bool = False
    """Weights differ, so the shares of the mix are promises that a gate checks."""


class Histogram(Frozen):
    """Counts between edges."""

    edges: tuple[float, ...]
    """n + 1 rising edges; a value on an edge belongs to the bin on its right, the last one to the last bin."""
    counts: tuple[int, ...]
    """n counts."""


class LengthProfile(Frozen):
    """How long things are."""

    unit: str
    """words or tokens."""
    n: int
    mean: float
    median: float
    p95: float
    largest: int
    histogram: Histogram


class LabelBalance(Frozen):
    """How often each value of a field occurs."""

    field: str
    counts: dict[str, int]
    """Most frequent first, at most 30 values; the rest are in ``others``."""
    others: int = 0
    missing: int = 0
    """Rows without the field."""
    evenness: float
    """Shannon entropy over its largest possible value, 0 (one value) to 1 (all equal)."""


class PiiExample(Frozen):
    """One finding, shown without giving it away."""

    kind: str
    origin: str
    """file:line of the row."""
    preview: str
    """Text around the finding, with the finding replaced as redaction would."""


class PiiReport(Frozen):
    """Personal data and secrets."""

    looked: bool
    redacted: bool
    rows: int
    """Rows with at least one finding."""
    findings: dict[str, int]
    """Findings by kind: email, phone, card, iban, national_id.<name>, api_key, private_key, password."""
    examples: tuple[PiiExample, ...] = ()
    left: dict[str, int] = {}
    """Findings by kind that a second look, after redaction, still made; empty without redaction."""


class Contamination(Frozen):
    """Overlap with benchmarks."""

    items: int
    """Benchmark items compared with."""
    ignored: int = 0
    """Benchmark items of fewer than three words, which would be found everywhere."""
    ngram: int
    rows: int
    """Rows that share a sequence."""
    items_hit: int
    """Benchmark items found in the rows."""
    removed: int
    examples: tuple[str, ...] = ()
    """file:line with the shared words."""


class QualityReport(Frozen):
    """What the kept rows look like."""

    words: LengthProfile
    """Words of whole rows."""
    languages: dict[str, int]
    """Rows of a sample by language code, most frequent first; "und" could not be told."""
    language_sample: int
    """Rows the languages were looked up for."""
    unexpected_languages: int
    """Rows of the sample in a language that quality.languages does not name."""
    scripts: dict[str, int]
    """Letters by script, most frequent first."""
    markers: dict[str, int]
    """Rows with a marker, by the name given."""
    mixed_script_rows: int
    """Rows with a word that mixes scripts, such as a Greek ε in a Latin word."""
    mixed_script_examples: tuple[str, ...]
    labels: tuple[LabelBalance, ...]
    pii: PiiReport
    contamination: Contamination | None
    changed_by_normalisation: int
    """Rows that normalisation changed."""


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
    """Usable rows by detected format, duplicates included."""
    max_rejected: float
    near_duplicates: int = 0
    """Rows dropped because an almost equal one was kept."""
    contaminated: int = 0
    """Rows dropped because they share a passage with a benchmark."""
    mixed_out: int = 0
    """Rows left out so that the sources' shares follow their weights."""
    near_examples: tuple[tuple[str, str], ...] = ()
    """Some dropped near-duplicates, each with the row it resembles (starts of both texts)."""
    near_threshold: float | None = None
    looks_like: tuple[str, ...] = ()
    """What was detected, in words: "rows.jsonl looks like alpaca; using instruction, input, output"."""
    kept_by_source: dict[str, int] = {}
    """Kept rows by source, as its path is written in the config."""
    quality: QualityReport | None = None


class Leakage(Frozen):
    """Rows that two splits have in common."""

    exact: int
    """Questions equal byte for byte."""
    normalised: int
    """Questions equal after Unicode, case and whitespace normalisation."""
    groups: int
    """Values of group_by present on both sides."""
    repeated: int = 0
    """Questions of the second split that the first one holds too, under another system text or earlier in a longer
    conversation."""
    near: int | None = 0
    """Rows of the second split whose question, or whole text, is nearly the same as one of the first; None if not
    looked for."""


class Composition(Frozen):
    """Rows of every split by the values of one property."""

    property: str
    counts: dict[str, dict[str, int]]
    """By split, then by value."""


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
    """Rows left out because they stood between splits: questions of a given validation file, or, with
    strategies time and content, relatives of a stricter split's rows."""
    clusters: int = 0
    """Groups of rows that had to stay together, single rows included."""
    largest_cluster: int = 0
    near_threshold: float | None = None
    composition: tuple[Composition, ...] = ()
    validation_pii: PiiReport | None = None
    """Personal data in a given validation file."""
