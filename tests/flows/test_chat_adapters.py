"""`factory chat --adapter`: two adapters on one base, switched in the conversation."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from core.errors import ConfigError, ModelError
from flows.chat import ChatOptions, chat_with
from flows.chat_adapters import named_folders
from tests.core.deployment.test_switching import lively_base
from tests.core.models.test_merging import trained

ROOT = Path(__file__).parents[2]
QUESTION = "What is 3 + 4?"


@pytest.fixture(scope="module")
def workspace(tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a run leaves behind once it has trained, as far as chat looks at it."""
    place = tmp_path_factory.mktemp("ws")
    base_folder = lively_base(tokenizer, place / "base")
    shutil.copytree(base_folder, place / "models/merged")
    (place / ".factory/phases").mkdir(parents=True)
    (place / ".factory/base.json").write_text(json.dumps({"folder": str(base_folder), "digest": "-"}))
    record = {"result": {"artifact": {"path": "{workspace}/models/merged"}}}
    (place / ".factory/phases/finetune.json").write_text(json.dumps(record))
    trained(base_folder, place / "one")
    trained(base_folder, place / "two", lora_alpha=24)
    return place


def options(workspace: Path, *names: str, **more) -> ChatOptions:
    return ChatOptions(adapters=tuple(f"{n}={workspace / n}" for n in names), max_tokens=8, **more)


def told(capsys, workspace: Path, *names: str, **more) -> str:
    assert chat_with(workspace, options(workspace, *names, prompt=QUESTION, **more)) == 0
    return capsys.readouterr().out


def test_two_adapters_differ_and_switching_back_gives_the_first_again(capsys, monkeypatch, workspace: Path):
    alone = {name: told(capsys, workspace, name).strip() for name in ("one", "two")}
    assert alone["one"] != alone["two"]
    lines = iter(
        [QUESTION, "/clear", "/adapter two", QUESTION, "/clear", "/adapter none", QUESTION, "/clear",
         "/adapter one", QUESTION, "/adapter three", "/adapter", "/quit"]
    )  # fmt: skip
    monkeypatch.setattr("builtins.input", lambda prompt: next(lines))
    assert chat_with(workspace, options(workspace, "one", "two")) == 0
    said = [line.strip() for line in capsys.readouterr().out.splitlines() if line.strip()]
    head, said = said[:3], said[3:]
    assert "/adapter NAME" in head[1] and head[2] == "adapters: [one]  two  none"
    answers = [said[0], said[2], said[4], said[6]]
    assert answers[0] == answers[3] == alone["one"] and answers[1] == alone["two"]
    assert answers[2] not in alone.values()
    assert [said[1], said[3], said[5]] == [
        "adapters: one  [two]  none", "adapters: one  two  [none]", "adapters: [one]  two  none",
    ]  # fmt: skip
    assert said[7].startswith("no adapter named three; one of one, two")
    assert said[8] == "adapters: [one]  two  none"


def test_the_bundles_habits_count_where_there_is_a_bundle(capsys, workspace: Path):
    greedy = told(capsys, workspace, "one")
    (workspace / "bundle").mkdir()
    (workspace / "bundle/model-config.json").write_text(
        json.dumps({"temperature": 1.7, "system_prompt": "Be brief."})
    )
    drawn = told(capsys, workspace, "one")
    plain = told(capsys, workspace, "one", temperature=0.0)
    shutil.rmtree(workspace / "bundle")
    assert len({greedy, drawn, plain}) == 3


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["one"], "is not NAME=FOLDER"),
        (["=folder"], "is not NAME=FOLDER"),
        (["one="], "is not NAME=FOLDER"),
        (["none=."], "the name none stands for the bare base"),
        (["a=.", "a=."], "the name a is given twice"),
        (["a=gone/away"], "there is no folder gone/away"),
    ],
)
def test_a_wrong_adapter_option_is_one_message(given: list[str], words: str):
    with pytest.raises(ConfigError, match=words) as caught:
        named_folders(given)
    assert caught.value.where == "--adapter" and caught.value.fix


def test_a_folder_may_hold_an_equals_sign(tmp_path: Path):
    (tmp_path / "lr=1").mkdir()
    assert named_folders([f" a = {tmp_path / 'lr=1'}"]) == {"a": tmp_path / "lr=1"}


def test_a_folder_that_is_no_adapter_is_refused(workspace: Path, tmp_path: Path):
    with pytest.raises(ModelError, match="is no LoRA adapter"):
        chat_with(workspace, ChatOptions(adapters=(f"x={tmp_path}",), prompt="Hi"))


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("adapter_config.json", None, "adapter_config.json is missing"),
        ("adapter_config.json", b"{", "adapter_config.json is not JSON"),
        ("adapter_model.safetensors", None, "has no adapter_model.safetensors"),
        ("adapter_model.safetensors", b"short", "adapter_model.safetensors is"),
    ],
)
def test_a_damaged_adapter_is_refused_before_pytorch_and_the_base_are_loaded(
    workspace: Path, tmp_path: Path, name: str, content: bytes | None, words: str
):
    damaged = shutil.copytree(workspace / "one", tmp_path / "damaged")
    (damaged / name).unlink() if content is None else (damaged / name).write_bytes(content)
    code = (
        "import sys\nfrom core.errors import ModelError\nfrom flows.chat import ChatOptions, chat_with\n"
        "from pathlib import Path\n"
        "try: chat_with(Path(sys.argv[1]), ChatOptions(adapters=tuple(sys.argv[2:]), prompt='Hi'))\n"
        "except ModelError as error: print(error, [n for n in ('torch', 'transformers') if n in sys.modules])\n"
    )
    given = [str(workspace), f"fine={workspace / 'one'}", f"x={damaged}"]
    done = subprocess.run(
        [sys.executable, "-c", code, *given], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert words in done.stdout and str(damaged) in done.stdout
    assert done.stdout.rstrip().endswith("[]")


def test_an_adapter_of_other_weights_is_refused(workspace: Path, tmp_path: Path):
    strange = shutil.copytree(workspace / "one", tmp_path / "strange")
    stated = json.loads((strange / "base.json").read_text())
    (strange / "base.json").write_text(json.dumps({**stated, "name": "owner/other", "digest": "sha256:0"}))
    with pytest.raises(ModelError, match="was trained on owner/other"):
        chat_with(workspace, ChatOptions(adapters=(f"x={strange}",), prompt="Hi"))


def test_a_workspace_that_never_trained_says_what_to_do_first(tmp_path: Path, workspace: Path):
    with pytest.raises(ConfigError, match=r"no model was trained here(.|\n)*--until finetune"):
        chat_with(tmp_path, options(workspace, "one"))


def test_a_base_that_is_gone_is_named(workspace: Path, tmp_path: Path):
    moved = shutil.copytree(workspace, tmp_path / "moved")
    (moved / ".factory/base.json").write_text(json.dumps({"folder": str(tmp_path / "nowhere")}))
    with pytest.raises(ConfigError, match="nowhere is gone"):
        chat_with(moved, options(moved, "one"))


def test_without_adapters_the_command_says_how_to_bring_some(capsys, monkeypatch):
    from flows.chat import Conversation, Habits, converse

    lines = iter(["/adapter one", "/quit"])
    monkeypatch.setattr("builtins.input", lambda prompt: next(lines))
    assert converse(Conversation(None, Habits(), ChatOptions())) == 0
    assert "--adapter NAME=FOLDER" in capsys.readouterr().out


def test_a_bad_option_on_the_command_line_is_exit_code_2_without_a_traceback(tmp_path: Path):
    done = subprocess.run(
        [sys.executable, "-m", "flows.cli", "chat", str(tmp_path), "--adapter", "x=nowhere"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert "there is no folder nowhere" in done.stderr and "Traceback" not in done.stderr


def test_help_names_the_option():
    done = subprocess.run(
        [sys.executable, "-m", "flows.cli", "chat", "--help"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert "--adapter" in done.stdout and "NAME=FOLDER" in done.stdout


def test_a_bundle_that_changed_after_its_gates_is_refused_by_what_changed(tmp_path: Path):
    (tmp_path / ".factory").mkdir(), (tmp_path / "bundle").mkdir()
    (tmp_path / ".factory/release.json").write_text(json.dumps({"digest": "sha256:0"}))
    (tmp_path / "bundle/model-config.json").write_text(json.dumps({"temperature": 0.0}))
    with pytest.raises(ConfigError, match=r"not the one that passed the gates \(manifest\.json: missing"):
        chat_with(tmp_path, ChatOptions(prompt="Hi"))
