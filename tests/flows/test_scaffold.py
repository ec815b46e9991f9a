"""A new project is complete, valid, and never overwrites anything."""

import json
import re
from pathlib import Path

import pytest

from core.data.formats import convert
from core.errors import ConfigError
from flows.config_file import load_config
from flows.preflight import preflight
from flows.scaffold import FILES, init_project


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_every_file_is_written_and_named() -> None:
    lines = init_project("library", Path("library"))
    for file in FILES:
        assert (Path("library") / file).is_file()
        assert f"wrote library/{file}" in lines
    assert lines[-1] == "then: factory validate library/config.yaml"


def test_no_template_mark_is_left() -> None:
    init_project("library", Path("library"))
    for file in FILES:
        text = (Path("library") / file).read_text(encoding="utf-8")
        assert "{{" not in text
        assert text.endswith("\n")


@pytest.mark.parametrize("name", ["library", "A.b_c-1", "0", "x" * 64])
def test_the_new_config_is_a_valid_run_of_that_name(name: str) -> None:
    init_project(name, Path("place"))
    run = load_config(Path("place/config.yaml"))
    assert run.name == name
    assert run.gates.model_performance.min_improvement == 0.20


def test_the_new_project_passes_validation_from_anywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    init_project("library", Path("library"))
    for folder, config in (("library", Path("config.yaml")), ("..", Path("library/config.yaml"))):
        monkeypatch.chdir(folder)
        report = preflight(load_config(config), config, Path("workspace/library"))
        assert report.for_any_machine().errors == ()
        assert report.parameters == 999_885_952


def test_every_example_row_is_usable_and_asks_its_own_question() -> None:
    init_project("library", Path("library"))
    lines = (Path("library") / "data/rows/examples.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [convert(json.loads(line)) for line in lines]
    assert len(rows) >= 20
    assert {row.format for row in rows} == {"prompt_completion"}
    assert len({row.messages[0].content for row in rows}) == len(rows)


def test_the_explained_row_forms_are_the_real_ones() -> None:
    init_project("library", Path("library"))
    page = (Path("library") / "data/README.md").read_text(encoding="utf-8")
    examples = [json.loads(block) for block in re.findall(r"(?m)^    (\{.*(?:\n {10,}.*)*)$", page)]
    shapes = [convert(row).format for row in examples]
    assert shapes == ["prompt_completion", "alpaca", "messages", "sharegpt"]


@pytest.mark.parametrize(
    "name", ["", ".", "..", "../x", "a/b", "-x", ".hidden", "my project", "é", "a\nb", "x" * 65]
)
def test_bad_names_are_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="cannot name a project"):
        init_project(name, Path("place"))
    assert not Path("place").exists()


def test_an_empty_folder_may_be_used() -> None:
    Path("library").mkdir()
    init_project("library", Path("library"))
    assert load_config(Path("library/config.yaml")).name == "library"


def test_nothing_is_overwritten() -> None:
    Path("full").mkdir()
    Path("full/mine.txt").write_text("keep", encoding="utf-8")
    Path("file").write_text("keep", encoding="utf-8")
    with pytest.raises(ConfigError, match="not empty"):
        init_project("full", Path("full"))
    with pytest.raises(ConfigError, match="a file of that name exists"):
        init_project("file", Path("file"))
    assert sorted(str(p) for p in Path().rglob("*")) == ["file", "full", "full/mine.txt"]
    assert Path("file").read_text(encoding="utf-8") == "keep"
