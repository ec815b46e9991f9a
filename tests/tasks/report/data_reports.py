"""Reports of data phases that found something of everything."""

from core.data.learning_reports import (
    LearnFinding,
    LearnReport,
    MaskCounts,
    MaskedExample,
    OverfitReport,
    RoundTrip,
    Token,
)
from core.data.reports import (
    Composition,
    Contamination,
    FormatReport,
    Histogram,
    IngestReport,
    LabelBalance,
    Leakage,
    LengthProfile,
    PiiExample,
    PiiReport,
    QualityReport,
    SourceCount,
    SplitReport,
)
from tasks.test_uses import TestUses

PAIRS = ("train/val", "train/test", "val/test")


def digest(letter: str) -> str:
    return "sha256:" + letter * 64


def profile(unit: str, counts: tuple[int, ...]) -> LengthProfile:
    edges = tuple(float(2**n) for n in range(len(counts) + 1))
    return LengthProfile(
        unit=unit,
        n=sum(counts),
        mean=37.42,
        median=24.0,
        p95=118.0,
        largest=int(edges[-1]),
        histogram=Histogram(edges=edges, counts=counts),
    )


WORDS = profile("words", (3, 21, 160, 540, 822, 640, 290, 96, 24, 4))
TOKENS = profile("tokens", (0, 0, 4, 44, 310, 812, 530, 240, 98, 30, 11, 1))

INGEST = IngestReport(
    rows=3110,
    notes=("data/tutor/readme.txt was passed over: no known format",),
    sources=(
        SourceCount(
            path="data/tutor/*.jsonl", files=4, rows=2400, taken=2400, wanted=0.75, digest=digest("c")
        ),
        SourceCount(path="data/extra.csv", files=1, rows=620, taken=620, wanted=0.15, digest=digest("d")),
        SourceCount(
            path="s3://user:secret@bucket/lessons/2026/november/geography-and-history.parquet?X-Signature=abc",
            files=1, rows=90, taken=90, wanted=0.1,
        ),
    ),
    is_weighted=True,
)  # fmt: skip

PII = PiiReport(
    looked=True,
    redacted=False,
    rows=31,
    findings={"email": 22, "phone": 11, "national_id.ghana_card": 4, "api_key": 1},
    examples=tuple(
        PiiExample(kind=kind, origin=f"data/tutor/rows.jsonl:{line}", preview=preview)
        for kind, line, preview in (
            ("email", 118, "Send your answer to [EMAIL] before Friday."),
            ("phone", 640, "Call the school on [PHONE] and ask for the head teacher."),
            ("national_id.ghana_card", 701, "My card number is [NATIONAL_ID], is that right?"),
            ("api_key", 1904, "client = Client(key='[API_KEY]')"),
            ("email", 1950, "from [EMAIL] to [EMAIL]"),
            ("email", 1951, "cc [EMAIL]"),
            ("email", 1952, "bcc [EMAIL]"),
        )
    ),
)

QUALITY = QualityReport(
    words=WORDS,
    languages={"en": 1650, "tw": 260, "und": 61, "fr": 24, "de": 5},
    language_sample=2000,
    unexpected_languages=29,
    scripts={"Latin": 481_220, "Greek": 612, "Cyrillic": 14},
    markers={"twi": 268, "ghana": 143},
    mixed_script_rows=7,
    mixed_script_examples=("data/twi.jsonl:44: wɔfrε (Greek ε)", "data/twi.jsonl:91: аnd (Cyrillic а)"),
    labels=(
        LabelBalance(
            field="topic",
            counts={"arithmetic": 1420, "units": 480, "geography": 260, "twi": 240, "science": 200},
            evenness=0.793,
        ),
        LabelBalance(
            field="difficulty_of_the_question",
            counts={f"level {n}": 900 // n for n in range(1, 13)},
            others=41,
            missing=12,
            evenness=0.86,
        ),
    ),
    pii=PII,
    contamination=Contamination(
        items=1319, ngram=8, rows=5, items_hit=4, removed=0,
        examples=("data/tutor/arithmetic.jsonl:77: how many eggs are left in the basket if",),
    ),
    changed_by_normalisation=18,
)  # fmt: skip

FORMATTED = FormatReport(
    rows=3110,
    kept=2600,
    rejected=35,
    duplicates=45,
    reasons={"no answer": 21, "unknown shape": 9, "not valid JSON": 5},
    formats={"alpaca": 1900, "messages": 700},
    max_rejected=0.05,
    near_duplicates=30,
    mixed_out=400,
    near_examples=(
        (
            "What is the capital city of Ghana? The capital city of Ghana is Accra.",
            "What is the capital of Ghana? The capital of Ghana is Accra.",
        ),
        ("Add 12 and 30, please. 42", "Add 12 and 30. 42"),
        ("How many metres are in 3 kilometres? 3000 metres.", "How many metres are in 3 kilometres? 3000."),
        ("Name a river in Peru. The Amazon!", "Name a river in Peru. The Amazon."),
    ),
    near_threshold=0.8,
    looks_like=(
        "arithmetic.jsonl looks like alpaca; using instruction, input, output",
        "twi.jsonl looks like messages; using messages of role and content",
    ),
    kept_by_source={"data/tutor/*.jsonl": 2260, "data/extra.csv": 280, INGEST.sources[2].path: 60},
    quality=QUALITY,
)

SPLIT = SplitReport(
    train=2080,
    val=260,
    test=260,
    requested={"train": 0.8, "val": 0.1, "test": 0.1},
    duplicates=0,
    leakage={pair: Leakage(exact=0, normalised=0, groups=0, near=0) for pair in PAIRS},
    digests={"train": digest("1"), "val": digest("6"), "test": digest("7")},
    rejected_share=0.024,
    max_rejected=0.05,
    strategy="random",
    seed=3407,
    removed=12,
    clusters=2511,
    largest_cluster=9,
    near_threshold=0.8,
    composition=(
        Composition(
            property="source",
            counts={
                "train": {"data/tutor/*.jsonl": 1830, "data/extra.csv": 250},
                "val": {"data/tutor/*.jsonl": 228, "data/extra.csv": 32},
                "test": {"data/tutor/*.jsonl": 232, "data/extra.csv": 28},
            },
        ),
        Composition(
            property="topic",
            counts={
                split: {"arithmetic": 14 * k, "units": 5 * k, "geography": 3 * k, "twi": 2 * k, "science": 2 * k,
                        "history": k, "music": k}
                for split, k in (("train", 80), ("val", 10), ("test", 10))
            },
        ),
    ),
)  # fmt: skip

TEST_USES = TestUses(
    runs=3, evaluations=9, first="2026-11-19T10:00:00+00:00", last="2026-11-20T22:50:00+00:00"
)


def example(label: str, **fields: object) -> MaskedExample:
    said = [
        ("<bos>", False, True), ("<start_of_turn>", False, True), ("user", False, False), ("\n", False, False),
        *((word, False, False) for word in ("What", " is", " the", " capital", " of", " Ghana", "?")),
        ("<end_of_turn>", False, True), ("\n", False, False), ("<start_of_turn>", False, True),
        ("model", False, False), ("\n", False, False),
        *((word, True, False) for word in ("The", " capital", " of", " Ghana", " is", " Acc", "ra", ".")),
        ("<end_of_turn>", True, True), ("\n", False, False),
    ]  # fmt: skip
    tokens = tuple(
        Token(text=text, id=100 + place, trained=trained, special=special)
        for place, (text, trained, special) in enumerate(said)
    )
    given = {"label": label, "id": "row-17", "tokens": tokens, "n_tokens": len(said), "n_trained": 9} | fields
    return MaskedExample.model_validate(given)


LEARNING = LearnReport(
    sampled=2000,
    of_rows=2080,
    model="data/tutor_base/model",
    counts=MaskCounts(
        rows=2000, examples=2080, tokens=183_400, trained_tokens=41_210, max_length=1024, lost_tokens=2210,
        lost_trained_tokens=640, cut_examples=12, hurt_examples=9, untrained_rows=2,
        untrained_ids=("row-90", "row-1204"), answers=2104, closed_answers=2104, doubled_bos=0,
        unknown_tokens=3, words=74_840, word_tokens=118_020,
    ),
    lengths=TOKENS,
    p99=1310,
    suggested_max_length=1344,
    round_trip=RoundTrip(checked=200, text_failures=0, answer_failures=0, prompt_failures=0),
    examples=(
        example("a row of median length"),
        example("the longest row", id="row-3", n_tokens=2310, omitted=2284, omitted_at=10, lost_from=21),
    ),
    findings=(
        LearnFinding(
            level="warning",
            where="model.max_seq_length",
            what="9 examples lose part of their answer behind 1,024 tokens",
            fix="set model.max_seq_length: 1344, which 99 of 100 examples fit into",
        ),
        LearnFinding(level="info", where="dataset", what="2 rows have no trained token", fix="take them out"),
    ),
    overfit=OverfitReport(
        verdict="learned",
        loss_before=3.41,
        loss_after=0.04,
        steps=40,
        examples=4,
        seconds=2.3,
        learning_rate=1e-3,
        trainable_parameters=3_400_000,
        losses=tuple(3.41 * 0.895**n for n in range(40)),
    ),
)  # fmt: skip
