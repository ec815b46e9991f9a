import hashlib
import json
import os
import shutil
from pathlib import Path

import pytest
from pydantic import ValidationError

from core.deployment.api_page import HandoffConfig
from core.deployment.bundle import REQUIRED_FILES, BundleContents, Provenance, verify_bundle, write_bundle
from core.deployment.card_schema import (
    BaseModelInfo,
    CardEvaluation,
    CardSource,
    Domain,
    IntendedUse,
    ModelCard,
    Scores,
    TrainingData,
    TunedScores,
)

GGUF = b"GGUF" + bytes(range(256)) * 40
TOKENIZER = {
    "tokenizer.json": '{"version": "1.0"}',
    "tokenizer_config.json": '{"eos_token": "</s>"}',
    "chat_template.jinja": "{{ messages }}",
    "special_tokens_map.json": "{}",
    "generation_config.json": "{}",
    "model.safetensors": "weights stay where they are",
}


def digest(letter):
    return "sha256:" + letter * 64


def card():
    return ModelCard(
        model_id="tutor",
        version="2",
        base_model=BaseModelInfo(id="acme/tiny", provider="acme"),
        domain=Domain(name="sums", languages=("en",)),
        training_data=TrainingData(
            sample_count=10, sources=(CardSource(name="rows.jsonl", type="file", percentage=100),)
        ),
        evaluation=CardEvaluation(baseline=Scores(), finetuned=TunedScores(factual_accuracy=0.5)),
        intended_use=IntendedUse(primary_use="Sums.", users=("pupils",)),
    )


@pytest.fixture
def contents(tmp_path):
    model = tmp_path / "merged"
    model.mkdir()
    for name, text in TOKENIZER.items():
        (model / name).write_text(text)
    gguf = tmp_path / "quantized/model-Q8_0.gguf"
    gguf.parent.mkdir()
    gguf.write_bytes(GGUF)
    return BundleContents(
        gguf=gguf,
        tokenizer=model,
        modelfile="FROM ./model-Q8_0.gguf\n",
        card=card(),
        api_page="# Calling\n",
        handoff=HandoffConfig(
            model_id="tutor",
            base_model="acme/tiny",
            quantization="Q8_0",
            max_tokens=64,
            temperature=0,
            supported_languages=("en",),
            domain="sums",
            validated_use_cases=(),
        ),
        license_note="Own work.\n",
        provenance=Provenance(
            base_model=digest("1"),
            adapter=digest("2"),
            merged=digest("3"),
            splits=digest("4"),
            config=digest("5"),
        ),
    )


def tree(folder):
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_bundle_holds_everything_and_nothing_else(tmp_path, contents):
    files, missing = write_bundle(tmp_path / "bundle", contents)
    assert missing == ()
    assert verify_bundle(tmp_path / "bundle") == ()
    assert sorted(tree(tmp_path / "bundle")) == [
        *("LICENSE", "Modelfile", "chat_template.jinja", "generation_config.json", "inference-api.md"),
        *("manifest.json", "model-Q8_0.gguf", "model-card.json", "model-card.md", "model-config.json"),
        *("special_tokens_map.json", "tokenizer.json", "tokenizer_config.json"),
    ]
    assert sorted(file.path for file in files) == sorted(tree(tmp_path / "bundle"))
    for file in files:
        content = (tmp_path / "bundle" / file.path).read_bytes()
        assert file.bytes == len(content)
        assert file.digest == "sha256:" + hashlib.sha256(content).hexdigest()


def test_manifest_records_files_and_origin(tmp_path, contents):
    files, _ = write_bundle(tmp_path / "bundle", contents)
    manifest = json.loads((tmp_path / "bundle/manifest.json").read_text())
    assert (manifest["name"], manifest["version"]) == ("tutor", "2")
    assert manifest["provenance"] == {
        "base_model": digest("1"), "adapter": digest("2"), "merged": digest("3"), "splits": digest("4"),
        "config": digest("5"),
    }  # fmt: skip
    recorded = [file.model_dump() for file in files if file.path != "manifest.json"]
    assert manifest["files"] == recorded


def test_card_is_written_for_people_and_for_programs(tmp_path, contents):
    write_bundle(tmp_path / "bundle", contents)
    assert json.loads((tmp_path / "bundle/model-card.json").read_text()) == card().record()
    assert "# tutor" in (tmp_path / "bundle/model-card.md").read_text()
    assert json.loads((tmp_path / "bundle/model-config.json").read_text())["model_type"] == "causal-lm"


def test_model_file_is_the_same_file_under_a_second_name(tmp_path, contents):
    write_bundle(tmp_path / "bundle", contents)
    bundled = tmp_path / "bundle/model-Q8_0.gguf"
    assert bundled.samefile(contents.gguf)
    assert not bundled.is_symlink()


def test_a_link_to_the_model_file_is_followed(tmp_path, contents):
    link = tmp_path / "latest.gguf"
    link.symlink_to(contents.gguf)
    write_bundle(tmp_path / "bundle", contents.model_copy(update={"gguf": link}))
    assert not (tmp_path / "bundle/latest.gguf").is_symlink()
    assert (tmp_path / "bundle/latest.gguf").read_bytes() == GGUF
    assert verify_bundle(tmp_path / "bundle") == ()


def test_model_file_is_copied_to_another_file_system(tmp_path, contents):
    memory = Path("/dev/shm")
    if not memory.is_dir() or memory.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("one file system only")
    target = memory / f"bundle-test-{os.getpid()}"
    try:
        write_bundle(target, contents)
        assert not (target / "model-Q8_0.gguf").samefile(contents.gguf)
        assert (target / "model-Q8_0.gguf").read_bytes() == GGUF
        assert verify_bundle(target) == ()
    finally:
        shutil.rmtree(target, ignore_errors=True)


def test_writing_again_changes_nothing(tmp_path, contents):
    first = write_bundle(tmp_path / "bundle", contents)
    before = tree(tmp_path / "bundle")
    assert write_bundle(tmp_path / "bundle", contents) == first
    assert tree(tmp_path / "bundle") == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["bundle", "merged", "quantized"]


def test_a_new_bundle_leaves_nothing_of_the_old_one(tmp_path, contents):
    write_bundle(tmp_path / "bundle", contents)
    write_bundle(tmp_path / "bundle", contents.model_copy(update={"license_note": None}))
    assert not (tmp_path / "bundle/LICENSE").exists()
    assert verify_bundle(tmp_path / "bundle") == ()


def test_a_bundle_can_be_made_again_from_itself(tmp_path, contents):
    write_bundle(tmp_path / "bundle", contents)
    own = {"gguf": tmp_path / "bundle/model-Q8_0.gguf", "tokenizer": tmp_path / "bundle"}
    write_bundle(tmp_path / "bundle", contents.model_copy(update=own))
    assert (tmp_path / "bundle/model-Q8_0.gguf").read_bytes() == GGUF
    assert verify_bundle(tmp_path / "bundle") == ()


def test_a_failed_write_leaves_the_old_bundle(tmp_path, contents):
    write_bundle(tmp_path / "bundle", contents)
    before = tree(tmp_path / "bundle")
    unwritable = contents.model_copy(update={"api_page": "\ud800"})
    with pytest.raises(UnicodeEncodeError):
        write_bundle(tmp_path / "bundle", unwritable)
    assert tree(tmp_path / "bundle") == before
    assert not list(tmp_path.glob(".*.part"))


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "*.gguf"])
def test_required_files_that_are_not_there_are_named(tmp_path, contents, name):
    (contents.gguf if name == "*.gguf" else contents.tokenizer / name).unlink()
    _, missing = write_bundle(tmp_path / "bundle", contents)
    assert missing == (name,)
    assert verify_bundle(tmp_path / "bundle") == (f"{name}: required, and not in the manifest",)


def test_optional_files_are_not_required(tmp_path, contents):
    for name in ("special_tokens_map.json", "generation_config.json"):
        assert name not in REQUIRED_FILES
        (contents.tokenizer / name).unlink()
    _, missing = write_bundle(tmp_path / "bundle", contents)
    assert missing == ()


def rewrite(path, content):
    """Replace a file instead of writing into it: the bundle's model file has a second name."""
    path.unlink()
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        (lambda b: (b / "Modelfile").unlink(), "Modelfile: missing"),
        (lambda b: rewrite(b / "model-Q8_0.gguf", GGUF[:-1] + b"?"), "model-Q8_0.gguf: changed"),
        (
            lambda b: rewrite(b / "model-Q8_0.gguf", GGUF[:-1]),
            "model-Q8_0.gguf: changed (10243 bytes, not 10244)",
        ),
        (lambda b: (b / "notes.txt").write_text("x"), "notes.txt: not in the manifest"),
        (lambda b: (b / "sub").mkdir() or (b / "sub/x").write_text("x"), "sub/x: not in the manifest"),
        (lambda b: (b / "elsewhere").symlink_to(b.parent), "elsewhere: not in the manifest"),
        (
            lambda b: (b / "manifest.json").unlink(),
            "manifest.json: missing or unreadable (FileNotFoundError)",
        ),
        (
            lambda b: (b / "manifest.json").write_text("{"),
            "manifest.json: missing or unreadable (ValidationError)",
        ),
    ],
)
def test_every_kind_of_damage_is_found(tmp_path, contents, damage, problem):
    write_bundle(tmp_path / "bundle", contents)
    damage(tmp_path / "bundle")
    assert verify_bundle(tmp_path / "bundle") == (problem,)


@pytest.mark.parametrize("name", ["model-Q8_0.gguf", "manifest.json"])
def test_a_link_in_place_of_a_file_is_found(tmp_path, contents, name):
    write_bundle(tmp_path / "bundle", contents)
    file = tmp_path / "bundle" / name
    file.rename(tmp_path / "moved")
    file.symlink_to(tmp_path / "moved")
    assert verify_bundle(tmp_path / "bundle") == (f"{name}: a link, not a file",)


def test_several_problems_come_together_and_sorted(tmp_path, contents):
    write_bundle(tmp_path / "bundle", contents)
    (tmp_path / "bundle/tokenizer.json").unlink()
    (tmp_path / "bundle/extra").write_text("")
    (tmp_path / "bundle/LICENSE").write_text("Other work")
    assert verify_bundle(tmp_path / "bundle") == (
        "LICENSE: changed",
        "extra: not in the manifest",
        "tokenizer.json: missing",
    )


def test_a_folder_that_is_no_bundle(tmp_path):
    assert verify_bundle(tmp_path / "nowhere") == (
        "manifest.json: missing or unreadable (FileNotFoundError)",
    )


def test_provenance_takes_digests_only():
    with pytest.raises(ValidationError, match="base_model"):
        Provenance(base_model="acme/tiny", merged=digest("3"), splits=digest("4"), config=digest("5"))
