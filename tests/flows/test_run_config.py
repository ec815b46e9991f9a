"""Rules that span blocks, and the errors in plain words."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from core.config import Frozen
from core.errors import ConfigError
from flows.config_file import load_config
from flows.run_config import COMMON_NAMES, Problem, RunConfig, check, inner_model

LEAST: dict[str, Any] = {"model": {"name": "org/base"}, "sources": [{"path": "rows.jsonl"}]}


def problems(**blocks: Any) -> list[Problem]:
    found = check({**LEAST, **blocks})
    assert isinstance(found, list), "the settings were accepted"
    return found


def accepted(**blocks: Any) -> RunConfig:
    run = check({**LEAST, **blocks})
    assert isinstance(run, RunConfig), run
    return run


def test_the_least_config_has_documented_defaults() -> None:
    run = accepted()
    assert run.gates.model_performance.min_improvement == 0.20
    assert run.lora.r == 8
    assert run.tracking.max_file_mb == 512


def test_a_plain_training_config_is_a_run() -> None:
    run = check(
        {
            "model": {"name": "org/base", "max_seq_length": 2048, "dtype": None, "load_in_4bit": True},
            "lora": {"r": 8, "use_gradient_checkpointing": "unsloth"},
            "training": {"max_steps": None, "fp16": None, "bf16": None},
            "dataset": {"path": "data/splits/train.jsonl", "text_field": "text", "chat_template": "gemma-3"},
            "save": {"gguf_quantization": "Q5_K_M", "push_to_hub": False},
            "wandb": {"enabled": False, "project": "old"},
        }
    )
    assert isinstance(run, RunConfig)
    assert [source.path for source in run.training_sources] == ["data/splits/train.jsonl"]
    assert run.gguf_formats == ("Q5_K_M",)


def test_sources_take_precedence_over_the_dataset() -> None:
    run = accepted(dataset={"path": "other.jsonl"})
    assert [source.path for source in run.training_sources] == ["rows.jsonl"]


def test_the_quantization_block_decides_the_formats() -> None:
    run = accepted(quantization={"formats": ["Q4_K_M", "f16"]}, save={"gguf_quantization": "Q8_0"})
    assert run.gguf_formats == ("Q4_K_M", "f16")


CONTRADICTIONS: list[tuple[dict[str, Any], str, str]] = [
    ({"sources": []}, "sources", "no data"),
    ({"wandb": {"enabled": True}}, "wandb.enabled", "MLflow"),
    ({"training": {"fp16": True, "bf16": True}}, "training.fp16", "both true"),
    ({"evaluation": {"metrics": ["token_f1"]}}, "evaluation.primary_metric", "exact_match is not in"),
    ({"save": {"push_to_hub": True}}, "save.push_to_hub", "hub_model_id"),
    ({"deployment": {"format": "Q4_K_M"}}, "deployment.format", "makes Q8_0"),
    (
        {"deployment": {"format": "f16"}, "quantization": {"formats": ["Q8_0", "Q6_K"]}},
        "deployment.format",
        "makes Q8_0, Q6_K",
    ),
    ({"save": {"lora_path": "/abs"}}, "save.lora_path", "below the workspace"),
    ({"save": {"merged_path": "../out"}}, "save.merged_path", "below the workspace"),
    ({"save": {"gguf_path": "a/../../b"}}, "save.gguf_path", "below the workspace"),
    ({"save": {"gguf_path": "."}}, "save.gguf_path", "below the workspace"),
    ({"save": {"gguf_path": ""}}, "save.gguf_path", "below the workspace"),
    ({"save": {"gguf_path": "C:/models"}}, "save.gguf_path", "below the workspace"),
    ({"training": {"output_dir": "~/out"}}, "training.output_dir", "below the workspace"),
    ({"save": {"merged_path": "models/checkpoints/lora/merged"}}, "save.merged_path", "overlap"),
    ({"training": {"output_dir": "models/quantized"}}, "training.output_dir", "overlap"),
    ({"lora": {"target_modules": []}}, "lora.target_modules", "nothing would be trained"),
    (
        {"lora": {"finetune_language_layers": False}},
        "lora.finetune_language_layers",
        "nothing would be trained",
    ),
    (
        {"lora": {"finetune_attention_modules": False, "finetune_mlp_modules": False}},
        "lora.finetune_attention_modules",
        "nothing would be trained",
    ),
]


@pytest.mark.parametrize(("blocks", "key", "words"), CONTRADICTIONS)
def test_contradictions_are_named(blocks: dict[str, Any], key: str, words: str) -> None:
    (problem,) = problems(**blocks)
    assert problem.keys[0] == key
    assert words in problem.what


@pytest.mark.parametrize(
    "blocks",
    [
        {"deployment": {"format": "Q8_0"}},
        {"deployment": {"format": "smallest"}, "quantization": {"formats": ["f16"]}},
        {"save": {"push_to_hub": True, "hub_model_id": "me/model"}},
        {"training": {"fp16": True, "bf16": False}},
        {"evaluation": {"primary_metric": "token_f1", "metrics": ["token_f1"]}},
        {"save": {"lora_path": "a", "merged_path": "ab"}},
        {"lora": {"finetune_mlp_modules": False}},
    ],
)
def test_their_legitimate_neighbours_are_accepted(blocks: dict[str, Any]) -> None:
    accepted(**blocks)


def test_direct_construction_is_refused_with_the_same_words() -> None:
    with pytest.raises(ValidationError, match="both true"):
        RunConfig.model_validate({**LEAST, "training": {"fp16": True, "bf16": True}})


def test_contradictions_are_found_beside_wrong_keys() -> None:
    found = problems(training={"fp16": True, "bf16": True, "epochs": 2}, evaluation={"max_new_tokens": 0})
    assert {problem.keys[0] for problem in found} == {
        "training.epochs",
        "evaluation.max_new_tokens",
        "training.fp16",
    }


def test_a_wrong_key_does_not_cause_a_second_complaint() -> None:
    """With ``source`` for ``sources`` there is no data, but that is not the mistake."""
    found = check({"model": {"name": "org/base"}, "source": [{"path": "rows.jsonl"}]})
    assert found == [Problem(("source", "sources"), "is not a key; did you mean sources?")]


WORDS: list[tuple[dict[str, Any], str]] = [
    ({"training": {"learning_rate": 2}}, "training.learning_rate must be at most 0.01, not 2"),
    (
        {"training": {"learning_rate": float("nan")}},
        "training.learning_rate must be a finite number, not NaN",
    ),
    ({"training": {"max_steps": 0}}, "training.max_steps must be at least 1, not 0"),
    ({"training": {"max_steps": "many"}}, 'training.max_steps must be a whole number, not "many"'),
    ({"training": {"seed": 1.5}}, "training.seed must be a whole number, not 1.5"),
    ({"training": {"weight_decay": []}}, "training.weight_decay must be a number, not []"),
    ({"lora": {"r": 7}}, "lora.r must be 4, 8, 16, 32, 64 or 128, not 7"),
    (
        {"lora": {"use_gradient_checkpointing": 5}},
        "lora.use_gradient_checkpointing must be true or false or unsloth, not 5",
    ),
    ({"lora": 5}, "lora must be a block of keys, not 5"),
    ({"sources": "rows.jsonl"}, 'sources must be a list such as [a, b], not "rows.jsonl"'),
    ({"sources": [{"path": 5}]}, "sources.0.path must be text, not 5; put it in quotes"),
    ({"sources": [{}]}, "sources.0.path is required"),
    ({"sources": [{"path": "x", "weight": 0}]}, "sources.0.weight must be greater than 0, not 0"),
    ({"split": {"train": 1}}, "split.train must be less than 1, not 1"),
    ({"split": {"train": 0.9}}, "split train + val + test must be 1, not 1.1"),
    ({"model": {"name": ""}}, 'model.name must be text that is not empty, not ""'),
    (
        {"name": "my run"},
        "name must be letters, digits, '.', '_' and '-', with a letter or digit first, not \"my run\"",
    ),
    ({"quantization": {"formats": []}}, "quantization.formats must be a list of at least 1, not []"),
    (
        {"training": {"lr_scheduler_type": "cosin"}},
        "training.lr_scheduler_type must be linear, cosine, constant or polynomial, "
        'not "cosin"; did you mean cosine?',
    ),
    (
        {"quantization": {"formats": ["q4_k_m"]}},
        "quantization.formats.0 must be f16, bf16, Q8_0, Q6_K, Q5_K_M, Q4_K_M or Q4_0, "
        'not "q4_k_m"; did you mean Q4_K_M?',
    ),
]


@pytest.mark.parametrize(("blocks", "expected"), WORDS, ids=[expected.split()[0] for _, expected in WORDS])
def test_values_are_explained_in_plain_words(blocks: dict[str, Any], expected: str) -> None:
    (problem,) = problems(**blocks)
    assert f"{problem.keys[0]} {problem.what}" == expected


SECRET = "https://u:p4ssw0rd@h/x?sig=abc123"
LONG = f"https://u:p4ssw0rd{'x' * 60}@h/x"


@pytest.mark.parametrize(
    "blocks",
    [
        {"sources": [{"path": SECRET}]},
        {"sources": [SECRET]},
        {"sources": SECRET},
        {"sources": [LONG]},
        {"sources": [{"path": [SECRET]}]},
        {"dataset": {"path": SECRET}},
        {"training": {"seed": SECRET}},
        {"name": SECRET},
    ],
)
def test_no_message_holds_a_password(blocks: dict[str, Any]) -> None:
    for problem in problems(**blocks):
        assert "p4ss" not in problem.what
        assert "abc123" not in problem.what


@pytest.mark.parametrize(
    "override",
    [
        f'sources=[{{path: "{SECRET}"}}]',
        f"sources=[{{path: '{LONG}'}}]",
        f"sources.0.path={SECRET}",
        f'sources=[{{path: "{SECRET}"',
        f"sources={SECRET}",
        f'sources=[{{path: x, "{SECRET}": 1}}]',
        SECRET,
    ],
)
def test_no_message_about_an_override_holds_a_password(override: str, tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(yaml.safe_dump(LEAST))
    with pytest.raises(ConfigError) as caught:
        load_config(file, [override])
    assert "-o " in str(caught.value)
    assert "p4ss" not in str(caught.value)
    assert "abc123" not in str(caught.value)


GUESSES = [
    ({"lora": {"alpha": 16}}, "lora.lora_alpha"),
    ({"lora": {"rank": 16}}, "lora.r"),
    ({"lora": {"learning_rate": 1e-4}}, "training.learning_rate"),
    ({"lr": 1e-4}, "training.learning_rate"),
    ({"learning-rate": 1e-4}, "training.learning_rate"),
    ({"training": {"epochs": 2}}, "training.num_train_epochs"),
    ({"training": {"batch_size": 2}}, "training.per_device_train_batch_size"),
    ({"Training": {}}, "training"),
    ({"gates": {"model_performance": {"min_improvment": 1}}}, "gates.model_performance.min_improvement"),
    ({"gates": {"min_improvement": 1}}, "gates.model_performance.min_improvement"),
    ({"sources": [{"path": "x", "wieght": 2}]}, "sources.0.weight"),
]


@pytest.mark.parametrize(("blocks", "meant"), GUESSES)
def test_an_unknown_key_is_answered_with_the_nearest(blocks: dict[str, Any], meant: str) -> None:
    (problem,) = problems(**blocks)
    assert problem.keys[1] == meant
    assert problem.what == f"is not a key; did you mean {meant}?"


def test_without_a_guess_the_keys_of_the_block_are_listed() -> None:
    (problem,) = problems(split={"zzz": 1})
    assert (
        problem.what
        == "is not a key; keys here: strategy, train, val, test, seed, group_by, stratify_by, time_by, near_threshold, near_numbers"
    )


def test_every_common_name_leads_to_a_real_key() -> None:
    for key in COMMON_NAMES.values():
        model: type[Frozen] | None = RunConfig
        for part in key.split("."):
            assert model is not None
            assert part in model.model_fields, key
            model = inner_model(model.model_fields[part].annotation)  # type: ignore[assignment]


def test_every_field_has_a_title_and_a_description() -> None:
    for name, field in RunConfig.model_fields.items():
        assert field.title, name
        assert field.description, name


@pytest.mark.parametrize(
    "module", ["flows.run_config", "flows.config_file", "flows.scaffold", "flows.preflight"]
)
def test_no_framework_is_imported(module: str) -> None:
    heavy = "{'torch', 'transformers', 'prefect', 'mlflow'}"
    code = f"import sys, {module}; print({heavy} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
