import json

import numpy as np
import onnx
import pytest
import torch

from core.deployment.onnx import OnnxRunner, runner
from tests.core.deployment.onnx.conftest import WINDOW, draw


def torch_logits(model, ids):
    with torch.no_grad():
        return model(ids).logits.numpy()


def greedy(model, prompt, count):
    made = model.generate(
        torch.tensor([prompt]), max_new_tokens=count, do_sample=False, eos_token_id=None, pad_token_id=0
    )
    return made[0, len(prompt) :].tolist()


@pytest.mark.parametrize("shape", [(1, 1), (1, 64), (1, 128), (2, 200), (3, 17)])
def test_logits_are_torchs_at_every_batch_size_and_length(shape, fp32: OnnxRunner, model):
    ids = draw(model.config.vocab_size, *shape)
    wanted = torch_logits(model, ids)
    assert np.abs(wanted).max() > 1
    assert np.abs(fp32.logits(ids.numpy()) - wanted).max() < 1e-5


def test_logits_read_token_by_token_are_those_of_one_pass(fp32: OnnxRunner, model):
    ids = draw(model.config.vocab_size, 2, 100)
    assert np.abs(fp32.decode_logits(ids.numpy()) - torch_logits(model, ids)).max() < 1e-5


def test_greedy_text_with_the_cache_is_torchs_also_in_a_padded_batch(fp32, model):
    prompts = [draw(model.config.vocab_size, n, seed=n).tolist() for n in (3, 40, 17, 1)]
    wanted = [greedy(model, prompt, 24) for prompt in prompts]
    assert fp32.generate(prompts, 24, frozenset()) == wanted
    assert [fp32.generate([prompt], 24, frozenset())[0] for prompt in prompts] == wanted


def test_a_window_of_attention_slides_in_one_pass_and_in_steps(model, fp32: OnnxRunner):
    ids = draw(model.config.vocab_size, 2, 5 * WINDOW)
    wanted = torch_logits(model, ids)
    wide = type(model)(type(model.config).from_dict({**model.config.to_dict(), "sliding_window": 4096}))
    wide.load_state_dict(model.state_dict())
    assert np.abs(torch_logits(wide.eval(), ids) - wanted).max() > 1e-2
    assert np.abs(fp32.logits(ids.numpy()) - wanted).max() < 1e-5
    assert np.abs(fp32.decode_logits(ids.numpy()) - wanted).max() < 1e-5


def test_the_optimized_graph_is_the_one_that_is_compared(fp32: OnnxRunner):
    graph = onnx.load(fp32.path, load_external_data=False).graph
    operators = {node.op_type for node in graph.node}
    assert {"SkipSimplifiedLayerNormalization", "RotaryEmbedding", "FusedMatMul"} <= operators
    assert "ReduceMean" not in operators


def test_generation_ends_at_a_stop_token_of_each_row(fp32: OnnxRunner, model):
    prompts = [draw(model.config.vocab_size, n, seed=n).tolist() for n in (5, 9)]
    free = fp32.generate(prompts, 12, frozenset())
    stop = free[0][4]
    wanted = [row[: row.index(stop)] if stop in row else row for row in free]
    assert fp32.generate(prompts, 12, frozenset({stop})) == wanted
    assert len(wanted[0]) <= 4


def test_a_long_prompt_is_read_in_pieces_without_a_difference(fp32: OnnxRunner, model, monkeypatch):
    prompts = [draw(model.config.vocab_size, n, seed=n).tolist() for n in (3, 60)]
    whole = fp32.generate(prompts, 10, frozenset())
    monkeypatch.setattr(runner, "LOGITS_BYTES", 4 * fp32.vocabulary * 2 * 7)
    scores, state = fp32.begin(prompts)
    assert scores.shape[1] == 60 % 7
    assert state.mask.shape == (2, 60)
    assert fp32.generate(prompts, 10, frozenset()) == whole


def test_nothing_asked_gives_nothing(fp32: OnnxRunner):
    assert fp32.generate([], 5, frozenset()) == []
    assert fp32.generate([[5, 6]], 0, frozenset()) == [[]]


def test_positions_count_a_rows_own_tokens():
    # Rotary embeddings would forgive a shift, but not those that change with the largest position (longrope).
    mask = np.array([[0, 0, 1, 1], [1, 1, 1, 1], [0, 1, 1, 1]])
    assert runner.count_positions(mask).tolist() == [[0, 0, 0, 1], [0, 1, 2, 3], [0, 0, 1, 2]]


def test_a_text_that_outgrows_its_angles_is_read_again(exports, model, monkeypatch):
    opened = OnnxRunner(exports["fp32"], threads=1)
    prompts = [draw(model.config.vocab_size, n, seed=n).tolist() for n in (4, 18)]
    plain = opened.generate(prompts, 12, frozenset())
    read: list[int] = []
    whole = OnnxRunner.advance
    monkeypatch.setattr(
        OnnxRunner, "advance", lambda self, ids, *rest: read.append(ids.shape[1]) or whole(self, ids, *rest)
    )
    opened.switch = 20
    # These angles do not change, so a second reading must change nothing; it happens once, at 21 tokens, and the
    # prompt that comes to it runs alone.
    assert opened.generate(prompts, 12, frozenset()) == plain
    assert read == [4, *[1] * 11, 18, 1, 1, 1, 21, *[1] * 8]
    read.clear()
    opened.switch = 10
    opened.begin(prompts)
    assert read == [18]


def test_only_longrope_has_a_length_at_which_angles_change(tmp_path, exports):
    def told(**config: object) -> int | None:
        (tmp_path / "config.json").write_text(json.dumps(config))
        return runner.read_switch(tmp_path)

    assert runner.read_switch(tmp_path) is None
    assert runner.read_switch(exports["fp32"]) is None
    assert told(rope_parameters={"rope_type": "longrope", "original_max_position_embeddings": 256}) == 256
    assert told(original_max_position_embeddings=4096, rope_scaling={"type": "longrope"}) == 4096
    assert told(rope_parameters={"rope_type": "llama3", "original_max_position_embeddings": 64}) is None
