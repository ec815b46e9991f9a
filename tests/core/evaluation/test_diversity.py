"""Diversity against closed forms and enumeration."""

import math
from pathlib import Path

import pytest

from core.errors import ConfigError, DataError
from core.evaluation.config import DiversityConfig, EvaluationConfig
from core.evaluation.diversity import (
    distinct,
    pareto_front,
    sampled_diversity,
    self_bleu,
    type_token_ratio,
)
from core.evaluation.metrics import answer_grader
from core.evaluation.questions import Question
from core.evaluation.responders import Answer


def test_pareto_front():
    assert pareto_front([(1, 1), (2, 2), (3, 0.5)]) == [False, True, True]
    assert pareto_front([(1, 1), (1, 1), (1, 0)]) == [True, True, False]
    assert pareto_front([(2, 0), (1, 1), (0, 2), (1, 0)]) == [True, True, True, False]
    assert pareto_front([]) == []


@pytest.mark.parametrize(
    ("answers", "value"),
    [
        (["a b c d e", "a b c d e"], 1.0),
        (["a b c d", "w x y z"], 0.0),
        (["one", "one", "one"], 1.0),
        ([], 1.0),
        (["alone here"], 1.0),
        (["", ""], 1.0),
        (["", "a"], 0.0),
        # Unigrams 2 of 3, bigrams (1 + 1) of (2 + 1), trigrams (0 + 1) of (1 + 1); both directions alike.
        (["a b c", "a b d"], (2 / 3 * 2 / 3 * 1 / 2) ** (1 / 3)),
        # The short one is all there, but for brevity exp(1 - 4/2); the long one 2/4, 2/4, 1/3, 1/2.
        (["a b", "a b c d"], (math.exp(-1) + (2 / 4 * 2 / 4 * 1 / 3 * 1 / 2) ** 0.25) / 2),
        # Clipped: only one of three counts.
        (["a a a", "a b c"], ((1 / 3 * 1 / 3 * 1 / 2) ** (1 / 3) + (1 / 3 * 1 / 3 * 1 / 2) ** (1 / 3)) / 2),
    ],
)
def test_self_bleu_by_hand(answers, value):
    assert self_bleu([answer.split() for answer in answers]) == pytest.approx(value)


def test_self_bleu_agrees_with_sacrebleu_where_no_smoothing_matters():
    from sacrebleu.metrics import BLEU

    answers = ["the cat sat on the mat today", "the cat sat on the mat", "a cat sat on the mat today at noon"]
    bleu = BLEU(smooth_method="add-k", smooth_value=1, tokenize="none", effective_order=True)
    expected = [
        bleu.sentence_score(answer, [*answers[:i], *answers[i + 1 :]]).score / 100
        for i, answer in enumerate(answers)
    ]
    assert self_bleu([a.split() for a in answers]) == pytest.approx(sum(expected) / 3)


def test_distinct_and_type_token_ratio_by_hand():
    answers = [["a", "b", "a", "b"], ["a", "b", "c"]]
    assert distinct(answers, 1) == pytest.approx(3 / 7)
    assert distinct(answers, 2) == pytest.approx(3 / 5)
    assert distinct(answers, 3) == pytest.approx(3 / 3)
    assert distinct([["a"]], 2) is None and distinct([[], []], 1) is None
    assert type_token_ratio([[[], []]]) is None
    assert type_token_ratio([answers, [["a", "x"]]]) == pytest.approx(4 / 9)


class Draws:
    """Says right, wrong, right, wrong, and so on."""

    def answer(self, prompts, max_new_tokens, tick):
        raise AssertionError

    def sample(self, prompts, n, *, temperature, top_p, seed, max_new_tokens, tick):
        self.asked = (len(prompts), n, temperature, top_p, seed, max_new_tokens)
        return [[Answer("yes it is" if i % 2 == 0 else "no", [1], 2) for i in range(n)] for _ in prompts]


class Lengths:
    """Distance of texts by their lengths."""

    def mean_distance(self, texts):
        return float(len(set(map(len, texts))) - 1)


def questions(count: int) -> list[Question]:
    return [Question(f"q{i}", [{"role": "user", "content": "?"}], "yes it is", {}) for i in range(count)]


def test_sampled_answers_are_measured_together():
    config = EvaluationConfig(diversity=DiversityConfig(samples=6, questions=2), max_new_tokens=9, seed=4)
    responder = Draws()
    found = sampled_diversity(
        responder, questions(5), answer_grader(config, Path()), config, encoder=Lengths()
    )
    assert responder.asked == (2, 6, 0.7, 0.9, 4, 9)
    assert (found.questions, found.samples) == (2, 6)
    assert found.pass_at == {1: pytest.approx(0.5), 5: 1.0, 6: 1.0}
    assert found.mean_words == 2.0
    assert found.distinct[1] == pytest.approx(4 / 12)
    assert found.type_token_ratio == pytest.approx(4 / 24)
    assert found.self_bleu == 1.0
    assert found.semantic == 1.0
    assert (found.seeds, found.metric, found.ids) == ((4,), "exact_match", ("q0", "q1"))
    assert [one.k for one in found.tries] == [1, 2, 3, 4, 5, 6]
    # Three of six are right: 1 - C(3, k) / C(6, k).
    assert [one.pass_at for one in found.tries] == pytest.approx([0.5, 0.8, 0.95, 1, 1, 1])
    assert found.collapse_point == 4
    assert found.by_question["pass_at_5"] == (1.0, 1.0) and "pass_at_2" not in found.by_question
    assert found.spread["self_bleu"].deviation is None and found.spread["self_bleu"].values == (1.0,)
    assert sampled_diversity(responder, questions(1), lambda q, text: 1.0, config).semantic is None


def test_what_cannot_be_sampled_raises():
    class Mute:
        def answer(self, prompts, max_new_tokens, tick):
            return []

    config = EvaluationConfig(diversity=DiversityConfig(samples=2))
    with pytest.raises(ConfigError, match="Mute cannot sample"):
        sampled_diversity(Mute(), questions(1), lambda q, text: 1.0, config)
    with pytest.raises(DataError, match="nothing to sample"):
        sampled_diversity(Draws(), [Question("t", [], "text", {})], lambda q, text: 1.0, config)
    with pytest.raises(DataError, match="nothing to sample"):
        sampled_diversity(Draws(), questions(1), lambda q, text: 1.0, EvaluationConfig())


def test_samples_are_asked_for_in_the_words_of_the_arm():
    class Listens(Draws):
        def sample(self, prompts, n, **settings):
            self.heard = prompts
            return super().sample(prompts, n, **settings)

    config, responder = EvaluationConfig(diversity=DiversityConfig(samples=1)), Listens()
    system = {"role": "system", "content": "Be short."}
    sampled_diversity(
        responder, questions(1), lambda q, text: 1.0, config, ask=lambda turns: [system, *turns]
    )
    assert responder.heard == [[system, {"role": "user", "content": "?"}]]


class Luck(Draws):
    """With the seed 1 every answer is right, with 2 none, with 3 half a word is."""

    seeds: list[int]

    def sample(self, prompts, n, *, temperature, top_p, seed, max_new_tokens, tick):
        self.seeds.append(seed)
        tick(len(prompts), len(prompts))
        said = {1: "yes it is", 2: "no", 3: "yes is it"}[seed]
        return [[Answer(said, [1], 2)] * n for _ in prompts]


def test_seeds_are_averaged_and_their_spread_is_kept():
    settings = DiversityConfig(samples=2, questions=3, seeds=(1, 2, 3))
    config = EvaluationConfig(diversity=settings, primary_metric="token_f1", metrics=("token_f1",))
    responder, told = Luck(), []
    responder.seeds = []
    found = sampled_diversity(
        responder,
        questions(3),
        answer_grader(config, Path()),
        config,
        tick=lambda done, total: told.append((done, total)),
    )
    assert responder.seeds == [1, 2, 3] == list(found.seeds)
    assert told == [(3, 9), (6, 9), (9, 9)]
    # Every word counts towards F1, whatever its place: seed 3 is right as well.
    assert found.pass_at[1] == pytest.approx(2 / 3)
    assert found.spread["pass_at_1"].values == pytest.approx((1, 0, 1))
    assert found.spread["pass_at_1"].deviation == pytest.approx((1 / 3) ** 0.5)
    assert found.mean_words == pytest.approx(7 / 3)
    assert found.by_question["pass_at_1"] == pytest.approx((2 / 3,) * 3)


def test_answers_too_short_for_a_figure_leave_it_out_with_the_reason():
    class Short(Draws):
        def sample(self, prompts, n, **settings):
            said = ["one two", "", "three four five"]
            return [[Answer(said[place], [1], 1)] * n for place, _ in enumerate(prompts)]

    config = EvaluationConfig(diversity=DiversityConfig(samples=2, questions=2))
    found = sampled_diversity(Short(), questions(2), lambda q, text: 0.0, config)
    # Of two questions one has words: the other says nothing about how many of them differ.
    assert found.distinct == {1: 0.5, 2: 0.5}
    assert found.absent == {
        "distinct_3": "no answer has so many words",
        "collapse_point": "no answer was right",
    }
    assert "distinct_1" not in found.by_question and set(found.spread) >= {"distinct_1", "distinct_2"}
    assert "distinct_3" not in found.spread
    settings = DiversityConfig(samples=2, questions=3)
    found = sampled_diversity(
        Short(), questions(3), lambda q, text: 0.0, config.model_copy(update={"diversity": settings})
    )
    assert found.distinct[3] == 0.5 and set(found.absent) == {"collapse_point"}


@pytest.mark.parametrize(
    ("samples", "kept"), [(1, [1]), (2, [1, 2]), (4, [1, 4]), (5, [1, 5]), (12, [1, 5, 10, 12])]
)
def test_what_all_samples_are_worth_is_kept_by_question_and_by_seed(samples: int, kept: list[int]):
    config = EvaluationConfig(diversity=DiversityConfig(samples=samples, questions=3, seeds=(1, 2)))
    found = sampled_diversity(Draws(), questions(3), answer_grader(config, Path()), config)
    assert list(found.pass_at) == kept
    for named in (found.by_question, found.spread):
        assert [name for name in named if name.startswith("pass_at_")] == [f"pass_at_{k}" for k in kept]
        assert [name for name in named if name.startswith("usq_at_")] == [f"usq_at_{k}" for k in kept]
    assert len(found.tries) == samples


def test_the_best_of_k_uses_the_grade_and_not_right_or_wrong():
    config = EvaluationConfig(diversity=DiversityConfig(samples=2, questions=1), primary_metric="token_f1")

    class Halves(Draws):
        def sample(self, prompts, n, **settings):
            return [[Answer("yes it was", [1], 2), Answer("no", [1], 1)]]

    found = sampled_diversity(Halves(), questions(1), answer_grader(config, Path()), config)
    assert [one.usq_at for one in found.tries] == pytest.approx([1 / 3, 2 / 3])
    assert [one.pass_at for one in found.tries] == [0, 0]
    assert found.tries[1].der is None


def test_the_same_seed_twice_is_refused():
    with pytest.raises(ValueError, match="name each once"):
        DiversityConfig(seeds=(42, 123, 42))
