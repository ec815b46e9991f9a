"""How different sampled answers to the same question are, and how often one of them is right."""

import itertools
import math
import statistics
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

from core.errors import ConfigError, DataError
from core.evaluation.attempts import COLLAPSE, collapse_point, no_collapse, pass_at_k, tries, usq_at_k
from core.evaluation.config import EvaluationConfig
from core.evaluation.graders import words
from core.evaluation.metrics import sample_metric
from core.evaluation.questions import Question
from core.evaluation.reports import Diversity, SeedSpread
from core.evaluation.responders import Message, Responder, Sampler, Tick

NGRAMS = (1, 2, 3)
PASS_AT = (1, 5, 10)
"""Numbers of tries that are kept by question and by seed; the number of samples is too."""
TOO_SHORT = "no answer has so many words"
Grade = Callable[[Question, str], float]
"""How good an answer is, from 0 to 1; 1 is right."""


class SentenceEncoder(Protocol):
    """Anything that says how far apart texts are."""

    def mean_distance(self, texts: Sequence[str]) -> float:
        """Return the mean of 1 - cosine over all pairs of texts."""
        ...


class _Drawn(NamedTuple):
    """What the answers of one seed are like."""

    figures: dict[str, tuple[float | None, ...]]
    """By name, one number per question; None where there is nothing to count."""
    type_token_ratio: float | None


def sampled_diversity(
    responder: Responder,
    questions: Sequence[Question],
    grade: Grade,
    config: EvaluationConfig,
    *,
    ask: Callable[[list[Message]], list[Message]] = list,
    encoder: SentenceEncoder | None = None,
    tick: Tick = lambda done, total: None,
) -> Diversity:
    """Sample several answers to the first questions, with every seed anew, and measure them.

    Args:
        responder: The model.
        questions: Test questions.
        grade: Scores an answer; see ``core.evaluation.metrics.answer_grader``.
        config: Samples, questions, temperature, nucleus and seeds; longest answer.
        ask: Turns a question's conversation into what the model is given.
        encoder: For semantic distance; None leaves it out.
        tick: Progress listener.

    Raises:
        ConfigError: If the responder cannot sample.
        DataError: If there is no question, or a grader fails on an answer.
    """
    settings = config.diversity
    chosen = [question for question in questions if question.messages][: settings.questions]
    if not isinstance(responder, Sampler):
        raise ConfigError(
            f"{type(responder).__name__} cannot sample", where="evaluation.diversity", fix="set samples: 0"
        )
    if not chosen or settings.samples < 1:
        raise DataError("there is nothing to sample", where="evaluation.diversity", fix="set samples: 0")
    prompts = [ask(question.messages) for question in chosen]
    seeds = settings.seeds or (config.seed,)
    drawn = []
    for turn, seed in enumerate(seeds):
        groups = responder.sample(
            prompts,
            settings.samples,
            temperature=settings.temperature,
            top_p=settings.top_p,
            seed=seed,
            max_new_tokens=config.max_new_tokens,
            tick=_later(tick, turn, len(seeds)),
        )
        texts = [[answer.text for answer in group] for group in groups]
        scores = [
            [grade(question, text) for text in group] for question, group in zip(chosen, texts, strict=True)
        ]
        drawn.append(_described(texts, scores, encoder))
    return _report(drawn, [question.id for question in chosen], seeds, config)


def _later(tick: Tick, turn: int, turns: int) -> Tick:
    return lambda done, total: tick(turn * total + done, turns * total)


def _described(
    groups: Sequence[Sequence[str]], scores: Sequence[Sequence[float]], encoder: SentenceEncoder | None
) -> _Drawn:
    tokens = [[words(text) for text in group] for group in groups]
    samples = len(groups[0])
    rights = [sum(score >= 1 for score in group) for group in scores]
    figures: dict[str, tuple[float | None, ...]] = {
        "self_bleu": tuple(self_bleu(group) for group in tokens),
        **{f"distinct_{n}": tuple(distinct(group, n) for group in tokens) for n in NGRAMS},
        "mean_words": tuple(_mean([len(text) for text in group]) for group in tokens),
    }
    if encoder:
        figures["semantic"] = tuple(encoder.mean_distance(group) for group in groups)
    for k in range(1, samples + 1):
        figures[f"pass_at_{k}"] = tuple(pass_at_k(samples, right, k) for right in rights)
        figures[f"usq_at_{k}"] = tuple(usq_at_k(group, k) for group in scores)
    return _Drawn(figures, type_token_ratio(tokens))


def _report(
    drawn: Sequence[_Drawn], ids: Sequence[str], seeds: Sequence[int], config: EvaluationConfig
) -> Diversity:
    """Average over seeds; the questions keep a number each, so that models can be compared in pairs."""
    settings, names = config.diversity, drawn[0].figures
    by_question = {name: _over_seeds([one.figures[name] for one in drawn]) for name in names}
    by_seed = {name: [_known_mean(one.figures[name]) for one in drawn] for name in names}
    by_seed["type_token_ratio"] = [one.type_token_ratio for one in drawn]
    means = {name: mean for name, values in by_seed.items() if (mean := _known_mean(values)) is not None}
    passed, best = (
        [means[f"{what}_at_{k}"] for k in range(1, settings.samples + 1)] for what in ("pass", "usq")
    )
    shown = sorted({*(k for k in PASS_AT if k < settings.samples), settings.samples})
    kept = [name for name in by_seed if _is_kept(name, shown)]
    absent = {name: TOO_SHORT for name in by_seed if name not in means}
    point = collapse_point(passed)
    return Diversity(
        questions=len(ids),
        samples=settings.samples,
        temperature=settings.temperature,
        top_p=settings.top_p,
        seeds=tuple(seeds),
        metric=sample_metric(config),
        self_bleu=means["self_bleu"],
        distinct={n: means[f"distinct_{n}"] for n in NGRAMS if f"distinct_{n}" in means},
        type_token_ratio=means.get("type_token_ratio"),
        semantic=means.get("semantic"),
        mean_words=means["mean_words"],
        pass_at={k: passed[k - 1] for k in shown},
        tries=tries(passed, best),
        collapse_point=point,
        collapse_below=COLLAPSE,
        spread={name: _spread(whole) for name in kept if (whole := _whole(by_seed[name]))},
        ids=tuple(ids),
        by_question={
            name: whole for name in kept if name in by_question and (whole := _whole(by_question[name]))
        },
        absent=absent | ({} if point else {"collapse_point": no_collapse(passed)}),
    )


def _is_kept(name: str, shown: Sequence[int]) -> bool:
    """Tell a figure that is kept by question from those that only a curve needs."""
    what, _, k = name.rpartition("_at_")
    return not what or int(k) in shown


def _over_seeds(runs: Sequence[Sequence[float | None]]) -> tuple[float | None, ...]:
    return tuple(_known_mean(values) for values in zip(*runs, strict=True))


def _known_mean(values: Sequence[float | None]) -> float | None:
    """Average what there is: a question without any n-gram says nothing about how many of them differ."""
    known = [value for value in values if value is not None]
    return _mean(known) if known else None


def _whole(values: Sequence[float | None]) -> tuple[float, ...]:
    """Return the values if none is missing, else nothing."""
    known = tuple(value for value in values if value is not None)
    return known if len(known) == len(values) else ()


def _spread(values: Sequence[float]) -> SeedSpread:
    if len(values) > 1:
        return SeedSpread(values=tuple(values), deviation=statistics.stdev(values))
    return SeedSpread(values=tuple(values), deviation=None, absent={"deviation": "there is one seed"})


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


def distinct(answers: Sequence[Sequence[str]], n: int) -> float | None:
    """Return the share of different n-grams among all n-grams of the answers (arXiv:1510.03055).

    Answers pooled per question. None if no answer has n words: nothing is no share of nothing.
    """
    grams = [gram for answer in answers for gram in _ngrams(answer, n)]
    return len(set(grams)) / len(grams) if grams else None


def type_token_ratio(groups: Sequence[Sequence[Sequence[str]]]) -> float | None:
    """Return different words over all words, of all answers to all questions together; None without a word."""
    flat = [word for group in groups for answer in group for word in answer]
    return len(set(flat)) / len(flat) if flat else None


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
