"""Batched generation, sampling and scoring against one-at-a-time computations by Hugging Face."""

import random

import numpy as np
import pytest
import torch
import transformers

from core.data.chat import ChatTokenizer
from core.data.examples import as_messages
from core.data.templates import template_for
from core.errors import ResourceError
from core.evaluation import generation
from core.evaluation.generation import TorchResponder
from core.evaluation.responders import Sampler, Scorer

PROMPTS = [
    [{"role": "user", "content": text}]
    for text in ("What is 3 + 4?", "Hi", "Ama buys a pen for GH₵3 and a book for GH₵8. How much?", "Ɛte sɛn?")
]
SAMPLING = {"temperature": 1.0, "top_p": 0.95, "max_new_tokens": 8}


def quiet(done: int, total: int) -> None:
    pass


@pytest.fixture
def chat(tokenizer) -> ChatTokenizer:
    return ChatTokenizer(tokenizer, template_for(tokenizer, "chatml"))


def alone(model, chat: ChatTokenizer, messages, new: int) -> str:
    ids = chat.prompt_ids(as_messages(messages))
    made: list[int] = []
    for _ in range(new):
        with torch.no_grad():
            best = int(model(input_ids=torch.tensor([ids + made])).logits[0, -1].argmax())
        if best in chat.stop_ids:
            break
        made.append(best)
    return chat.tokenizer.decode(made, skip_special_tokens=True).strip()


def always(model, token: int) -> None:
    """Make one token the most likely one everywhere."""
    with torch.no_grad():
        model.model.norm.weight.zero_()
        model.lm_head = torch.nn.Linear(32, 400, bias=True)
        model.lm_head.weight.zero_()
        model.lm_head.bias.zero_()
        model.lm_head.bias[token] = 1.0


def short_of_memory(model, rows: int) -> list[int]:
    """Let the model run out of memory on more rows than these; returns the sizes it was given."""
    sizes: list[int] = []

    def check(module, args, kwargs) -> None:
        sizes.append(len(kwargs["input_ids"]))
        if sizes[-1] > rows:
            raise torch.OutOfMemoryError("out of memory")

    model.register_forward_pre_hook(check, with_kwargs=True)
    return sizes


@pytest.mark.parametrize("batch_size", [1, 3, 8])
def test_batched_answers_equal_uncached_one_by_one_answers(model, chat: ChatTokenizer, batch_size: int):
    seen = []
    responder = TorchResponder(model, chat, batch_size)
    answers = responder.answer(PROMPTS, 12, lambda done, total: seen.append((done, total)))
    assert [a.text for a in answers] == [alone(model.eval(), chat, p, 12) for p in PROMPTS]
    assert seen[-1] == (4, 4)
    assert [a.prompt_ids[0] for a in answers] == [chat.tokenizer.bos_token_id] * 4


def test_generation_stops_at_the_end_of_turn(model, chat: ChatTokenizer):
    always(model, chat.end_of_turn_ids[0])
    sizes = short_of_memory(model, 99)
    answers = TorchResponder(model, chat, 2).answer(PROMPTS[:2], 12, quiet)
    assert [(a.text, a.n_generated) for a in answers] == [("", 0), ("", 0)]
    assert len(sizes) == 1


def test_a_base_that_ships_sampling_habits_is_still_asked_greedily(model, chat: ChatTokenizer):
    expected = [alone(model.eval(), chat, p, 12) for p in PROMPTS]
    model.generation_config.repetition_penalty = 5.0
    model.generation_config.temperature = 2.0
    model.generation_config.do_sample = True
    answers = TorchResponder(model, chat, 4).answer(PROMPTS, 12, quiet)
    assert [a.text for a in answers] == expected


def test_the_model_is_given_back_as_it_was(model, chat: ChatTokenizer):
    model.train()
    model.model.layers[0].eval()
    model.config.use_cache = False
    habits = model.generation_config
    before = (random.getstate()[1], np.random.get_state()[1].tolist(), torch.get_rng_state().tolist())
    responder = TorchResponder(model, chat, 2)
    responder.answer(PROMPTS[:1], 2, quiet)
    responder.sample(PROMPTS[:1], 2, seed=1, tick=quiet, **SAMPLING)
    responder.score(PROMPTS[:1], [{"role": "assistant", "content": "7"}], quiet)
    assert model.training and model.model.layers[1].training and not model.model.layers[0].training
    assert model.config.use_cache is False
    assert model.generation_config is habits
    assert (random.getstate()[1], np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()) == before


def test_a_failure_gives_the_model_back_too(model, chat: ChatTokenizer):
    model.train()
    model.config.use_cache = False
    short_of_memory(model, 0)
    with pytest.raises(ResourceError, match="single question"):
        TorchResponder(model, chat, 4).answer(PROMPTS, 4, quiet)
    assert model.training and model.config.use_cache is False


def test_too_little_memory_shows_at_once_and_halves_the_batch(model, chat: ChatTokenizer):
    expected = [a.text for a in TorchResponder(model, chat, 1).answer(PROMPTS, 6, quiet)]
    lengths = [len(chat.prompt_ids(as_messages(p))) for p in PROMPTS]
    widths = []
    model.register_forward_pre_hook(
        lambda module, args, kwargs: widths.append(kwargs["input_ids"].shape[1]), with_kwargs=True
    )
    sizes = short_of_memory(model, 2)
    answers = TorchResponder(model, chat, 4).answer(PROMPTS, 6, quiet)
    assert [a.text for a in answers] == expected
    assert sizes[0] == 4 and set(sizes[1:]) == {2}
    assert widths[0] == max(lengths)
    widths.clear()
    TorchResponder(model, chat, 2).answer(PROMPTS, 1, quiet)
    assert widths == [max(lengths), sorted(lengths)[1]]


def test_a_seed_draws_the_same_answers_again_and_another_seed_others(model, chat: ChatTokenizer):
    responder = TorchResponder(model, chat, 4)
    first = responder.sample(PROMPTS, 3, seed=5, tick=quiet, **SAMPLING)
    torch.rand(7)
    assert responder.sample(PROMPTS, 3, seed=5, tick=quiet, **SAMPLING) == first
    assert responder.sample(PROMPTS, 3, seed=6, tick=quiet, **SAMPLING) != first
    assert [len(group) for group in first] == [3] * 4
    assert all(
        a.prompt_ids == chat.prompt_ids(as_messages(p))
        for p, g in zip(PROMPTS, first, strict=True)
        for a in g
    )
    assert any(len({a.text for a in group}) > 1 for group in first)


def test_all_samples_of_a_batch_come_from_one_call(model, chat: ChatTokenizer):
    sizes = short_of_memory(model, 99)
    TorchResponder(model, chat, 8).sample(PROMPTS, 4, seed=1, tick=quiet, **{**SAMPLING, "max_new_tokens": 1})
    assert sizes == [8, 8]


@pytest.mark.parametrize(("sharpness", "temperature", "top_p"), [(8, 0.5, 1.0), (8, 2.0, 1.0), (8, 1.0, 0.5)])
def test_sampling_follows_temperature_and_nucleus(model, chat: ChatTokenizer, sharpness, temperature, top_p):
    ids = chat.prompt_ids(as_messages(PROMPTS[0]))
    with torch.no_grad():
        model.lm_head.weight.mul_(sharpness)
        logits = model.eval()(input_ids=torch.tensor([ids])).logits[0, -1]
    sure, order = torch.softmax(logits / temperature, -1).sort(descending=True)
    kept = sure * ((sure.cumsum(0) - sure) < top_p)
    wanted = {int(token): float(share) for token, share in zip(order, kept / kept.sum(), strict=True)}
    responder = TorchResponder(model, chat, 8)
    n, settings = 3000, {"temperature": temperature, "top_p": top_p, "seed": 2, "max_new_tokens": 1}
    drawn = responder.sample(PROMPTS[:1], n, tick=quiet, **settings)[0]
    names = [chat.tokenizer.decode([token], skip_special_tokens=True).strip() for token in range(400)]
    shares = {text: sum(wanted[token] for token in range(400) if names[token] == text) for text in set(names)}
    for text, share in shares.items():
        assert sum(a.text == text for a in drawn) / n == pytest.approx(share, abs=0.04)


def test_no_top_k_is_applied_that_nobody_asked_for(model, chat: ChatTokenizer):
    settings = {"temperature": 2.0, "top_p": 1.0, "seed": 2, "max_new_tokens": 1}
    drawn = TorchResponder(model, chat, 8).sample(PROMPTS[:1], 1000, tick=quiet, **settings)[0]
    assert len({a.text for a in drawn}) > 150


def test_scores_are_the_losses_of_training(model, chat: ChatTokenizer):
    from core.data.records import Conversation

    system = [{"role": "system", "content": "Be short."}]
    talk = [*PROMPTS[0], {"role": "assistant", "content": "7."}, {"role": "user", "content": "And 5 + 5?"}]
    prompts = [*PROMPTS, system + PROMPTS[0], talk]
    references = [
        {"role": "assistant", "content": text}
        for text in ("7", "Hello there!", "GH₵11", "Ɛyɛ.", "Seven", "10")
    ]
    scored = TorchResponder(model, chat, 4).score(prompts, references, quiet)
    for prompt, reference, score in zip(prompts, references, scored, strict=True):
        turns = as_messages([*prompt, reference])
        example = chat.encode(Conversation(id="x", messages=tuple(turns)))[-1]
        asked = len(chat.prompt_ids(as_messages(prompt)))
        labels = [label if place >= asked else -100 for place, label in enumerate(example.labels)]
        with torch.no_grad():
            loss = model.eval()(
                input_ids=torch.tensor([example.input_ids]), labels=torch.tensor([labels])
            ).loss
        count = sum(label != -100 for label in labels)
        assert score.tokens == count
        assert score.nll == pytest.approx(float(loss) * count, rel=1e-5)
        # The end of turn is among them, and its share is told apart.
        assert labels[-1] == chat.end_of_turn_ids[0] or labels[-2] == chat.end_of_turn_ids[0]
        assert 0 < score.end < score.nll


def test_long_plain_texts_are_scored_in_windows_every_token_once(model, chat: ChatTokenizer, monkeypatch):
    monkeypatch.setattr(generation, "WINDOW", 16)
    text = "Ama buys a pen for GH₵3 and a book for GH₵8. She pays GH₵11. " * 2
    score = TorchResponder(model, chat, 2).score([[]], [{"role": "assistant", "content": text}], quiet)[0]
    ids = chat.tokenizer(text, add_special_tokens=False)["input_ids"]
    assert score.tokens == len(ids) + 1
    total = 0.0
    for window in chat.encode_document(text, 16):
        row = torch.tensor([window.input_ids])
        with torch.no_grad():
            loss = model.eval()(input_ids=row, labels=torch.tensor([window.labels])).loss
        total += float(loss) * sum(label != -100 for label in window.labels)
    assert score.nll == pytest.approx(total, rel=1e-5)


def test_scoring_halves_batches_and_keeps_logits_within_bounds(model, chat: ChatTokenizer, monkeypatch):
    references = [{"role": "assistant", "content": text} for text in ("7", "Hello!", "GH₵11", "Yes")]
    whole = TorchResponder(model, chat, 4).score(PROMPTS, references, quiet)
    sizes = short_of_memory(model, 3)
    again = TorchResponder(model, chat, 4).score(PROMPTS, references, quiet)
    assert sizes == [4, 2, 2]
    assert [s.nll for s in again] == pytest.approx([s.nll for s in whole], rel=1e-5)
    monkeypatch.setattr("core.evaluation.likelihood.CELLS", 1)
    sizes.clear()
    TorchResponder(model, chat, 4).score(PROMPTS, references, quiet)
    assert sizes == [1, 1, 1, 1]


def test_a_pytorch_model_can_score_and_sample(model, chat: ChatTokenizer):
    responder = TorchResponder(model, chat, 1)
    assert isinstance(responder, Scorer) and isinstance(responder, Sampler)
    assert responder.window == 128
    assert responder.prompt_length(PROMPTS[1]) == len(chat.prompt_ids(as_messages(PROMPTS[1])))


COMMON = {
    "vocab_size": 400, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 256, "head_dim": 8, "pad_token_id": 1, "bos_token_id": 0,
}  # fmt: skip
SLIDING = {
    "layer_types": ["sliding_attention", "full_attention"],
    "sliding_window": 8,
    "query_pre_attn_scalar": 8,
}
KINDS = {
    "Gemma3Text": SLIDING, "Gemma2": SLIDING, "Mistral": {"sliding_window": 8},
    "Qwen2": {}, "Qwen3": {}, "Phi3": {}, "Llama": {},
}  # fmt: skip
CLASSES = {"Gemma3Text": "Gemma3ForCausalLM"}


@pytest.mark.parametrize("kind", KINDS)
def test_an_answer_does_not_depend_on_the_rest_of_its_batch(kind: str, chat: ChatTokenizer):
    settings = {**COMMON, **KINDS[kind]}
    if kind in ("Qwen2", "Phi3", "Llama"):
        settings.pop("head_dim")
    config = getattr(transformers, f"{kind}Config")(**settings)
    model = getattr(transformers, CLASSES.get(kind, f"{kind}ForCausalLM"))(config)
    draw = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn(weight.shape, generator=draw) * 0.2)
    # Prompts of 9 to 60 tokens, most of them longer than the sliding window.
    prompts = [[{"role": "user", "content": "What is 3 + 4? " * n}] for n in (1, 2, 5, 3)]
    one, many = TorchResponder(model, chat, 1), TorchResponder(model, chat, 4)
    answers = many.answer(prompts, 16, quiet)
    assert [a.text for a in answers] == [a.text for a in one.answer(prompts, 16, quiet)]
    assert [a.text for a in answers] == [alone(model.eval(), chat, p, 16) for p in prompts]
    references = [{"role": "assistant", "content": "7 " * n} for n in (3, 1, 2, 6)]
    apart, together = one.score(prompts, references, quiet), many.score(prompts, references, quiet)
    assert [s.nll for s in together] == pytest.approx([s.nll for s in apart], rel=1e-5)
