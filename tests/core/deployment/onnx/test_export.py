import errno
import importlib.util
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from transformers import Mamba2Config, Mamba2ForCausalLM

from core.data.chat import ChatTokenizer
from core.data.records import Message
from core.deployment.onnx import OnnxRunner, export, traced_graph
from core.deployment.onnx.export import _work
from core.deployment.onnx.graph import trace
from core.errors import ConfigError, EngineFailed, ModelError
from core.models.loading import load_tokenizer
from tests.core.deployment.onnx.conftest import HEADS, KINDS, WIDTH, draw


def size(folder: Path) -> int:
    return (folder / "model.onnx.data").stat().st_size


def test_inputs_and_outputs_have_the_names_that_other_tools_expect(exports):
    graph = onnx.load(exports["fp32"] / "model.onnx", load_external_data=False).graph
    past = [f"past_key_values.{n}.{part}" for n in (0, 1) for part in ("key", "value")]
    present = [f"present.{n}.{part}" for n in (0, 1) for part in ("key", "value")]
    assert [each.name for each in graph.input] == ["input_ids", "attention_mask", "position_ids", *past]
    assert [each.name for each in graph.output] == ["logits", *present]
    shapes = {each.name: [d.dim_param or d.dim_value for d in each.type.tensor_type.shape.dim]
              for each in (*graph.input, *graph.output)}  # fmt: skip
    assert shapes["input_ids"] == ["batch_size", "sequence_length"]
    assert shapes["attention_mask"] == ["batch_size", "total_sequence_length"]
    assert shapes["past_key_values.1.value"] == ["batch_size", HEADS, "past_sequence_length", WIDTH]
    assert shapes["present.1.value"] == ["batch_size", HEADS, "total_sequence_length", WIDTH]
    assert shapes["logits"][:2] == ["batch_size", "sequence_length"]


def test_weights_are_stored_once_and_shrink_with_the_type(exports, model):
    weights = model.num_parameters()
    assert 3.9 * weights <= size(exports["fp32"]) < 4.1 * weights
    assert size(exports["fp16"]) < 2.1 * weights
    # Scale and zero point of a block of 32 cost 5 bytes, of 4-bit weights 4.5; the tied table has 8 bits.
    assert size(exports["int8"]) < 1.2 * weights
    table = model.get_input_embeddings().weight.numel()
    assert size(exports["int4"]) < 0.68 * (weights - table) + 1.2 * table


@pytest.mark.parametrize(("kind", "most"), [("fp32", 1e-5), ("fp16", 5e-3), ("int8", 0.1), ("int4", 1.5)])
def test_types_differ_from_torch_by_their_rounding(kind, most, exports, model):
    import torch

    ids = draw(model.config.vocab_size, 2, 60)
    with torch.no_grad():
        wanted = model(ids).logits.numpy()
    runner = OnnxRunner(exports[kind], threads=1)
    at_once, by_steps = runner.logits(ids.numpy()), runner.decode_logits(ids.numpy())
    assert np.abs(at_once - wanted).max() < most
    assert np.abs(by_steps - wanted).max() < most
    assert np.abs(at_once - wanted).max() > (0 if kind == "fp32" else most / 100)


@pytest.mark.parametrize("kind", KINDS)
def test_no_path_of_this_machine_is_in_the_files(kind, exports):
    graph = (exports[kind] / "model.onnx").read_bytes()
    assert str(Path(__file__).parents[4]).encode() not in graph
    assert b".py" not in graph
    assert str(exports[kind].parent).encode() not in graph


def test_the_folder_answers_a_question_with_onnx_runtime_alone(exports, tmp_path):
    folder = tmp_path / "elsewhere"
    shutil.copytree(exports["int4"], folder)
    command = [sys.executable, "-I", str(folder / "run.py"), "Ama buys 3 pens.", "--max-new-tokens", "12"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    tokenizer = load_tokenizer(str(folder))
    chat = ChatTokenizer(tokenizer, str(tokenizer.chat_template))
    ids = chat.prompt_ids([Message(role="user", content="Ama buys 3 pens.")])
    stops = json.loads((folder / "generation_config.json").read_text())["eos_token_id"]
    ends = frozenset(stops if isinstance(stops, list) else [stops])
    made = OnnxRunner(folder, threads=1).generate([ids], 12, ends)[0]
    assert made
    assert done.stdout.strip() == str(tokenizer.decode(made, skip_special_tokens=True)).strip()


@pytest.mark.parametrize("text", ["plain", "a {0}b{0}", "{0}", "Ɛyɛ {0}{1}\n{1} x"])
def test_a_control_token_that_a_question_spells_out_stays_text(text, exports):
    folder = exports["int4"]
    found = importlib.util.spec_from_file_location("run", folder / "run.py")
    script = importlib.util.module_from_spec(found)
    found.loader.exec_module(script)
    tokenizer = load_tokenizer(str(folder))
    special = [str(t) for t in tokenizer.added_tokens_decoder.values() if t.special and len(str(t)) > 1]
    asked = text.format(special[0], special[-1])
    chat = ChatTokenizer(tokenizer, str(tokenizer.chat_template))
    plain = script.Tokenizer.from_file(str(folder / "tokenizer.json"))
    rendered = script.render([{"role": "user", "content": script.cut(plain, asked)}])
    assert script.encode(plain, rendered) == chat.prompt_ids([Message(role="user", content=asked)])


def test_the_template_loses_the_marks_of_trained_tokens(model_folder, exports, tmp_path):
    marked = tmp_path / "marked"
    shutil.copytree(model_folder, marked)
    template = "{% for m in messages %}{% generation %}{{ m['content'] }}{% endgeneration %}{% endfor %}"
    (marked / "chat_template.jinja").write_text(template)
    export(marked, tmp_path / "out", "fp32", threads=1, traced=exports["fp32"])
    written = (tmp_path / "out" / "chat_template.jinja").read_text()
    assert "generation" not in written
    assert "m['content']" in written


def test_the_readme_says_what_the_model_takes(exports):
    text = (exports["int8"] / "README.md").read_text()
    assert "`position_ids`" in text
    assert "N from 0 to 1" in text
    assert "of 8 bits" in text


def test_the_script_reads_again_a_text_that_outgrows_its_angles(exports, model, tmp_path, monkeypatch):
    folder = tmp_path / "long"
    shutil.copytree(exports["fp32"], folder)
    found = importlib.util.spec_from_file_location("run", folder / "run.py")
    script = importlib.util.module_from_spec(found)
    found.loader.exec_module(script)
    session = onnxruntime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])
    prompt = draw(model.config.vocab_size, 15).tolist()
    wanted = OnnxRunner(folder, threads=1).generate([prompt], 9, frozenset())[0]
    assert script.generate(session, prompt, set(), 9) == wanted
    rope = {"rope_type": "longrope", "original_max_position_embeddings": 20}
    (folder / "config.json").write_text(json.dumps({"rope_parameters": rope}))
    lengths = []

    class Watched:
        get_inputs = session.get_inputs

        def run(self, names, feeds):
            lengths.append(feeds["input_ids"].shape[1])
            return session.run(names, feeds)

    assert script.generate(Watched(), prompt, set(), 9) == wanted
    assert lengths == [15, 1, 1, 1, 1, 1, 21, 1, 1]


def test_a_truncated_model_is_refused_and_nothing_is_left(model_folder, tmp_path):
    broken = tmp_path / "broken"
    shutil.copytree(model_folder, broken)
    weights = broken / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    with pytest.raises(ModelError) as refused:
        export(broken, tmp_path / "out" / "fp32", "fp32", threads=1)
    assert str(broken) in str(refused.value)
    assert not (tmp_path / "out").exists()


def test_a_model_with_other_state_than_keys_and_values_is_refused():
    config = Mamba2Config(
        vocab_size=64, hidden_size=32, num_hidden_layers=1, state_size=8, num_heads=4, head_dim=16, n_groups=1
    )
    with pytest.raises(ModelError, match="ONNX") as refused:
        trace(Mamba2ForCausalLM(config).eval())
    assert "quantization.onnx" in refused.value.fix


def test_a_full_disk_is_told_as_such(exports, tmp_path):
    # A device that is always full, in the place of the file.
    (tmp_path / "model.onnx").symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left") as full:
        _work(["shrink", str(exports["fp32"]), str(tmp_path), "fp32", "1"])
    assert full.value.errno == errno.ENOSPC


def test_an_exporter_that_dies_takes_nobody_with_it():
    with pytest.raises(EngineFailed, match="died"):
        _work(["unheard-of"])


def test_without_the_packages_one_message_names_the_extra(model_folder, tmp_path, monkeypatch):
    there = importlib.util.find_spec
    gone = "onnxruntime"
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == gone else there(name)
    )
    for call in (
        lambda: export(model_folder, tmp_path / "out", "fp32", threads=1),
        lambda: OnnxRunner(tmp_path, threads=1),
        lambda: traced_graph(model_folder, tmp_path / "out", threads=1).__enter__(),
    ):
        with pytest.raises(ConfigError, match=r"pip install 'data-factory\[onnx\]'"):
            call()
    assert list(tmp_path.iterdir()) == []


def test_a_folder_without_a_model_or_with_a_broken_one_is_refused(exports, tmp_path):
    with pytest.raises(ModelError, match="no ONNX model"):
        OnnxRunner(tmp_path, threads=1)
    (tmp_path / "model.onnx").write_bytes(b"not a model")
    with pytest.raises(ModelError, match="cannot open"):
        OnnxRunner(tmp_path, threads=1)
    shutil.copy(exports["fp32"] / "model.onnx", tmp_path / "model.onnx")
    whole = (exports["fp32"] / "model.onnx.data").read_bytes()
    (tmp_path / "model.onnx.data").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ModelError, match="cannot open"):
        OnnxRunner(tmp_path, threads=1)


def test_a_foreign_graph_is_refused(tmp_path):
    values = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1]) for name in ("x", "y")]
    graph = onnx.helper.make_graph([onnx.helper.make_node("Abs", ["x"], ["y"])], "g", values[:1], values[1:])
    opset = onnx.helper.make_opsetid("", 20)
    onnx.save(onnx.helper.make_model(graph, opset_imports=[opset], ir_version=10), tmp_path / "model.onnx")
    with pytest.raises(ModelError, match="cache"):
        OnnxRunner(tmp_path, threads=1)
