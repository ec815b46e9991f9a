"""A base whose adapter is switched between answers: each answers as the model folded from it."""

from pathlib import Path

import pytest
import torch
from peft import PeftModel

from core.data.chat import ChatTokenizer
from core.data.templates import template_for
from core.deployment.switching import AdapterRuntime
from core.errors import DataError, ModelError
from core.evaluation.generation import TorchResponder
from core.models.loading import load_folder
from core.models.scratch import LlamaShape, build_llama, save_model
from tests.core.models.test_merging import trained

ASKED = [{"role": "user", "content": "What is 3 + 4?"}]
MOST = 12


def lively_base(tokenizer, folder: Path) -> Path:
    """A random model whose likeliest tokens are words, unlike those of one fresh from the initializer."""
    shape = LlamaShape(
        vocab_size=400, hidden_size=32, intermediate_size=64, layers=2, heads=4, kv_heads=2, max_positions=128
    )
    model = build_llama(shape, tokenizer, seed=8)
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            if tensor.ndim == 2 and "embed" not in name:
                tensor.mul_(6)
    save_model(model, tokenizer, folder)
    return folder


@pytest.fixture(scope="module")
def base_folder(tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return lively_base(tokenizer, tmp_path_factory.mktemp("lively") / "base")


@pytest.fixture(scope="module")
def chat(tokenizer) -> ChatTokenizer:
    return ChatTokenizer(tokenizer, template_for(tokenizer, "chatml"))


@pytest.fixture(scope="module")
def folders(base_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    place = tmp_path_factory.mktemp("adapters")
    return {
        "plain": trained(base_folder, place / "a"),
        "strong": trained(base_folder, place / "b", lora_alpha=24),
    }


@pytest.fixture(scope="module")
def runtime(base_folder: Path, folders: dict[str, Path], chat: ChatTokenizer) -> AdapterRuntime:
    return AdapterRuntime.load(base_folder, folders, chat)


def alone(model, chat: ChatTokenizer) -> str:
    return TorchResponder(model, chat, 1).answer([ASKED], MOST, lambda done, total: None)[0].text


def say(runtime: AdapterRuntime, name: str | None, **settings) -> str:
    runtime.use(name)
    return runtime.generate(ASKED, max_new_tokens=MOST, **settings).text


def test_each_answers_as_it_does_alone_and_switching_back_gives_the_first_again(
    runtime: AdapterRuntime, base_folder: Path, folders: dict[str, Path], chat: ChatTokenizer
):
    wanted: dict[str | None, str] = {
        name: alone(PeftModel.from_pretrained(load_folder(base_folder), folder), chat)
        for name, folder in folders.items()
    }
    wanted[None] = alone(load_folder(base_folder), chat)
    assert len(set(wanted.values())) == 3
    for name in ("plain", "strong", "plain", None, "strong", None):
        assert say(runtime, name) == wanted[name]
        assert runtime.in_use == name


def test_the_first_is_in_use_at_first_and_an_unknown_one_changes_nothing(
    base_folder: Path, folders: dict[str, Path], chat: ChatTokenizer
):
    runtime = AdapterRuntime.load(base_folder, folders, chat)
    assert runtime.names == ("plain", "strong") and runtime.in_use == "plain"
    with pytest.raises(ModelError, match="no adapter named other"):
        runtime.use("other")
    assert runtime.in_use == "plain"


def test_the_pieces_are_the_answer_and_come_one_by_one(runtime: AdapterRuntime):
    pieces: list[str] = []
    runtime.use("strong")
    answer = runtime.generate(ASKED, max_new_tokens=40, stream=pieces.append)
    assert "".join(pieces).strip() == answer.text
    assert len(pieces) > 3 and all(pieces)
    assert answer.n_generated == len(answer.token_ids) <= 40
    assert answer.n_prompt == len(runtime.chat.prompt_ids(_messages()))


def _messages():
    from core.data.examples import as_messages

    return as_messages(ASKED)


def test_characters_of_several_tokens_are_never_shown_in_halves(chat: ChatTokenizer):
    from core.deployment.switching import Streamer

    told: list[str] = []
    streamer = Streamer(chat, told.append)
    ids = chat.tokenizer("€ ☃ ok", add_special_tokens=False)["input_ids"]
    assert len(ids) > 7  # the tokenizer knows neither sign, so each is several tokens
    streamer.put(torch.tensor([[1, 2, 3]]))
    for token in ids:
        streamer.put(torch.tensor([token]))
    streamer.end()
    assert "".join(told) == "€ ☃ ok" and not any("\ufffd" in piece for piece in told)


def test_the_token_that_ends_an_answer_is_not_part_of_it(chat: ChatTokenizer):
    from core.deployment.switching import Streamer

    told: list[str] = []
    streamer = Streamer(chat, told.append)
    streamer.put(torch.tensor([[1, 2, 3]]))
    ids = chat.tokenizer("ok", add_special_tokens=False)["input_ids"]
    for token in (*ids, min(chat.stop_ids)):
        streamer.put(torch.tensor([token]))
    streamer.end()
    assert streamer.stopped and streamer.ids == ids and "".join(told) == "ok"


def test_sampling_repeats_itself_and_differs_from_the_likeliest(runtime: AdapterRuntime):
    state = torch.get_rng_state()
    first = say(runtime, "plain", temperature=1.5)
    assert first == say(runtime, "plain", temperature=1.5) != say(runtime, "plain")
    assert first != say(runtime, "plain", temperature=1.5, seed=4)
    assert torch.equal(torch.get_rng_state(), state)


def test_an_answer_ends_with_the_window_and_a_prompt_must_leave_room(runtime: AdapterRuntime):
    window = runtime.window
    assert window == 128
    used = runtime.generate(ASKED, max_new_tokens=1).n_prompt
    runtime.use("strong")
    long = runtime.generate(ASKED, max_new_tokens=500)
    assert long.n_prompt + long.n_generated <= window
    assert long.finish == ("context" if long.n_generated == window - used else "stop")
    assert runtime.generate(ASKED, max_new_tokens=2).finish in ("length", "stop")
    with pytest.raises(DataError, match="the model's window 128"):
        runtime.generate([{"role": "user", "content": "What is it? " * 60}], max_new_tokens=4)
