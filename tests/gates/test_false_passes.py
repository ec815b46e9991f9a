"""Ways in which gates of this kind have wrongly opened, or could never open, each as a test.

The list is the product's own (requirements, section 2.4 and the missing-number rules of 4.1):

 1  a metrics file holding "NOT JSON", or an empty one          test_text_that_is_no_report
 2  a score in prose, "62%", that a pattern fails to find       test_a_score_in_prose
 3  `{}` as baseline and evaluation                             test_empty_objects
 4  a baseline of 0                                             test_a_baseline_of_zero
 5  a tuned score of 0 after a baseline of 0.6                  test_a_tuned_score_of_zero
 6  a gain in points judged as a share, or the other way        test_model_performance: mode is never guessed
 7  model-performance that no report could ever open            test_a_good_run_opens_every_gate
 8  an empty folder of quantized files                          test_an_empty_folder
 9  retention that defaults to 100 %, a report of 40 % unread   test_a_retention_of_forty_percent
10  a folder that exists, with files that are nothing           test_files_that_are_nothing
11  leakage hard-coded to 0; equal rows in all splits           test_equal_rows_in_all_splits
12  dataset-validated that always closes on conversations       test_a_good_run_opens_every_gate
13  "1,234 samples" read as 234, "0.91" read as 0               test_numbers_keep_their_size
14  a missing number that only warns, or is skipped             test_no_number_can_be_missing
15  no memory figure taken as 0 GB                              test_no_memory_figure
16  a fresh, empty project                                      test_an_empty_project
17  one finding that both warns and blocks; passed: true        test_verdict: passed cannot contradict
18  numbers of another data set, model or file                  test_stale_digests
19  NaN, which is neither above nor below anything              test_no_number_can_be_infinite_or_nan
20  a gain over a base that was asked badly                     test_a_gain_over_the_worst_way_of_asking
21  tuned on the topic, and everything else forgotten           test_everyday_knowledge_that_is_gone
"""

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import BaseModel, ValidationError

from core.config import Frozen
from core.data.reports import FormatReport, IngestReport, Leakage, SplitReport
from core.deployment.reports import BundleReport
from core.evaluation.reports import BaselineReport, EvalReport, Suite
from core.quantization.reports import QuantReport
from core.training.reports import TrainReport
from gates.baseline_established import baseline_established
from gates.dataset_validated import dataset_validated
from gates.deployment_ready import deployment_ready
from gates.model_performance import model_performance
from gates.quantization_verified import quantization_verified
from gates.thresholds import GatesConfig
from tests.gates.conftest import digest

KINDS = {
    "ingested": IngestReport,
    "formatted": FormatReport,
    "split": SplitReport,
    "baseline": BaselineReport,
    "tuned": EvalReport,
    "training": TrainReport,
    "quantized": QuantReport,
    "bundle": BundleReport,
}
NEEDS = {
    "dataset-validated": ("ingested", "formatted", "split"),
    "baseline-established": ("baseline", "split"),
    "model-performance": ("baseline", "tuned", "training"),
    "quantization-verified": ("tuned", "quantized"),
    "deployment-ready": ("bundle", "quantized"),
}


@pytest.fixture
def run(ingested, formatted, split, baseline, tuned, training, quantized, bundle):
    return {
        "ingested": ingested,
        "formatted": formatted,
        "split": split,
        "baseline": baseline,
        "tuned": tuned,
        "training": training,
        "quantized": quantized,
        "bundle": bundle,
    }


def judge(run, config=None):
    config = config or GatesConfig()
    verdicts = (
        dataset_validated(run["ingested"], run["formatted"], run["split"], config.dataset_validated, 0),
        baseline_established(run["baseline"], run["split"], config.baseline_established),
        model_performance(run["baseline"], run["tuned"], run["training"], config.model_performance),
        quantization_verified(run["tuned"], run["quantized"], config.quantization_verified),
        deployment_ready(run["bundle"], run["quantized"], config.deployment_ready, digest("Q4_K_M")),
    )
    return {verdict.gate: verdict for verdict in verdicts}


def closed(run):
    return {gate for gate, verdict in judge(run).items() if not verdict.passed}


def readers(report):
    return {gate for gate, reports in NEEDS.items() if report in reports}


def places(model, path=()):
    """Every field of a report, however deep: its path and its value."""
    pairs = model if isinstance(model, BaseModel) else ()
    for name, value in pairs:
        yield (*path, name), value
        yield from places(value, (*path, name))
        if isinstance(value, tuple) and value and isinstance(value[0], BaseModel):
            yield from places(value[0], (*path, name, 0))
        if isinstance(value, dict):
            for key, inner in value.items():
                yield (*path, name, key), inner
                yield from places(inner, (*path, name, key))


def put(model, path, value):
    """Copy a report with one place overwritten, past all validation."""
    head, *rest = path
    if isinstance(model, BaseModel):
        return model.model_copy(update={head: put(getattr(model, head), rest, value) if rest else value})
    if isinstance(model, dict):
        return {**model, head: put(model[head], rest, value) if rest else value}
    return (*model[:head], put(model[head], rest, value) if rest else value, *model[head + 1 :])


# 7, 12: the false failures


def test_a_good_run_opens_every_gate(run):
    assert closed(run) == set()
    assert set(judge(run)) == set(NEEDS)


def test_a_good_run_opens_every_gate_after_a_trip_through_files(run):
    again = {name: KINDS[name].model_validate_json(report.model_dump_json()) for name, report in run.items()}
    assert judge(again) == judge(run)


# 16


def test_an_empty_project(run):
    assert closed(dict.fromkeys(run)) == set(NEEDS)


@pytest.mark.parametrize("name", KINDS)
def test_a_missing_report_closes_every_gate_that_reads_it(run, name):
    assert closed({**run, name: None}) == readers(name)


# 1, 3


@pytest.mark.parametrize("text", ["NOT JSON", "", "{}", "[]", "null"])
@pytest.mark.parametrize("kind", sorted(set(KINDS.values()), key=lambda kind: kind.__name__))
def test_text_that_is_no_report(kind, text):
    with pytest.raises(ValidationError):
        kind.model_validate_json(text)


@pytest.mark.parametrize("name", KINDS)
def test_empty_objects(run, name):
    for empty in (KINDS[name].model_construct(), {}, Frozen()):
        assert closed({**run, name: empty}) == readers(name)


# 2, 13


@pytest.mark.parametrize("text", ["62%", "Localization score: 62", "0,8", "nan"])
def test_a_score_in_prose(run, text):
    tuned = run["tuned"].model_copy(update={"value": text})
    assert closed({**run, "tuned": tuned}) == readers("tuned")
    for place in range(3):
        spoiled = put(run["baseline"], ("arms", place, "value"), text)
        assert closed({**run, "baseline": spoiled}) == readers("baseline")


def test_numbers_keep_their_size(run):
    big = run["split"].model_copy(update={"train": 9872, "val": 1234, "test": 1234})
    checks = {check.name: check for check in judge({**run, "split": big})["dataset-validated"].checks}
    assert checks["rows"].observed == 12_340
    assert checks["test rows"].observed == 1234


# 4, 5


@pytest.mark.parametrize("tuned_right", [0, 1, 2])
def test_a_baseline_of_zero(run, arms, scored, tuned_right):
    run["baseline"] = arms(zero_shot=(0.0,) * 60)
    run["tuned"] = scored("tuned", (1.0,) * tuned_right + (0.0,) * (60 - tuned_right), "merged")
    assert not judge(run)["model-performance"].passed


def test_a_baseline_of_zero_is_no_false_failure_either(run, arms):
    run["baseline"] = arms(zero_shot=(0.0,) * 60)
    assert judge(run)["model-performance"].passed


def test_a_tuned_score_of_zero(run, arms, scored):
    run["baseline"] = arms(zero_shot=(1.0,) * 36 + (0.0,) * 24)
    run["tuned"] = scored("tuned", (0.0,) * 60, "merged")
    verdict = judge(run)["model-performance"]
    assert {"gain", "tuned score", "gain, lower end"} == {check.name for check in verdict.failed}
    assert "gain -1.000 against 0.200" in verdict.summary


# 8, 9, 10


def test_an_empty_folder(run):
    run["quantized"] = run["quantized"].model_copy(update={"files": ()})
    assert closed(run) == {"quantization-verified", "deployment-ready"}


def test_a_retention_of_forty_percent(run, scored):
    few = (1.0,) * 19 + (0.0,) * 41
    bad = [f.model_copy(update={"evaluation": scored(f.type, few, f.type)}) for f in run["quantized"].files]
    run["quantized"] = run["quantized"].model_copy(update={"files": tuple(bad)})
    assert "Q8_0 drop 0.604 against 0.050" in judge(run)["quantization-verified"].summary


@pytest.mark.parametrize("update", [{"bytes": 0}, {"has_magic": False}])
def test_files_that_are_nothing(run, update):
    first, second = run["quantized"].files
    files = (first.model_copy(update=update), second)
    run["quantized"] = run["quantized"].model_copy(update={"files": files})
    assert closed(run) == {"quantization-verified"}


def test_files_that_open_and_say_nothing(run):
    files = tuple(file.model_copy(update={"loads": False}) for file in run["quantized"].files)
    run["quantized"] = run["quantized"].model_copy(update={"files": files})
    assert closed(run) == {"quantization-verified"}


# 11


def test_equal_rows_in_all_splits(run):
    everything = Leakage(exact=10, normalised=10, groups=0, near=10)
    split = run["split"]
    run["split"] = split.model_copy(
        update={"duplicates": 597, "leakage": dict.fromkeys(split.leakage, everything)}
    )
    failed = {check.name for check in judge(run)["dataset-validated"].failed}
    assert failed == {
        "duplicates",
        *(f"{pair} shared questions" for pair in split.leakage),
        *(f"{pair} nearly equal questions" for pair in split.leakage),
    }


def test_leakage_that_nobody_counted(run):
    run["split"] = run["split"].model_copy(update={"leakage": {}})
    assert closed(run) == {"dataset-validated"}


# 14, 15, 19: every place of every report


MAY_BE_NONE = {
    ("error",),
    ("near_threshold",),
    ("quality", "contamination"),
    ("validation_pii",),
    ("kept_step",),
    ("quantization_aware",),
}
NEVER_NEEDED = {"diversity", "load_seconds"}
"""What a run may leave out; the gates that want it are told so by their thresholds."""
OF_THE_LADDER = {"distance", "text_agreement", "parity"}
"""What may be missing for all that the bundle cares, but not for all that the choice of a file does."""


def all_places(run):
    return [(name, path, value) for name, report in run.items() for path, value in places(report)]


def test_no_number_can_be_missing(run):
    tried = 0
    for name, path, _ in all_places(run):
        if path in MAY_BE_NONE or path[-1] in NEVER_NEEDED:
            continue
        # Not looked for is an answer that other gates may take; the one that asked does not.
        expected = {"dataset-validated"} if path[-1] == "near" else readers(name)
        if path[-1] in OF_THE_LADDER:
            expected = {"quantization-verified"}
        assert expected <= closed({**run, name: put(run[name], path, None)}), (name, path)
        tried += 1
    assert tried > 140


@pytest.mark.parametrize("poison", [math.nan, math.inf, -math.inf])
def test_no_number_can_be_infinite_or_nan(run, poison):
    tried = 0
    for name, path, value in all_places(run):
        if not isinstance(value, int | float) or isinstance(value, bool):
            continue
        verdicts = judge({**run, name: put(run[name], path, poison)})
        assert {gate for gate, verdict in verdicts.items() if not verdict.passed} >= readers(name), (
            name,
            path,
        )
        for verdict in verdicts.values():
            json.dumps(verdict.model_dump(mode="json"), allow_nan=False)
        tried += 1
    assert tried > 60


def test_not_even_one_score_can_be_nan(run):
    scores = (math.nan, *run["tuned"].scores["exact_match"][1:])
    run["tuned"] = run["tuned"].model_copy(update={"scores": {"exact_match": scores}})
    assert closed(run) == {"model-performance", "quantization-verified"}


def test_nan_does_not_come_in_through_json(run):
    for name, report in run.items():
        for path, value in places(report):
            if path[-1] in {"value", "rejected_share", "final_loss", "memory_mb"} and isinstance(
                value, float
            ):
                # Python's own writer emits NaN, which is how such files come about.
                text = json.dumps(put(report, path, math.nan).model_dump(mode="python"))
                assert "NaN" in text
                with pytest.raises(ValidationError):
                    KINDS[name].model_validate_json(text)


def test_no_memory_figure(run):
    bundle = run["bundle"]
    for nothing in (0.0, None, math.nan):
        smoke = bundle.smoke.model_copy(update={"memory_mb": nothing})
        assert closed({**run, "bundle": bundle.model_copy(update={"smoke": smoke})}) == {"deployment-ready"}


# 18


@pytest.mark.parametrize(
    ("name", "field", "expected"),
    [
        ("tuned", "split_digest", {"model-performance", "quantization-verified"}),
        ("tuned", "model_digest", {"model-performance", "quantization-verified"}),
        ("training", "base_digest", {"model-performance"}),
        ("training", "merged_digest", {"model-performance"}),
        ("quantized", "merged_digest", {"quantization-verified"}),
        ("bundle", "gguf_digest", {"deployment-ready"}),
        ("bundle", "verified_digest", {"deployment-ready"}),
    ],
)
@pytest.mark.parametrize("digest", ["sha256:" + "0" * 64, ""])
def test_stale_digests(run, name, field, expected, digest):
    assert closed({**run, name: run[name].model_copy(update={field: digest})}) == expected


@pytest.mark.parametrize("field", ["split_digest", "model_digest"])
@pytest.mark.parametrize("digest", ["sha256:" + "0" * 64, ""])
@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_stale_digest_in_any_arm_of_the_base(run, field, digest, place):
    stale = put(run["baseline"], ("arms", place, field), digest)
    assert "baseline-established" in closed({**run, "baseline": stale})
    if field == "split_digest" or place == 0:
        assert "model-performance" in closed({**run, "baseline": stale})


# 20, 21


def test_a_gain_over_the_worst_way_of_asking(run, arms):
    run["baseline"] = arms(zero_shot=(0.0,) * 60, prompted=(1.0,) * 46 + (0.0,) * 14)
    assert closed(run) == {"model-performance"}
    run["baseline"] = arms(zero_shot=(0.0,) * 60)
    assert closed(run) == set()


def test_everyday_knowledge_that_is_gone(run):
    def asked(right):
        scores = (1.0,) * right + (0.0,) * (80 - right)
        value = right / 80
        return Suite(
            name="general",
            metric="accuracy",
            value=value,
            low=value,
            high=value,
            n=80,
            digest="d",
            scores=scores,
        )

    run["baseline"] = put(run["baseline"], ("arms", 0, "suites"), (asked(60),))
    run["tuned"] = put(run["tuned"], ("suites",), (asked(60),))
    assert closed(run) == set()
    run["tuned"] = put(run["tuned"], ("suites",), (asked(20),))
    assert closed(run) == {"model-performance"}
    run["tuned"] = put(run["tuned"], ("suites",), ())
    assert closed(run) == {"model-performance"}


# The floor itself


def test_the_same_reports_give_the_same_verdicts_and_stay_untouched(run):
    before = {name: report.model_dump_json() for name, report in run.items()}
    assert judge(run) == judge(run)
    assert {name: report.model_dump_json() for name, report in run.items()} == before


def test_importing_every_gate_loads_no_engine():
    root = Path(__file__).parents[2]
    modules = sorted(
        f"gates.{file.stem}" for file in (root / "gates").glob("*.py") if file.stem != "__init__"
    )
    heavy = "{'torch', 'transformers', 'scipy', 'mlflow', 'prefect', 'llama_cpp'}"
    code = f"import sys, gates, {', '.join(modules)}; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert len(modules) >= 8
    assert done.stdout.strip() == "[]"
