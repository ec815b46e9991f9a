"""The mask of a training example as the page draws it, token by token."""

import itertools
from collections.abc import Iterator
from typing import NamedTuple

from core.data.learning_reports import LearnReport, MaskedExample, Token
from tasks.report.charts import Curve, loss_chart

SIGNS = str.maketrans({"\n": "↵\n", "\r": "␍", "\t": "⇥\t", "\0": "␀"})
"""Characters that would not be seen."""
PART = "◦"
"""Stands for a token that ends inside a character and spells nothing by itself."""


class TokenView(NamedTuple):
    """One token as it is written."""

    text: str
    id: int
    special: bool


class Run(NamedTuple):
    """Neighbouring tokens with one fate; or a gap, which has none."""

    trained: bool
    lost: bool
    """Behind the window: training cuts it off."""
    tokens: tuple[TokenView, ...]
    omitted: int = 0


class ExampleView(NamedTuple):
    """One example."""

    label: str
    id: str
    n_tokens: int
    n_trained: int
    n_lost: int
    """Shown tokens behind the window."""
    runs: tuple[Run, ...]

    @property
    def kinds(self) -> tuple[bool, bool, bool]:
        """Whether it has trained, special and lost tokens, for the legend."""
        special = any(token.special for run in self.runs for token in run.tokens)
        return any(run.trained for run in self.runs), special, any(run.lost for run in self.runs)


class LearningView(NamedTuple):
    """The section."""

    examples: tuple[ExampleView, ...]
    overfit: Curve | None


def learning_view(report: LearnReport) -> LearningView:
    """Prepare the examples and the curve of the one-batch run."""
    losses = report.overfit.losses if report.overfit else ()
    return LearningView(
        examples=tuple(example_view(example) for example in report.examples),
        overfit=loss_chart(list(enumerate(losses, 1)), []) if len(losses) > 1 else None,
    )


def example_view(example: MaskedExample) -> ExampleView:
    """Group the tokens of an example into runs of one fate."""
    runs = tuple(_runs(example))
    return ExampleView(
        label=example.label,
        id=example.id,
        n_tokens=example.n_tokens,
        n_trained=example.n_trained,
        n_lost=sum(len(run.tokens) for run in runs if run.lost),
        runs=runs,
    )


def _runs(example: MaskedExample) -> Iterator[Run]:
    lost_from = len(example.tokens) if example.lost_from is None else example.lost_from
    gap_at = example.omitted_at if example.omitted else None
    places = enumerate(example.tokens)
    for (_, trained, lost), group in itertools.groupby(
        places,
        lambda place: (gap_at is not None and place[0] >= gap_at, place[1].trained, place[0] >= lost_from),
    ):
        members = list(group)
        if members[0][0] == gap_at:
            yield Run(False, False, (), example.omitted)
        yield Run(trained, lost, tuple(_shown(token) for _, token in members))
    if gap_at is not None and gap_at >= len(example.tokens):
        yield Run(False, False, (), example.omitted)


def _shown(token: Token) -> TokenView:
    return TokenView(token.text.translate(SIGNS) or PART, token.id, token.special)
