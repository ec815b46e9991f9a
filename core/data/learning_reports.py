"""What a look at the tokens says about a training run to come: the mask, the numbers, the findings."""

from typing import Literal

from core.config import Frozen
from core.data.reports import LengthProfile


class Token(Frozen):
    """One token of a rendered example."""

    text: str
    """What it spells; the texts of all tokens, joined, are the text of the example. A token that ends inside a
    character spells nothing, the one that completes it spells it whole; bytes that never become a character are
    shown in hexadecimal, such as ⟨E2⟩."""
    id: int
    trained: bool
    """The model is taught to produce it."""
    special: bool
    """It marks a start, an end or a turn."""


class MaskedExample(Frozen):
    """One training example as the model will see it."""

    label: str
    """Why it is shown, such as "a row of median length"."""
    id: str
    """The row's id."""
    tokens: tuple[Token, ...]
    """Its tokens, without those of the middle that are left out."""
    n_tokens: int
    """All of its tokens, shown or not."""
    n_trained: int
    omitted: int = 0
    """Tokens left out."""
    omitted_at: int = 0
    """Place in ``tokens`` where they are missing."""
    lost_from: int | None = None
    """Place in ``tokens`` from which on training cuts it off; None if it fits."""


class LearnFinding(Frozen):
    """One thing that would keep the model from learning."""

    level: Literal["error", "warning", "info"]
    where: str
    """The config key it concerns."""
    what: str
    fix: str = ""


class MaskCounts(Frozen):
    """What is trained, and what the window cuts off."""

    rows: int
    examples: int
    """Training examples; a template may make several of a row with several answers."""
    tokens: int
    trained_tokens: int
    max_length: int
    lost_tokens: int
    """Tokens behind the window."""
    lost_trained_tokens: int
    cut_examples: int
    """Examples longer than the window."""
    hurt_examples: int
    """Examples that lose trained tokens."""
    untrained_rows: int
    """Rows with no trained token within the window."""
    untrained_ids: tuple[str, ...] = ()
    """Some of them."""
    answers: int
    """Runs of trained tokens, before any cut."""
    closed_answers: int
    """Answers whose end-of-turn token is trained."""
    refused_rows: int = 0
    """Rows that the chat template cannot render; they are in none of the other numbers."""
    marked_rows: int = 0
    """Rows whose own words hold the text of a special token, which the model would take for the real one."""
    doubled_bos: int
    """Examples with more than one token of beginning at their start."""
    unknown_tokens: int
    """Tokens that stand for text the vocabulary lacks."""
    words: int
    """Words of letters in the rows' texts; where a script sets no spaces, a few letters count as a word."""
    word_tokens: int
    """Tokens of these words, without template, digits and punctuation."""
    hard_words: tuple[str, ...] = ()
    """The words cut into the most tokens for their length, such as "sɛn: 6"."""

    @property
    def trained_share(self) -> float:
        """Share of tokens that are trained: the density of the mask."""
        return self.trained_tokens / self.tokens if self.tokens else 0.0

    @property
    def lost_trained_share(self) -> float:
        """Share of trained tokens behind the window."""
        return self.lost_trained_tokens / self.trained_tokens if self.trained_tokens else 0.0

    @property
    def closed_share(self) -> float:
        """Share of answers whose end is trained; 1.0 in a sound run."""
        return self.closed_answers / self.answers if self.answers else 1.0

    @property
    def unknown_share(self) -> float:
        """Share of tokens that stand for text the vocabulary lacks."""
        return self.unknown_tokens / self.tokens if self.tokens else 0.0

    @property
    def tokens_per_word(self) -> float:
        """How many pieces the tokenizer cuts a word into: its fertility."""
        return self.word_tokens / self.words if self.words else 0.0


class RoundTrip(Frozen):
    """Whether tokens lead back to the text they were made of."""

    checked: int
    """Rows."""
    text_failures: int
    """Rows whose decoded tokens are not the text that the template rendered."""
    answer_failures: int
    """Rows whose trained tokens are not exactly the answers and their ends."""
    prompt_failures: int
    """Rows whose serving prompt is not how a training example starts."""
    first: str = ""
    """The first failure, in words."""

    @property
    def failures(self) -> int:
        """All failures."""
        return self.text_failures + self.answer_failures + self.prompt_failures


class OverfitReport(Frozen):
    """Whether the model can learn one batch by heart."""

    verdict: Literal["learned", "slow", "not learned", "undecided", "skipped"]
    """slow: only at ten times the learning rate. undecided: the time was up while the loss still fell."""
    reason: str = ""
    """Why it was skipped, or did not learn."""
    loss_before: float | None = None
    """Mean loss per trained token, nats."""
    loss_after: float | None = None
    """None if it was no number."""
    steps: int = 0
    examples: int = 0
    seconds: float = 0.0
    learning_rate: float | None = None
    """The rate of the losses below: the configured one, or ten times that if it was too slow."""
    trainable_parameters: int = 0
    losses: tuple[float, ...] = ()
    """Loss of every step."""

    @property
    def ratio(self) -> float | None:
        """Loss after over loss before."""
        if self.loss_before is None or self.loss_after is None or self.loss_before == 0:
            return None
        return self.loss_after / self.loss_before


class LearnReport(Frozen):
    """Everything a look at the tokens found."""

    sampled: int
    """Rows looked at."""
    of_rows: int | None
    """Rows there are; None where they were not counted."""
    model: str = ""
    """The base model's name or folder."""
    counts: MaskCounts
    lengths: LengthProfile
    """Tokens of the examples, before any cut."""
    p99: int
    """Ninety-nine of a hundred examples have at most so many tokens."""
    suggested_max_length: int
    """``p99``, rounded up to a multiple of 64, at least 256."""
    round_trip: RoundTrip
    examples: tuple[MaskedExample, ...]
    findings: tuple[LearnFinding, ...]
    """The gravest first."""
    overfit: OverfitReport | None = None
    """None if it was not asked for."""

    @property
    def errors(self) -> tuple[LearnFinding, ...]:
        """Findings that make training pointless."""
        return tuple(finding for finding in self.findings if finding.level == "error")
