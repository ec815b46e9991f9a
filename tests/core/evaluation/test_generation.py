"""Batched greedy generation against one-at-a-time generation by Hugging Face."""

import pytest
import torch

from core.data.chat import ChatTokenizer
from core.data.templates import template_for
from core.evaluation.generation import TorchResponder

PROMPTS = [
    [{"role": "user", "content": text}]
    for text in ("What is 3 + 4?", "Hi", "Ama buys a pen for GH₵3 and a book for GH₵8. How much?", "Ɛte sɛn?")
]


@pytest.fixture
def chat(tokenizer) -> ChatTokenizer:
    return ChatTokenizer(tokenizer, template_for(tokenizer, "chatml"))


def alone(model, chat: ChatTokenizer, messages, new: int) -> str:
    from core.data.examples import as_messages

    ids = chat.prompt_ids(as_messages(messages))
    made: list[int] = []
    for _ in range(new):
        with torch.no_grad():
            best = int(model(input_ids=torch.tensor([ids + made])).logits[0, -1].argmax())
        if best in chat.stop_ids:
            break
        made.append(best)
    return chat.tokenizer.decode(made, skip_special_tokens=True).strip()


@pytest.mark.parametrize("batch_size", [1, 3, 8])
def test_batched_answers_equal_uncached_one_by_one_answers(model, chat: ChatTokenizer, batch_size: int):
    seen = []
    responder = TorchResponder(model, chat, batch_size)
    answers = responder.answer(PROMPTS, 12, lambda done, total: seen.append((done, total)))
    assert [a.text for a in answers] == [alone(model.eval(), chat, p, 12) for p in PROMPTS]
    assert seen[-1] == (4, 4)
    assert [a.prompt_ids[0] for a in answers] == [chat.tokenizer.bos_token_id] * 4


def test_generation_stops_at_the_end_of_turn(model, chat: ChatTokenizer):
    end = chat.end_of_turn_ids[0]
    with torch.no_grad():
        # Tie every hidden state to the end-of-turn token: it is then always the most likely one.
        model.model.norm.weight.zero_()
        model.lm_head = torch.nn.Linear(32, 400, bias=True)
        model.lm_head.weight.zero_()
        model.lm_head.bias.zero_()
        model.lm_head.bias[end] = 1.0
    answers = TorchResponder(model, chat, 2).answer(PROMPTS[:2], 12, lambda done, total: None)
    assert [(a.text, a.n_generated) for a in answers] == [("", 0), ("", 0)]


def test_a_base_that_ships_sampling_habits_is_still_asked_greedily(model, chat: ChatTokenizer):
    expected = [alone(model.eval(), chat, p, 12) for p in PROMPTS]
    model.generation_config.repetition_penalty = 5.0
    model.generation_config.temperature = 2.0
    model.generation_config.do_sample = True
    answers = TorchResponder(model, chat, 4).answer(PROMPTS, 12, lambda done, total: None)
    assert [a.text for a in answers] == expected
