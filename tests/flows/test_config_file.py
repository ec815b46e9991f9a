"""Reading, overriding and explaining config files, from real files."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from jsonschema import Draft202012Validator  # type: ignore[import-untyped]

from core.errors import ConfigError
from flows.config_file import config_schema, load_config, resolve_path

ROOT = Path(__file__).parents[2]
LEAST = "model: {name: org/base}\nsources:\n  - path: rows.jsonl\n"

Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    monkeypatch.chdir(tmp_path)

    def write_file(text: str, name: str = "run.yaml") -> Path:
        Path(name).write_text(text, encoding="utf-8")
        return Path(name)

    return write_file


def complaint(path: Path, *overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config(path, overrides)
    return str(caught.value)


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_shipped_config_loads_and_matches_the_schema(path: Path) -> None:
    import yaml

    run = load_config(path)
    assert run.training_sources
    Draft202012Validator(config_schema()).validate(yaml.safe_load(path.read_text(encoding="utf-8")))


@pytest.mark.parametrize(
    ("stem", "model"),
    [
        ("gemma3_4b", "google/gemma-3-4b-it"),
        ("llama31_8b", "meta-llama/Llama-3.1-8B-Instruct"),
        ("qwen3_8b", "Qwen/Qwen3-8B"),
    ],
)
def test_the_large_configs_ask_for_a_fifth_more(stem: str, model: str) -> None:
    run = load_config(ROOT / "configs" / f"{stem}.yaml")
    assert run.model.name == model
    assert run.model.load_in_4bit
    assert run.gguf_formats == ("Q8_0", "Q4_K_M")
    assert (run.gates.model_performance.mode, run.gates.model_performance.min_improvement) == (
        "relative",
        0.20,
    )


@pytest.mark.parametrize(
    ("file", "name"),
    [("tutor.yaml", "tutor"), ("My run (2).yaml", "My-run-2"), ("über.yaml", "ber"), ("---.yaml", "run")],
)
def test_the_name_comes_from_the_file(write: Write, file: str, name: str) -> None:
    assert load_config(write(LEAST, file)).name == name


def test_a_given_name_stays(write: Write) -> None:
    assert load_config(write("name: mine\n" + LEAST)).name == "mine"


def test_json_is_a_config_too(write: Write) -> None:
    text = '{\n\t"$schema": "x",\n\t"model": {"name": "org/base"},\n\t"dataset": {"path": "d.jsonl"}\n}'
    run = load_config(write(text, "plain.json"))
    assert (run.name, run.training_sources[0].path) == ("plain", "d.jsonl")


def test_a_byte_order_mark_is_no_content(write: Write) -> None:
    assert load_config(write("\ufeff" + LEAST)).model.name == "org/base"


@pytest.mark.parametrize(
    ("yaml_text", "value"),
    [("1e-4", 1e-4), ("1.0E-4", 1e-4), ("0.0001", 1e-4), ("'1e-4'", 1e-4)],
)
def test_numbers_with_an_exponent_are_numbers(write: Write, yaml_text: str, value: float) -> None:
    run = load_config(write(LEAST + f"training: {{learning_rate: {yaml_text}}}\n"))
    assert run.training.learning_rate == value


def test_words_that_old_yaml_read_as_something_else_are_text(write: Write) -> None:
    run = load_config(
        write(LEAST + "deployment: {languages: [no, on, y], domain: 2024-01-01, users: [010, 1:30]}\n")
    )
    assert run.deployment.languages == ("no", "on", "y")
    assert run.deployment.domain == "2024-01-01"
    assert run.deployment.users == ("010", "1:30")


@pytest.mark.parametrize(
    "block", ["lora:", "gates:\n  model_performance:", "quantization:", "evaluation:\n  metrics:"]
)
def test_a_block_with_nothing_in_it_means_the_defaults(write: Write, block: str) -> None:
    assert load_config(write(LEAST + block + "\n")) == load_config(write(LEAST))


def test_anchors_are_read(write: Write) -> None:
    run = load_config(write("sources: [&a {path: a.jsonl}, *a]\nmodel: {name: org/base}\n"))
    assert [source.path for source in run.sources] == ["a.jsonl", "a.jsonl"]


# Overrides


def test_overrides_reach_values_blocks_and_lists(write: Write) -> None:
    run = load_config(
        write(LEAST),
        [
            "training.max_steps=50",
            "gates.model_performance.min_improvement=5",
            "gates.model_performance.mode=absolute",
            "sources.0.weight=2",
            "sources.1.path=more.jsonl",
            "save.hub_model_id=a=b",
            "lora.r=8",
            "lora.r=32",
            "model.dtype=",
        ],
    )
    assert run.training.max_steps == 50
    assert (run.gates.model_performance.mode, run.gates.model_performance.min_improvement) == ("absolute", 5)
    assert [(s.path, s.weight) for s in run.sources] == [("rows.jsonl", 2.0), ("more.jsonl", 1.0)]
    assert run.save.hub_model_id == "a=b"
    assert run.lora.r == 32
    assert run.model.dtype is None


def test_an_override_replaces_a_list(write: Write) -> None:
    run = load_config(write(LEAST), ["sources=[{path: other.jsonl}]", "quantization.formats=[Q6_K]"])
    assert [s.path for s in run.sources] == ["other.jsonl"]
    assert run.gguf_formats == ("Q6_K",)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("training.seed", "-o training.seed: is not KEY=VALUE"),
        ("=5", "-o =5: is not KEY=VALUE"),
        ("a..b=1", "-o a..b=1: is not KEY=VALUE"),
        ("lora.r=[1", "-o lora.r=[1: lora.r gets no valid YAML"),
        ("model.name.x=1", "model.name.x cannot be set"),
        ("sources.5.path=a", "sources.5.path cannot be set"),
        ("sources.first.path=a", "sources.first.path cannot be set"),
        ("training.seed=x", '-o training.seed=x: training.seed must be a whole number, not "x"'),
        ("save.lora_pth=x", "-o save.lora_pth=x: save.lora_pth is not a key; did you mean save.lora_path?"),
        ("lora=", ""),
    ],
)
def test_a_wrong_override_is_named(write: Write, override: str, words: str) -> None:
    path = write(LEAST)
    if words:
        assert words in complaint(path, override)
    else:
        load_config(path, [override])


@pytest.mark.parametrize(
    ("text", "overrides", "label"),
    [
        (
            "split: {train: 0.8, val: 0.1, test: 0.1}\n",
            ["split.train=0.9"],
            "-o split.train=0.9: split train",
        ),
        ("training: {bf16: true}\n", ["training.fp16=true"], "-o training.fp16=true: training.fp16 fp16 and"),
        ("training: {fp16: true}\n", ["training.bf16=true"], "-o training.bf16=true: training.fp16 fp16 and"),
        ("split: {train: 0.9}\n", ["split.seed=4"], "run.yaml:4: split train"),
    ],
)
def test_a_contradiction_is_blamed_on_what_brought_it_about(
    write: Write, text: str, overrides: list[str], label: str
) -> None:
    assert label in complaint(write(LEAST + text), *overrides)


# Complaints


def test_all_problems_come_at_once_by_line(write: Write) -> None:
    text = (
        "model:\n"
        "  nam: org/base\n"
        "  max_seq_length: 100\n"
        "lr: 1e-4\n"
        "sources:\n"
        "  - path: rows.jsonl\n"
        "    wieght: 2\n"
        "training: {fp16: true, bf16: true}\n"
        "split: {train: 0.9}\n"
    )
    assert complaint(write(text), "evaluation.max_new_tokens=0").splitlines() == [
        "run.yaml: 7 settings are wrong",
        "  run.yaml:2: model.nam is not a key; did you mean model.name?",
        "  run.yaml:3: model.max_seq_length must be at least 256, not 100",
        "  run.yaml:4: lr is not a key; did you mean training.learning_rate?",
        "  run.yaml:7: sources.0.wieght is not a key; did you mean sources.0.weight?",
        "  run.yaml:8: training.fp16 fp16 and bf16 are both true; a run uses one of them",
        "  run.yaml:9: split train + val + test must be 1, not 1.1",
        "  -o evaluation.max_new_tokens=0: evaluation.max_new_tokens must be at least 1, not 0",
        "  Fix: factory schema explains every key",
    ]


def test_a_missing_key_points_at_its_block(write: Write) -> None:
    text = "sources: [{path: rows.jsonl}]\n\nmodel:\n  framework: hf\n"
    assert complaint(write(text)).startswith("run.yaml:3: model.name is required")


def test_json_problems_have_lines(write: Write) -> None:
    text = '{\n\t"model": {"name": "org/base"},\n\t"dataset": {},\n\t"training":\n\t\t{"seed": "q"}\n}'
    assert complaint(write(text, "c.json")).startswith(
        'c.json:5: training.seed must be a whole number, not "q"'
    )


def test_a_key_that_stands_twice_is_an_error(write: Write) -> None:
    text = LEAST + "training:\n  seed: 1\nlora: {r: 8, r: 16}\ntraining:\n  seed: 2\n"
    lines = complaint(write(text)).splitlines()
    assert lines[1:3] == [
        "  run.yaml:6: lora.r stands twice, first on line 6",
        "  run.yaml:7: training stands twice, first on line 4",
    ]


def test_a_json_key_that_stands_twice_is_an_error(write: Write) -> None:
    text = '{"model": {"name": "a", "name": "b"},\n"dataset": {}}'
    assert "c.json:1: model.name stands twice" in complaint(write(text, "c.json"))


def test_a_number_as_key_is_an_unknown_key(write: Write) -> None:
    assert "run.yaml:4: 5 is not a key" in complaint(write(LEAST + "5: x\n"))


UNREADABLE = [
    ("run.yaml", "", "run.yaml: is empty"),
    ("run.yaml", "# nothing\n", "run.yaml: is empty"),
    ("run.json", "", "run.json: is empty"),
    ("run.yaml", "- a\n", "run.yaml: holds a list"),
    ("run.yaml", "text\n", "run.yaml: holds one value"),
    ("run.json", "[1]", "run.json: holds a list"),
    ("run.yaml", "model:\n\tname: x\n", "run.yaml:2:1: a tab stands where YAML wants spaces"),
    ("run.yaml", "model: name: x\n", "run.yaml:1:12: a ':' stands where none can"),
    ("run.yaml", "model: {name: x\n", "is not valid YAML"),
    ("run.yaml", "a: 1\n---\nb: 2\n", "run.yaml:2:1: is not valid YAML"),
    ("run.yaml", "? {a: b}\n: c\n", "is not valid YAML"),
    ("run.yaml", "a: \x07\n", "run.yaml:1: holds a control character"),
    (
        "run.yaml",
        "model: !!python/object:os.system x\n",
        "run.yaml:1:8: the tag !!python/object:os.system is not allowed",
    ),
    ("run.yaml", "model: !custom x\n", "run.yaml:1:8: the tag !custom is not allowed"),
    ("run.yaml", "seed: !!int abc\n", "a value cannot be read"),
    ("run.yaml", "[" * 5000, "is nested too deeply"),
    ("run.json", "[" * 100000, "is nested too deeply"),
    ("run.yaml", "x" * (1 << 20) + "y", "is too large for a config"),
    ("run.json", '{\n  "a": 1,\n}', "run.json:3:1: is not valid JSON"),
]


@pytest.mark.parametrize(
    ("name", "text", "words"), UNREADABLE, ids=[words[:40] for _, _, words in UNREADABLE]
)
def test_an_unreadable_file_is_explained(write: Write, name: str, text: str, words: str) -> None:
    assert words in complaint(write(text, name))


def test_a_file_in_another_encoding_is_explained(write: Write) -> None:
    path = write("")
    path.write_bytes(b"model:\n  name: caf\xe9\n")
    assert complaint(path).startswith("run.yaml:2: is not UTF-8 text")


def test_a_missing_file_is_answered_with_the_nearest(write: Write) -> None:
    write(LEAST, "gemma.yaml")
    assert "did you mean gemma.yaml?" in complaint(Path("gema.yaml"))
    assert "configs here: gemma.yaml" in complaint(Path("zzzzzzz.yaml"))
    assert "the folder nowhere does not exist" in complaint(Path("nowhere/run.yaml"))


def test_a_folder_is_no_config(write: Write, tmp_path: Path) -> None:
    write(LEAST, "gemma.yaml")
    assert "is a folder, not a config file\n  Fix: name a file in it: gemma.yaml" in complaint(tmp_path)


# Paths


def test_paths_start_from_here_then_from_the_config(write: Write, tmp_path: Path) -> None:
    (tmp_path / "project").mkdir()
    (tmp_path / "project" / "beside.jsonl").touch()
    (tmp_path / "project" / "both.jsonl").touch()
    (tmp_path / "both.jsonl").touch()
    config = tmp_path / "project" / "run.yaml"
    assert resolve_path("beside.jsonl", config) == tmp_path / "project" / "beside.jsonl"
    assert resolve_path("both.jsonl", config) == tmp_path / "both.jsonl"
    assert resolve_path("besi*.jsonl", config) == tmp_path / "project" / "besi*.jsonl"
    assert resolve_path("nowhere.jsonl", config) == tmp_path / "nowhere.jsonl"
    assert resolve_path(str(tmp_path / "both.jsonl"), config) == tmp_path / "both.jsonl"


def test_loading_anchors_only_what_lies_beside_the_config(write: Write, tmp_path: Path) -> None:
    (tmp_path / "project" / "base").mkdir(parents=True)
    (tmp_path / "project" / "rows.jsonl").touch()
    (tmp_path / "here.jsonl").touch()
    sources = "sources: [{path: rows.jsonl}, {path: here.jsonl}]\n"
    text = sources + "model: {name: base}\ndataset: {validation_path: rows.jsonl}\n"
    run = load_config(write(text, "project/run.yaml"))
    assert [s.path for s in run.sources] == [str(tmp_path / "project" / "rows.jsonl"), "here.jsonl"]
    assert run.model.name == str(tmp_path / "project" / "base")
    assert run.dataset is not None
    assert run.dataset.validation_path == str(tmp_path / "project" / "rows.jsonl")


# Schema


def test_the_schema_is_valid_and_describes_every_key() -> None:
    schema = config_schema()
    Draft202012Validator.check_schema(schema)
    assert schema["$schema"].endswith("2020-12/schema")
    assert schema["additionalProperties"] is False
    for name in ("ModelConfig", "LoraConfig", "TrainingConfig", "EvaluationConfig", "ModelPerformance"):
        for key, value in schema["$defs"][name]["properties"].items():
            assert value.get("description"), f"{name}.{key}"


def test_the_schema_refuses_what_the_loader_refuses() -> None:
    check = Draft202012Validator(config_schema())
    good = {"$schema": "x", "model": {"name": "a"}, "dataset": {"path": "b"}}
    assert check.is_valid(good)
    assert not check.is_valid({**good, "lr": 1})
    assert not check.is_valid({**good, "lora": {"r": 7}})
    assert not check.is_valid({"dataset": {"path": "b"}})
    json.dumps(config_schema())
