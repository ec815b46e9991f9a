"""How different sampled answers to the same question are, and how often one of them is right."""

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Protocol

from core.errors import ConfigError, DataError
from core.evaluation.config import EvaluationConfig
from core.evaluation.graders import words
from core.evaluation.questions import Question
from core.evaluation.reports import Diversity
from core.evaluation.responders import Message, Responder, Sampler, Tick

NGRAMS = (1, 2, 3)
PASS_AT = (1, 5, 10)
Right = Callable[[Question, str], bool]
"""Whether an answer is right."""


class SentenceEncoder(Protocol):
    """Anything that says how far apart texts are."""

    def mean_distance(self, texts: Sequence[str]) -> float:
        """Return the mean of 1 - cosine over all pairs of texts."""
        ...


def sampled_diversity(
    responder: Responder,
    questions: Sequence[Question],
    right: Right,
    config: EvaluationConfig,
    *,
    ask: Callable[[list[Message]], list[Message]] = list,
    encoder: SentenceEncoder | None = None,
    tick: Tick = lambda done, total: None,
) -> Diversity:
    """Sample several answers to the first questions, and measure them.

    Args:
        responder: The model.
        questions: Test questions.
        right: Tells a right answer.
        config: Samples, questions, temperature and nucleus; longest answer; seed.
        ask: Turns a question's conversation into what the model is given.
        encoder: For semantic distance; None leaves it out.
        tick: Progress listener.

    Raises:
        ConfigError: If the responder cannot sample.
        DataError: If there is no question.
    """
    settings = config.diversity
    chosen = [question for question in questions if question.messages][: settings.questions]
    if not isinstance(responder, Sampler):
        raise ConfigError(
            f"{type(responder).__name__} cannot sample", where="evaluation.diversity", fix="set samples: 0"
        )
    if not chosen or settings.samples < 1:
        raise DataError("there is nothing to sample", where="evaluation.diversity", fix="set samples: 0")
    drawn = responder.sample(
        [ask(question.messages) for question in chosen],
        settings.samples,
        temperature=settings.temperature,
        top_p=settings.top_p,
        seed=config.seed,
        max_new_tokens=config.max_new_tokens,
        tick=tick,
    )
    groups = [[answer.text for answer in group] for group in drawn]
    hits = [
        sum(right(question, text) for text in group) for question, group in zip(chosen, groups, strict=True)
    ]
    return _described(groups, hits, config, encoder)


def _described(
    groups: Sequence[Sequence[str]],
    hits: Sequence[int],
    config: EvaluationConfig,
    encoder: SentenceEncoder | None,
) -> Diversity:
    settings = config.diversity
    tokens = [[words(text) for text in group] for group in groups]
    semantic = _mean([encoder.mean_distance(group) for group in groups]) if encoder else None
    ks = [k for k in PASS_AT if k <= settings.samples]
    return Diversity(
        questions=len(groups),
        samples=settings.samples,
        temperature=settings.temperature,
        top_p=settings.top_p,
        self_bleu=_mean([self_bleu(group) for group in tokens]),
        distinct={n: _mean([distinct(group, n) for group in tokens]) for n in NGRAMS},
        type_token_ratio=type_token_ratio(tokens),
        semantic=semantic,
        mean_words=_mean([float(len(text)) for group in tokens for text in group]),
        pass_at={k: _mean([pass_at_k(settings.samples, right, k) for right in hits]) for k in ks},
    )


def self_bleu(answers: Sequence[Sequence[str]], order: int = 4) -> float:
    """Return the mean BLEU of each answer against its siblings as references (arXiv:1802.01886).

    Clipped n-gram precisions up to ``order``, or up to the answer's length if it is shorter, with one added
    to numerator and denominator above unigrams (Lin and Och 2004), and the brevity penalty against the
    sibling of nearest length. An answer alone is its own copy: 1. Two empty answers are equal: 1.
    """
    if len(answers) < 2:
        return 1.0
    return _mean([
        _bleu(answer, [*answers[:i], *answers[i + 1 :]], order) for i, answer in enumerate(answers)
    ])  # fmt: skip


def distinct(answers: Sequence[Sequence[str]], n: int) -> float:
    """Return the share of different n-grams among all n-grams of the answers (arXiv:1510.03055).

    Answers pooled per question. With no n-gram at all, as among empty answers, 0.
    """
    grams = [gram for answer in answers for gram in _ngrams(answer, n)]
    return len(set(grams)) / len(grams) if grams else 0.0


def type_token_ratio(groups: Sequence[Sequence[Sequence[str]]]) -> float:
    """Return different words over all words, of all answers to all questions together."""
    flat = [word for group in groups for answer in group for word in answer]
    return len(set(flat)) / len(flat) if flat else 0.0


def pass_at_k(n: int, right: int, k: int) -> float:
    """Return the chance that k of n answers, drawn without replacement, hold a right one.

    1 - C(n - c, k) / C(n, k): unbiased, unlike looking at the first k (arXiv:2107.03374, eq. 1).

    Args:
        n: Answers.
        right: How many of them are right, c.
        k: How many are drawn.

    Raises:
        ValueError: Unless 0 <= right <= n and 1 <= k <= n.
    """
    if not (0 <= right <= n and 1 <= k <= n):
        raise ValueError(f"pass@{k} is undefined for {right} right of {n}")
    return 1 - math.comb(n - right, k) / math.comb(n, k)


def pareto_front(points: Sequence[Sequence[float]]) -> list[bool]:
    """Tell of each point whether no other is at least as good in everything and better in something.

    More is better in every coordinate. Equal points do not dominate each other.
    """
    return [not any(_dominates(other, point) for other in points) for point in points]


def _dominates(left: Sequence[float], right: Sequence[float]) -> bool:
    pairs = list(zip(left, right, strict=True))
    return all(a >= b for a, b in pairs) and any(a > b for a, b in pairs)


def _bleu(answer: Sequence[str], siblings: Sequence[Sequence[str]], order: int) -> float:
    if not answer:
        return float(any(not sibling for sibling in siblings))
    logs = [math.log(p) if p else -math.inf for p in _precisions(answer, siblings, order)]
    nearest = min((len(s) for s in siblings), key=lambda size: (abs(size - len(answer)), size))
    brevity = min(0.0, 1 - nearest / len(answer))
    return math.exp(brevity + sum(logs) / len(logs))


def _precisions(answer: Sequence[str], siblings: Sequence[Sequence[str]], order: int) -> list[float]:
    found = []
    for n in range(1, min(order, len(answer)) + 1):
        own = _counted(_ngrams(answer, n))
        others = [_counted(_ngrams(sibling, n)) for sibling in siblings]
        hits = sum(min(count, max(o.get(gram, 0) for o in others)) for gram, count in own.items())
        extra = int(n > 1)
        found.append((hits + extra) / (sum(own.values()) + extra))
    return found


def _ngrams(tokens: Sequence[str], n: int) -> list[tuple[str, ...]]:
    return list(zip(*(itertools.islice(tokens, i, None) for i in range(n)), strict=False))


def _counted(grams: Sequence[tuple[str, ...]]) -> dict[tuple[str, ...], int]:
    counts: dict[tuple[str, ...], int] = {}
    for gram in grams:
        counts[gram] = counts.get(gram, 0) + 1
    return counts


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)
