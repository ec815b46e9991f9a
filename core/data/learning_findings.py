"""From the numbers of a look at the tokens to advice: every finding names the key that mends it."""

from collections.abc import Iterable, Iterator
from typing import Literal

from core.data.learning_reports import LearnFinding, LearnReport, MaskCounts, OverfitReport, RoundTrip
from core.data.reports import LengthProfile

STEP = 64
"""Suggested windows are multiples of it."""
SMALLEST_WINDOW = 256
HIGH_FERTILITY = 4.0
"""Tokens per word from which a tokenizer does not know a language: it spells words letter by letter."""
THIN_MASK = 0.01
"""Share of trained tokens below which most of the computing goes into prompts."""
TOLERATED = 0.05
"""Share of failing rows above which a finding is an error."""
UNMOVED = 1 - 1e-4
"""A loss that stays above this share of its start has not moved: nothing at all is being learned."""

_GRAVITY = {"error": 0, "warning": 1, "info": 2}
_Level = Literal["error", "warning", "info"]


def rounded_window(tokens: float) -> int:
    """Return the smallest sensible window for so many tokens: a multiple of 64, at least 256."""
    return max(SMALLEST_WINDOW, -(-int(tokens) // STEP) * STEP)


def sorted_findings(findings: Iterable[LearnFinding]) -> tuple[LearnFinding, ...]:
    """Return findings with the gravest first."""
    return tuple(sorted(findings, key=lambda finding: _GRAVITY[finding.level]))


def find(
    counts: MaskCounts, lengths: LengthProfile, p99: int, trip: RoundTrip, first_refusal: str = ""
) -> tuple[LearnFinding, ...]:
    """Judge the numbers.

    Args:
        counts: The mask and what the window cuts off.
        lengths: Tokens of examples.
        p99: Length that 99 % of examples do not exceed.
        trip: How tokens lead back to text.
        first_refusal: Why the template refused the first row that it refused.
    """
    return sorted_findings(
        [
            *_template_findings(counts, first_refusal),
            *_window_findings(counts, lengths, p99),
            *_trip_findings(trip),
            *_vocabulary_findings(counts),
        ]
    )


def with_overfit(report: LearnReport, overfit: OverfitReport) -> LearnReport:
    """Add the outcome of learning one batch by heart, with what follows from it."""
    findings = sorted_findings([*report.findings, *_overfit_findings(overfit)])
    return report.model_copy(update={"overfit": overfit, "findings": findings})


def _template_findings(counts: MaskCounts, first_refusal: str) -> Iterator[LearnFinding]:
    if counts.refused_rows:
        what = f"the chat template refuses {counts.refused_rows} of {counts.rows + counts.refused_rows} rows"
        yield LearnFinding(
            level="error",
            where="sources",
            what=f"{what}; {first_refusal}",
            fix="take these rows out, or choose a base model whose template takes them",
        )
    if counts.closed_answers < counts.answers:
        open_ends = counts.answers - counts.closed_answers
        yield LearnFinding(
            level="error",
            where="dataset.chat_template",
            what=f"the end of {open_ends} of {counts.answers} answers is not trained: the model would not learn to stop",
            fix="choose a template that ends answers with a special token, such as dataset.chat_template: chatml",
        )
    if counts.doubled_bos:
        yield LearnFinding(
            level="error",
            where="dataset.chat_template",
            what=f"{counts.doubled_bos} of {counts.examples} examples start with two tokens of beginning",
            fix="take bos_token out of the template or out of the rows; one of them is enough",
        )
    if counts.marked_rows:
        yield LearnFinding(
            level="warning",
            where="sources",
            what=f"the words of {counts.marked_rows} rows hold the text of a special token, "
            "which the model would take for the real one",
            fix="give plain turns: the template is applied here, rows must not bring its markers along",
        )


def _window_findings(counts: MaskCounts, lengths: LengthProfile, p99: int) -> Iterator[LearnFinding]:
    window, best = counts.max_length, rounded_window(p99)
    enough = best if best > window else rounded_window(lengths.largest)
    where, fix = "model.max_seq_length", f"set model.max_seq_length: {enough}"
    if counts.rows and counts.untrained_rows == counts.rows:
        what = f"no row has a trained token within {window} tokens: the loss would be nothing"
        mend = fix if counts.lost_trained_tokens else "give rows with answers"
        yield LearnFinding(level="error", where=where, what=what, fix=mend)
        return
    if counts.hurt_examples:
        lost = f"{counts.lost_trained_share:.1%} of the trained tokens"
        what = (
            f"{counts.hurt_examples} of {counts.examples} examples lose trained tokens at {window} ({lost})"
        )
        yield LearnFinding(level="warning", where=where, what=what, fix=fix)
    if counts.untrained_rows:
        names = ", ".join(counts.untrained_ids[:3])
        what = (
            f"{counts.untrained_rows} of {counts.rows} rows have no trained token left at {window} ({names})"
        )
        mend = fix if counts.lost_trained_tokens else "take these rows out, or give them answers"
        yield LearnFinding(level="warning", where=where, what=what, fix=mend)
    if counts.cut_examples and not counts.hurt_examples and not counts.untrained_rows:
        what = f"{counts.cut_examples} of {counts.examples} examples are cut at {window}, behind their last answer"
        yield LearnFinding(level="info", where=where, what=what)
    roomy = rounded_window(lengths.largest)
    if counts.examples and roomy * 2 <= window:
        what = f"the longest example has {lengths.largest} tokens; a window of {window} only raises the memory estimate"
        yield LearnFinding(level="info", where=where, what=what, fix=f"set model.max_seq_length: {roomy}")


def _trip_findings(trip: RoundTrip) -> Iterator[LearnFinding]:
    kinds: tuple[tuple[int, str, str], ...] = (
        (
            trip.answer_failures,
            "the trained tokens are not exactly the answers",
            "look at the first example: only the answer and its end should be marked; choose another template",
        ),
        (
            trip.text_failures,
            "the tokens do not lead back to the text",
            "the tokenizer changes letters or spaces; choose a base model whose tokenizer keeps them",
        ),
        (
            trip.prompt_failures,
            "the prompt used in serving is not how training examples start",
            "choose a template whose generation prompt is followed by the answer as it is",
        ),
    )
    for failures, what, fix in kinds:
        if failures:
            level: _Level = "error" if failures > TOLERATED * trip.checked else "warning"
            text = f"{what} in {failures} of {trip.checked} rows; {trip.first}"
            yield LearnFinding(level=level, where="dataset.chat_template", what=text, fix=fix)


def _vocabulary_findings(counts: MaskCounts) -> Iterator[LearnFinding]:
    examples = f" ({', '.join(counts.hard_words[:3])})" if counts.hard_words else ""
    other = "choose a base model whose tokenizer knows the language of the rows"
    if counts.unknown_tokens:
        what = f"{counts.unknown_share:.2%} of the tokens stand for text that the vocabulary lacks{examples}"
        yield LearnFinding(level="warning", where="model.name", what=what, fix=other)
    if counts.tokens_per_word > HIGH_FERTILITY:
        what = f"a word takes {counts.tokens_per_word:.1f} tokens{examples}: the tokenizer does not know this language"
        yield LearnFinding(level="warning", where="model.name", what=what, fix=other)
    if counts.trained_tokens and counts.trained_share < THIN_MASK:
        what = f"only {counts.trained_share:.2%} of the tokens are trained; most of the computing goes into prompts"
        yield LearnFinding(level="info", where="sources", what=what, fix="shorten prompts and system turns")


def _overfit_findings(overfit: OverfitReport) -> Iterator[LearnFinding]:
    """Yield what the outcome means; a batch that was learned needs no words."""
    rate = overfit.learning_rate or 0.0
    if overfit.verdict == "skipped":
        yield LearnFinding(
            level="info",
            where="model.name",
            what=f"learning one batch by heart was skipped: {overfit.reason}",
        )
    elif overfit.verdict == "undecided":
        yield LearnFinding(level="info", where="training", what=overfit.reason)
    elif overfit.verdict == "slow":
        yield LearnFinding(
            level="warning",
            where="training.learning_rate",
            what=overfit.reason,
            fix=f"set training.learning_rate: {rate:g}, or plan for many more steps",
        )
    elif overfit.verdict == "not learned":
        moved = overfit.ratio is not None and overfit.ratio < UNMOVED
        yield LearnFinding(
            level="warning" if moved else "error",
            where=_blamed(overfit),
            what=overfit.reason,
            fix=_way_out(overfit, rate),
        )


def _blamed(overfit: OverfitReport) -> str:
    return "lora.target_modules" if not overfit.trainable_parameters else "training.learning_rate"


def _way_out(overfit: OverfitReport, rate: float) -> str:
    if not overfit.trainable_parameters:
        return "lora.target_modules: [q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj]"
    if overfit.ratio is None or overfit.ratio > 1:
        return f"set training.learning_rate: {rate / 10:g}; in fp16, use bf16: true or dtype: float32"
    return "look at the mask above; then raise training.learning_rate or lora.r, or adapt more lora.target_modules"
