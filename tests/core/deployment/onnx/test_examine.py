import json
from pathlib import Path

import numpy as np
import pytest
from transformers import GenerationConfig

from core.data.chat import ChatTokenizer
from core.deployment.onnx import OnnxBench, OnnxResponder, OnnxRunner, benchmark, examine_onnx, verify
from core.errors import ModelError
from core.evaluation.config import EvaluationConfig
from core.models.loading import load_tokenizer
from core.quantization.reference import Passage, model_logits, write_reference

# The longest first: batches go by length, answers by question.
QUESTIONS = ["What is 12 - 7? Say it twice.", "Maakye!", "How many pens?"]


@pytest.fixture(scope="module")
def chat(model_folder: Path) -> ChatTokenizer:
    tokenizer = load_tokenizer(str(model_folder))
    return ChatTokenizer(tokenizer, str(tokenizer.chat_template))


@pytest.fixture(scope="module")
def references(model, tmp_path_factory):
    generator = np.random.default_rng(0)
    passages = [Passage(generator.integers(5, 400, size=30 + n).tolist(), 12 + n) for n in range(4)]
    return write_reference(
        model_logits(model), passages, tmp_path_factory.mktemp("references"), model.config.vocab_size
    )


@pytest.fixture
def test_rows(tmp_path: Path) -> Path:
    file = tmp_path / "test.jsonl"
    rows = [
        {
            "id": str(n),
            "conversations": [{"role": "user", "content": q}, {"role": "assistant", "content": "5"}],
        }
        for n, q in enumerate(QUESTIONS)
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file


def torch_answers(model, chat, most):
    import torch

    from core.data.records import Message

    settings = GenerationConfig(
        do_sample=False, max_new_tokens=most, eos_token_id=sorted(chat.stop_ids), pad_token_id=0
    )
    answers = []
    for question in QUESTIONS:
        ids = chat.prompt_ids([Message(role="user", content=question)])
        made = model.generate(torch.tensor([ids]), generation_config=settings)[0, len(ids) :].tolist()
        kept = made[: next((i for i, token in enumerate(made) if token in chat.stop_ids), len(made))]
        answers.append({"answer": chat.tokenizer.decode(kept, skip_special_tokens=True).strip()})
    return answers


def test_the_float32_model_is_no_further_away_than_its_rounding(fp32, references):
    prompt, steps = verify(fp32, references)
    assert prompt.max_abs < 1e-5
    assert steps.max_abs < 1e-5
    assert prompt.argmax_agreement == steps.argmax_agreement == 1
    assert prompt.tokens == steps.tokens == sum(len(reference.ids) for reference in references)


def test_coarser_types_are_further_away(exports, references):
    apart = [verify(OnnxRunner(exports[kind], threads=1), references) for kind in ("fp32", "int8", "int4")]
    for which in (0, 1):
        assert apart[0][which].kl < apart[1][which].kl < apart[2][which].kl


def test_a_broken_cache_shows_in_the_steps_alone(fp32, references, monkeypatch):
    whole = OnnxRunner.advance

    def forgetful(self, ids, state, seen=None):
        scores, after = whole(self, ids, state, seen)
        return scores, after._replace(cache=list(reversed(after.cache)))

    monkeypatch.setattr(OnnxRunner, "advance", forgetful)
    prompt, steps = verify(fp32, references)
    assert prompt.max_abs < 1e-5
    assert steps.max_abs > 1e-2


def test_logits_that_are_no_numbers_are_refused(fp32, references, monkeypatch):
    monkeypatch.setattr(
        OnnxRunner, "logits", lambda self, ids: np.full((*ids.shape, self.vocabulary), np.nan, np.float32)
    )
    with pytest.raises(ModelError, match="no numbers"):
        verify(fp32, references)


def test_the_benchmark_counts_passes_and_new_tokens_alone(fp32):
    ticks = iter(np.arange(0, 1e4, 0.5))
    measured = benchmark(
        fp32, [5, 6, 7], warm_up=2, iterations=4, new_tokens=10, seconds=1e4, clock=lambda: next(ticks)
    )
    assert measured.iterations == 4
    assert measured.prompt_tokens == 3
    assert (measured.mean_ms, measured.std_ms) == (500, 0)
    assert measured.min_ms == measured.max_ms == 500
    assert measured.tokens_per_second == 20
    assert measured.provider == "CPUExecutionProvider"


def test_a_slow_model_is_timed_less_often_but_three_times_at_least(fp32):
    ticks = iter(np.arange(0, 1e6, 10.0))
    measured = benchmark(fp32, [5, 6], iterations=100, new_tokens=1, seconds=20, clock=lambda: next(ticks))
    assert measured.iterations == 3


def test_answers_come_in_the_order_of_the_questions_whatever_the_batch(fp32, chat):
    prompts = [[{"role": "user", "content": question}] for question in QUESTIONS]
    seen: list[tuple[int, int]] = []
    one = OnnxResponder(fp32, chat, 1).answer(prompts, 12, lambda done, total: seen.append((done, total)))
    both = OnnxResponder(fp32, chat, 2).answer(prompts, 12, lambda done, total: None)
    assert one == both
    assert seen == [(1, 3), (2, 3), (3, 3)]
    assert one[0].prompt_ids != one[1].prompt_ids
    assert all(answer.n_generated <= 12 for answer in one)


def test_a_given_answer_is_as_likely_as_torch_finds_it(fp32, model, chat):
    from core.evaluation.generation import TorchResponder

    prompts = [[{"role": "user", "content": question}] for question in QUESTIONS] + [[]]
    references = [{"role": "assistant", "content": f"It is {n}."} for n in range(4)]
    found = OnnxResponder(fp32, chat, 2).score(prompts, references, lambda done, total: None)
    wanted = TorchResponder(model, chat, 2).score(prompts, references, lambda done, total: None)
    assert [each.tokens for each in found] == [each.tokens for each in wanted]
    assert [each.nll for each in found] == pytest.approx([each.nll for each in wanted], rel=1e-5)
    assert [each.end for each in found] == pytest.approx([each.end for each in wanted], rel=1e-4)
    assert min(each.nll for each in found) > 1


def test_the_report_holds_distance_answers_and_speed(exports, model, chat, references, test_rows):
    config = EvaluationConfig(max_new_tokens=12, batch_size=2, resamples=1000)
    bench = OnnxBench(torch_answers(model, chat, 12), references, test_rows, config, chat)
    measured, rows = examine_onnx(
        exports["fp32"], "fp32", bench, shown="models/onnx/fp32", threads=1, tick=lambda done, total: None
    )
    assert measured.text_agreement == 1
    assert measured.evaluation is not None
    assert measured.evaluation.arm == "onnx-fp32"
    assert measured.evaluation.n == len(rows) == 3
    assert measured.distance.max_abs < 1e-5
    assert measured.path == "models/onnx/fp32"
    assert measured.digest == measured.evaluation.model_digest
    assert measured.bytes == sum(file.stat().st_size for file in exports["fp32"].glob("model.onnx*"))
    assert measured.benchmark.tokens_per_second > 0
    other = bench._replace(merged=[{"answer": "no"}, *bench.merged[1:]])
    again, _ = examine_onnx(
        exports["fp32"], "fp32", other, shown="", threads=1, tick=lambda done, total: None
    )
    assert again.text_agreement == pytest.approx(2 / 3)
