"""What outside the config decides a score, and which arms a small window leaves."""

import inspect
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub import constants

from core.artifacts import Splits, path_digest, write_jsonl
from core.errors import DataError, ModelError
from core.evaluation.config import EvaluationConfig, GraderConfig
from core.models.config import ModelConfig
from gates.thresholds import GatesConfig
from tasks import baseline, evaluate, finetune, quantize
from tasks import phase as phase_module
from tasks.baseline import _ways
from tasks.context import RunContext, running
from tasks.measure import Examinee, files_of
from tasks.phase import library_version
from tasks.workspace import Workspace


class Listener:
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def noted(self, phase: str, text: str) -> None:
        self.notes.append(text)


def context(base: Path) -> Any:
    return RunContext(
        name="t", workspace=Workspace(base / "ws"), tracker=None, watcher=Listener(), base=base, gates=GatesConfig()
    )  # type: ignore[arg-type]  # fmt: skip


def files(base: Path, **settings: Any) -> dict[str, str]:
    settings = {"general": {"enabled": False}, **settings}
    with running(context(base)):
        return files_of(EvaluationConfig(**settings))


def test_a_grader_is_known_by_its_contents_and_its_function(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir(), (tmp_path / "b").mkdir()

    def found(path: str) -> dict[str, str]:
        return files(tmp_path, graders={"g": GraderConfig(type="callable", path=path)})

    (tmp_path / "a" / "my.py").write_text("1")
    (tmp_path / "b" / "my.py").write_text("1")
    before = found("a/my.py:f")
    assert before == found("b/my.py:f") == found(f"{tmp_path}/b/my.py:f")
    assert before != found("a/my.py:g")
    (tmp_path / "a" / "my.py").write_text("2")
    assert before != found("a/my.py:f")
    (tmp_path / "a" / "my.py").write_text("import helper")
    without = found("a/my.py:f")
    (tmp_path / "a" / "helper.py").write_text("1")
    first = found("a/my.py:f")
    (tmp_path / "a" / "helper.py").write_text("2")
    assert len({str(each) for each in (without, first, found("a/my.py:f"))}) == 3
    assert found("a/gone.py:f") == {"graders.g:f": "a/gone.py"}


@pytest.mark.parametrize(
    "settings",
    [
        {"metrics": ("exact_match", "similarity")},
        {"primary_metric": "similarity"},
        {"diversity": {"samples": 2}},
    ],
)
def test_an_encoder_that_decides_a_number_is_known(tmp_path: Path, settings: dict[str, Any]) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text("{}")
    local = files(tmp_path, encoder={"model": "a"}, **settings)
    assert (
        local
        == {"encoder": path_digest(tmp_path / "a")}
        == files(tmp_path, encoder={"model": "b"}, **settings)
    )
    gone = str(tmp_path / "gone")
    assert files(tmp_path, encoder={"model": gone}, **settings) == {"encoder": gone}
    assert files(tmp_path, encoder={"model": "a"}) == {}


SIMILAR = {"metrics": ("exact_match", "similarity"), "encoder": {"model": "owner/encoder"}}


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An encoder in an empty Hub cache, in two revisions, and no connection; return its repository."""
    for module in (constants, huggingface_hub._snapshot_download):
        if hasattr(module, "HF_HUB_CACHE"):
            monkeypatch.setattr(module, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    home = tmp_path / "hub/models--owner--encoder"
    (home / "refs").mkdir(parents=True)
    for letter in "ab":
        (home / "snapshots" / (letter * 40)).mkdir(parents=True)
        (home / "snapshots" / (letter * 40) / "config.json").write_text(f'{{"layers": "{letter}"}}')
    (home / "refs/main").write_text("a" * 40)
    return home


def test_an_encoder_of_the_hub_is_known_by_its_contents_so_a_new_revision_measures_anew(
    tmp_path: Path, hub: Path
) -> None:
    first = files(tmp_path, **SIMILAR)
    assert first == {"encoder": path_digest(hub / "snapshots" / ("a" * 40))} == files(tmp_path, **SIMILAR)
    (hub / "refs/main").write_text("b" * 40)
    assert files(tmp_path, **SIMILAR) == {"encoder": path_digest(hub / "snapshots" / ("b" * 40))} != first


def test_a_folder_of_the_name_of_a_hub_id_goes_first(tmp_path: Path, hub: Path) -> None:
    (tmp_path / "owner/encoder").mkdir(parents=True)
    (tmp_path / "owner/encoder/config.json").write_text("{}")
    assert files(tmp_path, **SIMILAR) == {"encoder": path_digest(tmp_path / "owner/encoder")}


def test_an_encoder_that_the_hub_does_not_give_is_one_message(tmp_path: Path, hub: Path) -> None:
    (hub / "refs/main").unlink()
    with pytest.raises(ModelError, match="the encoder owner/encoder: (.|\n)*not in the cache") as caught:
        files(tmp_path, **SIMILAR)
    assert (
        caught.value.where == "evaluation.encoder.model" and "hf download owner/encoder" in caught.value.fix
    )
    assert files(tmp_path, encoder={"model": "owner/encoder"}) == {}


def test_task_files_are_known_with_their_data_and_the_library_by_its_version(tmp_path: Path) -> None:
    (tmp_path / "t.yaml").write_text("dataset_kwargs: {data_files: {test: q.jsonl}}")
    (tmp_path / "q.jsonl").write_text("1")

    def found(*tasks: str) -> dict[str, str]:
        return files(tmp_path, harness={"tasks": tasks})

    before = found("t.yaml", "arc_easy")
    assert before["lm_eval"] == library_version("lm_eval")
    assert set(before) == {"lm_eval", "harness.0.t.yaml", "harness.1.arc_easy"}
    assert found(str(tmp_path / "t.yaml"), "arc_easy") == before
    assert found("t.yaml", "piqa") != before
    (tmp_path / "q.jsonl").write_text("2")
    assert found("t.yaml", "arc_easy") != before
    assert found() == {}


def inputs(call: Any) -> dict[str, Any]:
    """What a phase was made of, found in the closure of its call."""
    carried = inspect.getclosurevars(call).nonlocals["carried"]
    return inspect.getclosurevars(carried.fn).nonlocals


def test_libraries_that_grade_and_the_users_files_are_in_the_keys() -> None:
    for call in (baseline.baseline, evaluate._evaluate, quantize.quantize):
        assert {"sacrebleu", "rapidfuzz", "scipy"} <= set(inputs(call)["engines"])
        assert "files" in inspect.signature(inputs(call)["body"]).parameters
    assert {"tasks.measure", "gates.rungs"} <= set(inputs(quantize.quantize)["sources"])


@pytest.mark.parametrize(("framework", "named"), [("hf", ()), ("unsloth", ("unsloth", "unsloth_zoo"))])
def test_the_version_of_unsloth_is_in_the_key_of_training_with_it(
    framework: str, named: tuple[str, ...]
) -> None:
    optional = inputs(finetune.finetune)["optional"]
    assert optional(None, None, SimpleNamespace(framework=framework), None) == named


def test_the_version_of_an_optional_library_changes_a_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys: list[str] = []
    monkeypatch.setattr(phase_module, "_execute", lambda run, name, key, body: keys.append(key))
    for installed in ("1", "1", "2"):
        monkeypatch.setattr(phase_module, "library_version", lambda name, now=installed: f"{name} {now}")
        run = inspect.getclosurevars(finetune.finetune).nonlocals["carried"].fn
        with running(context(tmp_path)):
            run(None, None, ModelConfig(name="x", framework="unsloth"), None, None, None, "auto", None)
    assert keys[0] == keys[1] != keys[2]


def examinee(folder: Path, window: int, arms: tuple[str, ...]) -> Examinee:
    """A model that counts words as tokens; nothing here lets it answer."""
    turns = [{"role": "user", "content": "one two three"}, {"role": "assistant", "content": "four"}]
    for name in ("train", "val", "test"):
        rows = [{"id": f"{name}{n}", "conversations": turns, "metadata": {}} for n in range(4)]
        write_jsonl(folder / f"{name}.jsonl", rows)
    model = SimpleNamespace(
        window=window, prompt_length=lambda turns: sum(len(t["content"].split()) for t in turns)
    )
    config = EvaluationConfig(baseline={"arms": arms}, max_new_tokens=5)
    return Examinee("baseline", model, "d", Splits.of(folder), config)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("window", "expected"),
    [(12, ["zero_shot", "few_shot", "prompted"]), (11, ["zero_shot", "prompted"])],
)
def test_an_arm_whose_examples_never_fit_is_left_out_with_a_note(
    tmp_path: Path, window: int, expected: list[str]
) -> None:
    run = context(tmp_path)
    (tmp_path / "splits").mkdir()
    one = examinee(tmp_path / "splits", window, ("zero_shot", "few_shot", "prompted"))
    assert [way.arm for way in _ways(run, one)] == expected
    assert any("few_shot left out" in note for note in run.watcher.notes) == ("few_shot" not in expected)


def test_the_only_arm_is_not_left_out_but_refused(tmp_path: Path) -> None:
    (tmp_path / "splits").mkdir()
    one = examinee(tmp_path / "splits", 11, ("few_shot", "few_shot"))
    with pytest.raises(DataError, match="no room for a solved example"):
        list(_ways(context(tmp_path), one))
