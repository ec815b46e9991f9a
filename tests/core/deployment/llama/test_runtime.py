"""The runtime answers like transformers, and survives what kills llama.cpp."""

import itertools
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from core.data.chat import ChatTokenizer
from core.data.records import Message
from core.deployment.gguf import write_gguf
from core.deployment.llama import LlamaRuntime
from core.errors import DataError, EngineFailed, ModelError
from tests.core.deployment.gguf import tiny

ROOT = Path(__file__).resolve().parents[4]
MESSAGES = [
    {"role": "system", "content": "Bua ntɛm."},
    {"role": "user", "content": "Sɛ wotua GH₵17 a,\n\nɛka  sɛn? <|end|>"},
]


def test_prompts_equal_those_of_transformers(checkpoint: Path, runtime: LlamaRuntime) -> None:
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    chat = ChatTokenizer(tokenizer, tokenizer.chat_template)
    for turns in (MESSAGES, MESSAGES[1:], [*MESSAGES, {"role": "assistant", "content": "12"}, MESSAGES[1]]):
        wanted = chat.prompt_ids([Message.model_validate(turn) for turn in turns])
        ids = runtime.encode(turns)
        assert ids == wanted
        # "<|end|>" in the question stays text: as many real ones as there are turns.
        assert ids.count(tokenizer.eos_token_id) == len(turns)
        assert ids.count(tokenizer.bos_token_id) == 1


def test_a_tokenizer_that_adds_bos_does_not_double_it(tmp_path: Path) -> None:
    folder = tiny.save(tmp_path / "model", "Llama", tiny.byte_level(adds_bos=True))
    write_gguf(folder, tmp_path / "m.gguf", dtype="f32", name="tiny")
    with LlamaRuntime(tmp_path / "m.gguf", context_length=128) as runtime:
        assert runtime.encode(MESSAGES).count(0) == 1
        assert runtime.tokenize("a", add_special=True)[0] == 0


def test_greedy_answers_equal_those_of_transformers(checkpoint: Path, runtime: LlamaRuntime) -> None:
    model: Any = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
    ids = runtime.encode(MESSAGES)
    made = model.generate(torch.tensor([ids]), max_new_tokens=24, do_sample=False, pad_token_id=1)[
        0, len(ids) :
    ]
    said = runtime.generate(MESSAGES, max_new_tokens=24)
    assert said.token_ids == [token for token in made.tolist() if token != 2]
    assert (said.n_prompt, said.n_generated) == (len(ids), len(said.token_ids))
    assert said.text == AutoTokenizer.from_pretrained(checkpoint).decode(
        said.token_ids, skip_special_tokens=True
    )


def speller(folder: Path, checkpoint: Path, text: str) -> Path:
    """Write a model that says a text, token after token, and then stops, whatever it is asked.

    Every token's embedding is its own axis, the layers add nothing, and the output row of
    each token points at the axis of the token before it.
    """
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    chain = [
        tokenizer.convert_tokens_to_ids("<|assistant|>"),
        *tokenizer(text).input_ids,
        tokenizer.eos_token_id,
    ]
    assert len(set(chain)) == len(chain)
    saved = tiny.save(folder / "model", "Llama", tokenizer, tie_word_embeddings=False, hidden_size=512)
    weights = {name: torch.zeros_like(w) for name, w in load_file(saved / "model.safetensors").items()}
    size = weights["lm_head.weight"].shape[0]
    weights["model.embed_tokens.weight"][:, :size] = torch.eye(size)
    weights["model.norm.weight"] += 1
    for before, after in itertools.pairwise(chain):
        weights["lm_head.weight"][after, before] = 1
    save_file(weights, saved / "model.safetensors", metadata={"format": "pt"})
    write_gguf(saved, folder / "model.gguf", dtype="f32", name="speller")
    return folder / "model.gguf"


def test_it_stops_at_the_stop_token_and_streams_whole_characters(tmp_path: Path, checkpoint: Path) -> None:
    # Seldom letters and a flag: none of them is one token, and all bytes differ.
    text = "aЖ好 ð"
    with LlamaRuntime(speller(tmp_path, checkpoint, text), context_length=128) as runtime:
        parts: list[str] = []
        said = runtime.generate(MESSAGES, max_new_tokens=50, stream=parts.append)
        assert said.text == text == "".join(parts)
        assert said.finish == "stop"
        assert len(said.token_ids) > len(text)
        assert all(part and "\ufffd" not in part for part in parts)
        assert 2 not in said.token_ids
        cut = runtime.generate(MESSAGES, max_new_tokens=3)
        assert (cut.finish, cut.n_generated) == ("length", 3)
        assert runtime.generate(MESSAGES, max_new_tokens=50).text == text


def test_streaming_changes_nothing(runtime: LlamaRuntime) -> None:
    parts: list[str] = []
    plain = runtime.generate(MESSAGES, max_new_tokens=40)
    streamed = runtime.generate(MESSAGES, max_new_tokens=40, stream=parts.append)
    assert streamed.token_ids == plain.token_ids
    assert "".join(parts) == plain.text


def test_temperature_draws_by_seed(runtime: LlamaRuntime) -> None:
    def draw(seed: int) -> list[int]:
        return runtime.generate(MESSAGES, max_new_tokens=20, temperature=1.5, seed=seed).token_ids

    assert draw(1) == draw(1)
    assert len({tuple(draw(seed)) for seed in range(4)}) > 1


def test_a_shared_beginning_does_not_change_answers(runtime: LlamaRuntime, gguf: Path) -> None:
    start = runtime.encode(MESSAGES)
    prompts = [start, [*start, 40, 41, 42], [*start, 40, 50], start[:5], start]
    together = [runtime.generate(prompt, max_new_tokens=12) for prompt in prompts]
    for prompt, answer in zip(prompts, together, strict=True):
        with LlamaRuntime(gguf, context_length=700, exact=True) as fresh:
            assert fresh.generate(prompt, max_new_tokens=12).token_ids == answer.token_ids


def test_long_prompts_run_in_several_batches(checkpoint: Path, runtime: LlamaRuntime) -> None:
    model: Any = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
    ids = [(7 * n) % 300 for n in range(600)]
    with torch.inference_mode():
        wanted = model(input_ids=torch.tensor([ids])).logits[0].numpy()
    found = runtime.logits(ids)
    assert found.shape == wanted.shape
    assert abs(found - wanted).max() < 1e-4
    assert runtime.generate(ids, max_new_tokens=1).token_ids == [int(wanted[-1].argmax())]


def test_the_window_is_a_limit_with_a_clear_message(gguf: Path) -> None:
    with LlamaRuntime(gguf, context_length=32) as runtime:
        with pytest.raises(DataError, match="40 tokens, the context window 32"):
            runtime.generate([7] * 40, max_new_tokens=1)
        with pytest.raises(DataError, match="at least one"):
            runtime.generate([], max_new_tokens=1)
        with pytest.raises(DataError, match="token ids below"):
            runtime.generate([10**6], max_new_tokens=1)
        said = runtime.generate([7] * 20, max_new_tokens=100)
        assert said.finish in ("context", "stop")
        assert said.n_generated <= 13


def test_memory_and_load_time_are_those_of_the_child(runtime: LlamaRuntime) -> None:
    assert 10 < runtime.memory_mb() < 1000
    assert runtime.load_seconds > 0


def test_a_file_without_template_is_named(tmp_path: Path) -> None:
    tokenizer = tiny.byte_level()
    tokenizer.chat_template = None
    folder = tiny.save(tmp_path / "model", "Llama", tokenizer)
    write_gguf(folder, tmp_path / "m.gguf", dtype="f32", name="tiny")
    with LlamaRuntime(tmp_path / "m.gguf") as runtime, pytest.raises(ModelError, match="chat template"):
        runtime.encode(MESSAGES)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda data: data[: len(data) // 2], "cannot load"),
        (lambda data: data[:60], "cannot load"),
        (lambda data: data[:24] + bytes(range(256)) * 20, "cannot load"),
        (lambda data: b"XXXX" + data[4:], "not a GGUF file"),
        (lambda data: b"", "not a GGUF file"),
    ],
)
def test_broken_files_are_refused(
    damage: Callable[[bytes], bytes], message: str, tmp_path: Path, gguf: Path
) -> None:
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(damage(gguf.read_bytes()))
    with pytest.raises(ModelError, match=message):
        LlamaRuntime(broken)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"gone\.gguf"):
        LlamaRuntime(tmp_path / "gone.gguf")


def children() -> list[psutil.Process]:
    return [p for p in psutil.Process().children() if p.status() != psutil.STATUS_ZOMBIE]


def test_a_crash_becomes_an_error_and_stays_one(gguf: Path) -> None:
    before = set(children())
    with LlamaRuntime(gguf, context_length=64) as runtime:
        (child,) = set(children()) - before
        child.send_signal(signal.SIGABRT)
        for _ in range(2):
            with pytest.raises(EngineFailed, match="exit code -6"):
                runtime.generate([5], max_new_tokens=1)
        with pytest.raises(EngineFailed):
            runtime.memory_mb()


def test_the_child_is_gone_after_the_context_and_use_after_it_fails(gguf: Path) -> None:
    before = set(children())
    with LlamaRuntime(gguf, context_length=64) as runtime:
        (child,) = set(children()) - before
    assert not child.is_running()
    with pytest.raises(EngineFailed):
        runtime.tokenize("a")
    runtime.close()


def test_an_interrupted_answer_leaves_no_child(gguf: Path) -> None:
    before = set(children())

    def interrupt(_: str) -> None:
        raise KeyboardInterrupt

    with LlamaRuntime(gguf, context_length=600) as runtime:
        (child,) = set(children()) - before
        with pytest.raises(KeyboardInterrupt):
            runtime.generate(MESSAGES, max_new_tokens=500, stream=interrupt)
        with pytest.raises(EngineFailed):
            runtime.tokenize("a")
    assert not child.is_running()


PARENT = """
import signal, sys, time
from pathlib import Path
# A shell that starts the tests in the background has it ignored.
signal.signal(signal.SIGINT, signal.default_int_handler)
from core.deployment.llama import LlamaRuntime
runtime = LlamaRuntime(Path(sys.argv[1]), context_length=900)
print(runtime._process.pid, flush=True)
if sys.argv[2] == "busy":
    while True:
        runtime.generate([5] * 800, max_new_tokens=90, temperature=2.0)
time.sleep(600)
"""


def ended(process: psutil.Process) -> bool:
    """Wait for the end; how soon the system then collects the remains is not ours."""
    deadline = time.monotonic() + 60
    while process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
        if time.monotonic() > deadline:
            process.kill()
            return False
        time.sleep(0.02)
    return True


@pytest.mark.parametrize("state", ["idle", "busy"])
@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGINT])
def test_the_child_does_not_outlive_its_parent(state: str, sent: signal.Signals, gguf: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", PARENT, str(gguf), state],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        cwd=ROOT,
    ) as parent:
        assert parent.stdout is not None
        child = psutil.Process(int(parent.stdout.readline()))
        try:
            assert os.getpgid(child.pid) != os.getpgid(parent.pid)
            time.sleep(0.2)
            parent.send_signal(sent)
            parent.wait(60)
        finally:
            parent.kill()
    assert ended(child)


def test_the_worker_speaks_json_lines_only(gguf: Path) -> None:
    asked = '{"op": "tokenize", "text": "GH\\u20b517", "add_special": false}\n'
    command = [sys.executable, "-m", "core.deployment.llama.worker", str(gguf), "--context", "64"]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, cwd=ROOT, text=True
    ) as worker:
        assert worker.stdin is not None
        assert worker.stdout is not None
        ready = json.loads(worker.stdout.readline())
        worker.stdin.write(asked)
        worker.stdin.flush()
        reply = json.loads(worker.stdout.readline())
        worker.stdin.close()
        assert worker.wait(20) == 0
    assert ready["done"]["vocabulary"] > 300
    assert len(reply["done"]["ids"]) > 3


def test_the_worker_needs_neither_torch_nor_transformers() -> None:
    heavy = "sorted({'torch', 'transformers'} & set(sys.modules))"
    code = f"import sys, core.deployment.llama.worker; print({heavy})"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
