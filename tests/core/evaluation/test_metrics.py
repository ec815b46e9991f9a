"""Metrics of every kind through ``evaluate``: values, intervals, and failures that raise."""

import math
from pathlib import Path

import pytest

from core.artifacts import fingerprint, write_jsonl
from core.errors import ConfigError, DataError
from core.evaluation.aggregate import aggregate
from core.evaluation.config import ROW_FIELDS, EvaluationConfig, GraderConfig
from core.evaluation.evaluate import evaluate
from core.evaluation.metrics import Tools, answer_grader, check_metrics, sample_metric, wanted
from core.evaluation.questions import Question, read_questions
from core.evaluation.responders import Answer, Scored
from core.evaluation.subgroups import OTHER

TOPICS = ["sums"] * 12 + ["words"] * 6 + ["rare"] * 2
ROWS = [
    {
        "id": f"r{i}",
        "conversations": [
            {"role": "user", "content": f"{i}"},
            {"role": "assistant", "content": f"{i} is it"},
        ],
        "metadata": {"topic": topic, "tags": ["a", "b"] if i % 2 else ["a"], "n": i},
    }
    for i, topic in enumerate(TOPICS)
]
TEXTS = [{"id": f"t{i}", "text": "word " * (i + 1), "metadata": {}} for i in range(6)]


class Answers:
    """Right for even numbers, empty for multiples of five."""

    def answer(self, prompts, max_new_tokens, tick):
        numbers = [int(p[-1]["content"]) for p in prompts]
        texts = ["" if n % 5 == 0 else f"{n} is it" if n % 2 == 0 else f"{n + 1}" for n in numbers]
        return [Answer(text, [1, n], 2) for n, text in zip(numbers, texts, strict=True)]


class Scores(Answers):
    """Also tells likelihoods: the number of letters asked, over as many tokens as the answer has words."""

    def score(self, prompts, references, tick):
        self.asked = list(prompts)
        return [
            Scored(len(r["content"]) / 10, len(r["content"].split()))
            for p, r in zip(prompts, references, strict=True)
        ]


def run(rows, tmp_path: Path, responder=None, tools=None, ask=list, **settings):
    write_jsonl(tmp_path / "test.jsonl", rows)
    config = EvaluationConfig(resamples=1000, **settings)
    clock = iter([0.0, 4.0])
    return evaluate(
        responder or Answers(), tmp_path / "test.jsonl", config, arm="tuned", model_digest="sha256:m",
        clock=lambda: next(clock), tick=lambda done, total: None, ask=ask, tools=tools or Tools(base=tmp_path),
    )  # fmt: skip


def test_every_text_metric_is_computed_and_the_primary_one_always(tmp_path: Path):
    metrics = ("rouge_l", "chrf", "numeric", "json_valid", "exact_match")
    report = run(ROWS, tmp_path, metrics=metrics, primary_metric="token_f1").report
    assert set(report.metrics) == {*metrics, "token_f1"}
    assert report.value == report.metrics["token_f1"].value
    assert report.scores["rouge_l"][2] == 1.0 and report.scores["numeric"][3] == 0.0
    # An empty answer is a legitimate zero.
    assert all(report.scores[name][5] == 0.0 for name in metrics)
    assert all(0 <= m.low <= m.value <= m.high <= 1 for m in report.metrics.values())
    assert wanted(EvaluationConfig()) == ("exact_match", "token_f1")


def test_a_failing_metric_raises_with_its_name_and_the_example(tmp_path: Path):
    rows = [
        *ROWS[:3],
        {**ROWS[3], "conversations": [ROWS[3]["conversations"][0], {"role": "assistant", "content": "x"}]},
    ]
    with pytest.raises(DataError, match=r"metric numeric, example r3: .*no number"):
        run(rows, tmp_path, metrics=("numeric",), primary_metric="numeric")


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("1 / 0", "ZeroDivisionError"), ("2", "gave 2,"), ("-0.1", "gave -0.1"), ("float('nan')", "gave nan"),
        ("'1'", "gave '1'"), ("None", "gave None"),
        ("__import__('numpy').float32('nan')", "gave .*nan"), ("10 ** 400", "gave 1000"), ("1j", "gave 1j"),
        ("__import__('numpy').float64(1.5)", "gave .*1.5"), ("__import__('sys').exit(3)", "SystemExit: 3"),
    ],
)  # fmt: skip
def test_a_grader_of_the_users_own_that_fails_is_no_zero(tmp_path: Path, body: str, message: str):
    source = f"def grade(answer, reference, metadata):\n    return {body} if metadata['n'] == 7 else True\n"
    (tmp_path / "my.py").write_text(source)
    graders = {"mine": GraderConfig(type="callable", path="my.py:grade")}
    with pytest.raises(DataError, match=f"metric mine, example r7: .*{message}"):
        run(ROWS, tmp_path, graders=graders, metrics=("mine",), primary_metric="mine")


def test_own_graders_are_metrics_like_any_other(tmp_path: Path):
    graders = {"digits": GraderConfig(type="regex", pattern=r"^\d+$")}
    result = run(ROWS, tmp_path, graders=graders, metrics=("exact_match",), primary_metric="digits")
    assert result.report.scores["digits"][:6] == (0, 1, 0, 1, 0, 0)
    assert result.rows[1]["digits"] == 1.0


def test_perplexity_weighs_examples_by_their_tokens(tmp_path: Path):
    responder = Scores()
    report = run(
        ROWS, tmp_path, responder, metrics=("exact_match", "perplexity"), primary_metric="perplexity"
    ).report
    losses, tokens = report.scores["perplexity"], report.weights["perplexity"]
    total = sum(loss * count for loss, count in zip(losses, tokens, strict=True))
    assert report.value == pytest.approx(math.exp(total / sum(tokens)))
    assert report.metrics["perplexity"].low < report.value < report.metrics["perplexity"].high
    assert tokens == (3.0,) * 20 and set(report.weights) == {"perplexity"}
    assert len(report.scores["exact_match"]) == 20


def test_perplexity_sees_what_the_arm_asks(tmp_path: Path):
    responder = Scores()
    before = [{"role": "system", "content": "Be short."}]
    run(
        ROWS,
        tmp_path,
        responder,
        ask=lambda m: [*before, *m],
        metrics=("perplexity",),
        primary_metric="perplexity",
    )
    assert responder.asked[0] == [*before, ROWS[0]["conversations"][0]]


def test_a_responder_without_likelihoods_matters_only_to_perplexity(tmp_path: Path):
    assert run(ROWS, tmp_path).report.n == 20
    with pytest.raises(ConfigError, match="Answers cannot tell likelihoods"):
        run(ROWS, tmp_path, metrics=("perplexity",))


def test_a_loss_that_is_no_number_raises(tmp_path: Path):
    class Broken(Scores):
        def score(self, prompts, references, tick):
            good = super().score(prompts, references, tick)
            return [*good[:4], Scored(math.nan, 3), *good[5:]]

    with pytest.raises(DataError, match="metric perplexity, example r4"):
        run(ROWS, tmp_path, Broken(), metrics=("perplexity",), primary_metric="perplexity")


def test_plain_text_alone_can_be_judged_by_perplexity_and_by_nothing_else(tmp_path: Path):
    result = run(TEXTS, tmp_path, Scores(), metrics=("perplexity",), primary_metric="perplexity")
    assert result.report.n == 6
    assert result.report.weights["perplexity"] == (1, 2, 3, 4, 5, 6)
    assert result.report.decoding.strategy == "none"
    assert result.rows[0]["reference"].startswith("word") and result.rows[0]["question"] == ""
    for metrics in (("exact_match",), ("exact_match", "perplexity")):
        with pytest.raises(DataError, match="primary_metric: perplexity"):
            run(TEXTS, tmp_path, Scores(), metrics=metrics, primary_metric="perplexity")


def test_plain_texts_beside_questions_are_passed_over(tmp_path: Path):
    report = run(
        [*TEXTS, *ROWS], tmp_path, Scores(), metrics=("perplexity",), primary_metric="perplexity"
    ).report
    assert report.ids == tuple(row["id"] for row in ROWS)


def test_the_last_turn_is_kept_as_it_stands(tmp_path: Path):
    call = {"role": "assistant", "content": "", "tool_calls": [{"name": "add", "arguments": '{"a": 1}'}]}
    write_jsonl(
        tmp_path / "t.jsonl", [{"id": "x", "conversations": [{"role": "user", "content": "1?"}, call]}]
    )
    question = read_questions(tmp_path / "t.jsonl")[0]
    assert question.turn == call and '"add"' in question.reference


def test_subgroups_have_their_own_values_and_small_ones_are_pooled(tmp_path: Path):
    report = run(ROWS, tmp_path, subgroups=("topic", "tags", "absent"), metrics=("exact_match",)).report
    found = {(g.key, g.name): g for g in report.subgroups}
    assert [(g.key, g.name, g.n) for g in report.subgroups] == [
        ("topic", "sums", 12), ("topic", "words", 6), ("topic", OTHER, 2), ("tags", "a", 20), ("tags", "b", 10),
    ]  # fmt: skip
    scores = report.scores["exact_match"]
    sums = found["topic", "sums"].metrics["exact_match"]
    assert sums.value == pytest.approx(sum(scores[:12]) / 12) and sums.n == 12
    assert sums.low <= sums.value <= sums.high and sums.low < sums.high
    assert found["tags", "b"].metrics["exact_match"].value == pytest.approx(sum(scores[1::2]) / 10)


def test_subgroups_of_perplexity_are_perplexities(tmp_path: Path):
    report = run(ROWS, tmp_path, Scores(), metrics=("perplexity",), primary_metric="perplexity").report
    group = report.subgroups[1]
    config = EvaluationConfig(resamples=1000)
    expected = aggregate("perplexity", report.scores["perplexity"][12:18], config, (3,) * 6)
    assert group.metrics["perplexity"] == expected.value


def test_at_most_twenty_values_of_a_key_have_a_row_of_their_own(tmp_path: Path):
    rows = [{**ROWS[i % 20], "id": f"x{i}", "metadata": {"topic": f"t{i % 25}"}} for i in range(125)]
    groups = run(rows, tmp_path, metrics=("exact_match",)).report.subgroups
    assert len(groups) == 21 and (groups[-1].name, groups[-1].n) == (OTHER, 25)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"metrics": ("similarity",)}, "evaluation.encoder.model"),
        ({"metrics": ("judge",)}, "evaluation.judge.url"),
        ({"metrics": ("similarity",), "encoder": {"model": "./none"}}, "there is no encoder in"),
        ({"metrics": ("similarity",), "encoder": {"model": "/no/such/encoder"}}, "there is no encoder in"),
        ({"graders": {"g": GraderConfig(type="regex")}, "primary_metric": "g"}, "evaluation.graders.g"),
    ],
)
def test_what_a_metric_lacks_is_said_before_any_model_is_loaded(tmp_path: Path, settings, message):
    with pytest.raises(ConfigError, match=message):
        check_metrics(EvaluationConfig(**settings), tmp_path)
    with pytest.raises(ConfigError, match=message):
        run(ROWS, tmp_path, **settings)
    check_metrics(EvaluationConfig(metrics=("perplexity", "chrf")), tmp_path)


def test_samples_are_graded_by_the_primary_metric_if_it_grades_texts(tmp_path: Path):
    question = Question("x", [], "7 pens", {})

    def graded(primary: str, text: str) -> tuple[str, float]:
        config = EvaluationConfig(
            primary_metric=primary, graders={"d": GraderConfig(type="regex", pattern=r"^\d$")}
        )
        return sample_metric(config), answer_grader(config, tmp_path)(question, text)

    assert graded("numeric", "It is 7.") == ("numeric", 1.0)
    assert graded("token_f1", "It is 7.") == ("token_f1", pytest.approx(0.4))
    assert graded("d", "8") == ("d", 1.0)
    assert graded("perplexity", "7 Pens.") == ("exact_match", 1.0)
    assert graded("judge", "8 Pens.") == ("exact_match", 0.0)


@pytest.mark.parametrize("made", ["float32(1)", "float64(1)", "int64(1)", "True_"])
def test_numbers_of_numpy_are_numbers(tmp_path: Path, made: str):
    source = f"import numpy\ndef grade(answer, reference, metadata):\n    return numpy.{made}\n"
    (tmp_path / "my.py").write_text(source)
    graders = {"mine": GraderConfig(type="callable", path="my.py:grade")}
    result = run(ROWS, tmp_path, graders=graders, metrics=("mine",), primary_metric="mine")
    assert set(result.report.scores["mine"]) == {1.0}


def test_an_encoders_folder_is_looked_into_before_anything_is_generated(tmp_path: Path):
    def checked(model: str, **settings) -> None:
        check_metrics(EvaluationConfig(encoder={"model": model}, **settings), tmp_path)

    (tmp_path / "owner" / "encoder").mkdir(parents=True)
    for settings in ({"primary_metric": "similarity"}, {"diversity": {"samples": 2}}):
        for model in ("owner/encoder", "a/b/c", "../none", str(tmp_path / "none")):
            with pytest.raises(ConfigError, match=r"evaluation\.encoder\.model: there is no encoder"):
                checked(model, **settings)
        checked("sentence-transformers/all-MiniLM-L6-v2", **settings)
    checked("../none")
    (tmp_path / "owner" / "encoder" / "config.json").write_text("{}")
    checked("owner/encoder", primary_metric="similarity")


@pytest.mark.parametrize(
    "name", ["id", "question", "messages", "reference", "answer", "prompt_ids", "metadata"]
)
def test_a_grader_may_not_hide_a_field_of_the_rows(tmp_path: Path, name: str):
    with pytest.raises(ValueError, match=f"graders.{name} has the name of a field"):
        EvaluationConfig(graders={name: GraderConfig(type="keywords")})
    assert set(run(ROWS, tmp_path, metrics=("token_f1",)).rows[0]) - {"token_f1", "exact_match"} == ROW_FIELDS


@pytest.mark.parametrize(
    "settings",
    [
        {"judge": {"timeout": 7}}, {"judge": {"parallel": 9}}, {"encoder": {"device": "gpu"}},
        {"encoder": {"model": "/a"}}, {"general": {"path": "/a"}}, {"harness": {"tasks": ("a",)}},
        {"graders": {"g": GraderConfig(type="callable", path="/b:f")}},
    ],
)  # fmt: skip
def test_places_and_speed_are_no_part_of_the_fingerprint(settings):
    plain = {"graders": {"g": GraderConfig(type="callable", path="/a:f")}}
    assert fingerprint(EvaluationConfig(**plain | settings)) == fingerprint(EvaluationConfig(**plain))
    assert fingerprint(EvaluationConfig(judge={"url": "http://a"})) != fingerprint(EvaluationConfig())
