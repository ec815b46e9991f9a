"""The measuring child: rows, adapter, reference, systems and verdict."""

import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from core.data.chat import IGNORE_INDEX
from core.errors import ModelError
from core.models.loading import load_model
from core.models.random_base.making import make_model
from core.training.benchmark.adapter import B_STD, adapter_tensors, fill, gradients, plain_name
from core.training.benchmark.case import Case
from core.training.benchmark.measuring import Run
from core.training.benchmark.one import against_reference, measure_one
from core.training.benchmark.parity import compare, cosine, save_reference
from core.training.benchmark.reference import exact_base, make_reference
from core.training.benchmark.reports import Measured, Parity, bar_of, refusal, worse
from core.training.benchmark.rows import documents_of, draw, optimizer_step, parity_batch, split
from core.training.benchmark.systems import patch_with_liger, prepare, unsloth_arguments

LOAD = {"length": 48, "rows": 2, "steps": 2, "warmup": 1, "has_gpu": False, "parity_length": 48}


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bases")
    for name in ("llama-1b", "qwen3-4b", "gemma3-1b"):
        make_model(name, folder / name, tiny=True)
    return folder


def case_of(base: Path, system: str = "hf", **more: object) -> Case:
    return Case.model_validate({"system": system, "model": str(base), **LOAD, **more})


# Rows


def test_rows_are_the_same_for_every_system_and_differ_by_step():
    first, again, next_ = (
        optimizer_step(Case(system=system, model="", length=64, rows=2), 1000, step, 2)[0]
        for system, step in (("fused", 3), ("unsloth", 3), ("hf", 4))
    )
    assert torch.equal(first.input_ids, again.input_ids)
    assert not torch.equal(first.input_ids, next_.input_ids)
    assert first.input_ids.shape == (2, 64)
    assert bool((first.attention_mask == 1).all())


def test_packed_rows_are_full_and_no_label_crosses_a_boundary():
    case = Case(system="hf", model="", packed=True)
    batch = draw(case, 60_000, 4, 2048, "x")
    assert batch.position_ids is not None
    starts = batch.position_ids == 0
    assert int(starts.sum()) > 8
    assert bool((batch.labels[starts] == IGNORE_INDEX).all())
    assert torch.equal(batch.labels[~starts], batch.input_ids[~starts])
    documents = documents_of(batch)
    lengths = [d.input_ids.shape[1] for d in documents]
    assert sum(lengths) == batch.input_ids.numel() and min(lengths) >= 8
    assert torch.equal(torch.cat([d.input_ids for d in documents], 1).view(4, 2048), batch.input_ids)


@pytest.mark.parametrize("packed", [False, True])
def test_half_of_the_labels_are_those_at_the_end_of_each_document(packed: bool):
    batch = draw(Case(system="hf", model="", packed=packed, labels="half"), 1000, 2, 256, "x")
    for document in documents_of(batch):
        n = document.labels.shape[1]
        learned = (document.labels[0] != IGNORE_INDEX).tolist()
        assert learned == [False] * (n // 2) + [True] * (n - n // 2)


def test_micro_batches_put_together_are_the_batch():
    batch = draw(Case(system="hf", model="", packed=True), 1000, 5, 64, "x")
    parts = split(batch, 2)
    assert [len(part.input_ids) for part in parts] == [2, 2, 1]
    for field in batch._fields:
        assert torch.equal(torch.cat([getattr(part, field) for part in parts]), getattr(batch, field))


def test_unsloth_is_told_the_lengths_of_documents_in_one_long_row():
    batch = draw(Case(system="unsloth", model="", packed=True), 1000, 2, 64, "x")
    told = unsloth_arguments(batch)
    lengths = told["packed_seq_lengths"]
    assert lengths.dtype == torch.int32 and int(lengths.sum()) == told["input_ids"].shape[1] == 128
    ends = torch.cumsum(lengths, 0)
    starts = torch.nonzero(told["position_ids"][0] == 0).flatten()
    assert starts.tolist() == [0, *ends[:-1].tolist()]


# Adapter and parity


def test_an_adapter_depends_on_names_from_the_layer_on_and_on_the_seed():
    def built(prefix: str) -> torch.nn.Module:
        layer = torch.nn.ModuleDict(
            {"lora_A": torch.nn.Linear(64, 8, bias=False), "lora_B": torch.nn.Linear(8, 64, bias=False)}
        )
        model = torch.nn.ModuleDict({"layers": torch.nn.ModuleList([layer])})
        return torch.nn.ModuleDict({prefix: model})

    one, other, third = built("base"), built("wrapped"), built("base")
    fill(one, 0), fill(other, 0), fill(third, 1)
    mine, theirs, different = (adapter_tensors(m) for m in (one, other, third))
    assert set(mine) == set(theirs) == {"layers.0.lora_A.weight", "layers.0.lora_B.weight"}
    for name in mine:
        assert torch.equal(mine[name], theirs[name]) and not torch.equal(mine[name], different[name])
    a, b = mine["layers.0.lora_A.weight"], mine["layers.0.lora_B.weight"]
    assert 0.9 / 8 < float(a.detach().abs().max()) <= 1 / 8
    assert float(b.detach().std()) == pytest.approx(B_STD, rel=0.15)
    assert plain_name("model.layers.3.q.layers.x") == "layers.3.q.layers.x"


@pytest.mark.parametrize(
    ("changed", "least", "most"),
    [(lambda g: g * 3, 1.0, 1.0), (lambda g: -g, -1.0, -1.0), (lambda g: g * 0, 0.0, 0.0),
     (lambda g: g * math.nan, 0.0, 0.0), (lambda g: g * math.inf, 0.0, 0.0), (lambda g: g[:2], 0.0, 0.0)],
    ids=["scaled", "turned", "zero", "nan", "infinite", "other shape"],
)  # fmt: skip
def test_the_cosine_of_a_changed_gradient(changed, least: float, most: float):
    gradient = torch.randn(4, 5, generator=torch.Generator().manual_seed(0))
    assert least - 1e-9 <= cosine(gradient, changed(gradient)) <= most + 1e-9


def test_the_worst_tensor_is_named_and_missing_and_surplus_ones_count(tmp_path: Path):
    whole = {name: torch.randn(3, 3) for name in "abc"}
    save_reference(tmp_path / "r", 2.0, whole)
    same = compare(tmp_path / "r", 2.0, whole)
    assert (
        same.worst_cosine == pytest.approx(1)
        and same.tensors == 3
        and refusal(Measured(system="x", parity=same)) is None
    )
    assert compare(tmp_path / "r", 2.0, {k: whole[k] for k in "ac"}).worst_tensor == "b"
    assert compare(tmp_path / "r", 2.0, {**whole, "d": torch.ones(1)}).worst_tensor == "d"
    assert compare(tmp_path / "r", math.nan, whole).loss is None


@pytest.mark.parametrize(
    ("loss", "cosine_", "word"),
    [(2.0019, 1.0, None), (2.0021, 1.0, "loss"), (1.9979, 1.0, "loss"), (2.0, 0.999, None), (2.0, 0.99899, "cosine"),
     (None, 1.0, "not a number"), (2.0, -1.0, "cosine")],
)  # fmt: skip
def test_what_speed_may_be_shown(loss: float | None, cosine_: float, word: str | None):
    parity = Parity(loss=loss, reference_loss=2.0, worst_cosine=cosine_, worst_tensor="t", tensors=1)
    why = refusal(Measured(system="x", parity=parity))
    assert why is None if word is None else word in str(why)


@pytest.mark.parametrize(
    ("stock", "found", "is_shown"),
    [(None, 0.9989, False), (0.9995, 0.9989, False), (0.991, 0.991, True), (0.991, 0.9909, False),
     (0.979, 0.985, False), (0.0, 0.5, False), (0.991, 0.9995, True)],
)  # fmt: skip
def test_where_rounding_keeps_hf_below_the_bar_others_must_be_as_near_as_hf(stock, found, is_shown):
    def parity(value: float) -> Parity:
        return Parity(loss=2.0, reference_loss=2.0, worst_cosine=value, worst_tensor="t", tensors=1)

    bar = bar_of(None if stock is None else parity(stock))
    assert (refusal(Measured(system="x", parity=parity(found)), bar) is None) is is_shown


@pytest.mark.parametrize(
    ("loss", "word"), [(3.0, "loss 3"), (1.0, "loss 1"), (None, "not a number"), (2.0, None)]
)
def test_of_two_runs_a_wrong_loss_counts_though_the_others_gradient_is_farther(loss, word):
    wrong = Parity(loss=loss, reference_loss=2.0, worst_cosine=1.0, worst_tensor="a", tensors=1)
    right = Parity(loss=2.0, reference_loss=2.0, worst_cosine=0.9995, worst_tensor="b", tensors=1)
    for pair in ((wrong, right), (right, wrong)):
        both = worse(*pair)
        assert (both.worst_cosine, both.worst_tensor) == (0.9995, "b")
        why = refusal(Measured(system="x", parity=both))
        assert why is None if word is None else word in str(why)


def test_speed_without_a_comparison_may_not_be_shown():
    assert refusal(Measured(system="x"))


# The reference and the systems


def test_the_reference_holds_the_numbers_that_quantized_bytes_stand_for(bases: Path):
    case = case_of(bases / "llama-1b")
    exact, stored = exact_base(case), exact_base(case.model_copy(update={"storage": "bf16"}))
    held = load_model(case.model_block("hf"), trainable=True)
    name = "model.layers.1.mlp.down_proj"
    x = torch.randn(3, exact.config.intermediate_size)
    with torch.no_grad():
        mine, theirs = exact.get_submodule(name)(x), held.get_submodule(name)(x)
    assert torch.allclose(mine, theirs.float(), atol=1e-5)
    assert not torch.equal(exact.get_submodule(name).weight, stored.get_submodule(name).weight)
    assert exact.config._attn_implementation == "eager"
    assert {p.dtype for p in exact.parameters()} == {torch.float32}


@pytest.mark.parametrize(
    ("base", "system", "more"),
    [
        ("llama-1b", "fused", {}),
        ("llama-1b", "hf", {"packed": True, "labels": "half"}),
        ("llama-1b", "hf-plain", {"checkpointing": False}),
        ("qwen3-4b", "fused", {"packed": True, "storage": "bf16"}),
        ("qwen3-4b", "hf-plain", {"packed": True}),
        ("gemma3-1b", "fused", {"labels": "half", "storage": "bf16"}),
        ("gemma3-1b", "hf", {"storage": "bf16"}),
    ],
)
def test_every_system_computes_what_the_reference_does(
    base: str, system: str, more: dict, bases: Path, tmp_path: Path
):
    case = case_of(bases / base, system, reference=str(tmp_path / "r"), **more)
    make_reference(case, tmp_path / "r")
    parity = against_reference(prepare(case), case)
    assert parity.loss_error < 1e-5 and parity.worst_cosine > 0.99999
    # Two layers, seven projections, A and B.
    assert parity.tensors == 28


def test_an_adapter_that_is_not_the_references_is_refused(bases: Path, tmp_path: Path):
    case = case_of(bases / "llama-1b", reference=str(tmp_path / "r"))
    make_reference(case, tmp_path / "r")
    prepared = prepare(case)
    with torch.no_grad():
        adapter_tensors(prepared.model)["layers.1.self_attn.v_proj.lora_B.default.weight"].mul_(-1)
    assert "cosine" in str(refusal(Measured(system="hf", parity=against_reference(prepared, case))))


def test_no_gradient_of_the_reference_is_zero(bases: Path, tmp_path: Path):
    case = case_of(bases / "llama-1b", packed=True)
    make_reference(case, tmp_path / "r")
    assert all(float(g.norm()) > 0 for g in load_file(tmp_path / "r").values())


@pytest.mark.parametrize("system", ["hf", "hf-plain"])
def test_micro_batches_do_not_change_the_gradient(system: str, bases: Path):
    found = []
    for micro in (1, 2):
        case = case_of(bases / "llama-1b", system, packed=True, labels="half", micro_batch=micro)
        prepared = prepare(case)
        batch = parity_batch(case, 1024)
        loss = float(prepared.step(split(batch, micro)))
        found.append((loss, gradients(prepared.model)))
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-6)
    for name, gradient in found[0][1].items():
        assert torch.allclose(gradient, found[1][1][name], atol=1e-6), name


def test_a_measurement_has_every_figure_and_as_many_steps_as_asked(bases: Path, tmp_path: Path):
    case = case_of(bases / "llama-1b", reference=str(tmp_path / "r"), steps=3, labels="half",
                   trace=str(tmp_path / "t.json.gz"))  # fmt: skip
    make_reference(case, tmp_path / "r")
    found = measure_one(case)
    assert found.speed and found.memory and found.profile and refusal(found) is None
    assert len(found.speed.step_ms) == 3 and min(found.speed.step_ms) > 0
    assert found.speed.wall_ms * 3 == pytest.approx(sum(found.speed.step_ms), rel=0.2)
    assert (found.speed.tokens, found.speed.labelled) == (96, 48)
    assert found.first_loss and found.last_loss and found.first_loss != found.last_loss
    assert found.machine["base"] == "nf4+double"
    assert (tmp_path / "t.json.gz").stat().st_size > 1000
    assert {"thin products", "gaps", "attention forward"} <= {each.name for each in found.profile.classes}


def test_the_adapter_is_trained_while_it_is_timed(bases: Path):
    prepared = prepare(case := case_of(bases / "llama-1b"))
    before = {name: p.detach().clone() for name, p in adapter_tensors(prepared.model).items()}
    Run(prepared, case).measure()
    assert all(not torch.equal(before[name], p) for name, p in adapter_tensors(prepared.model).items())


def test_memory_that_runs_out_is_an_error_of_any_engine_that_cannot_plan_anew(bases: Path):
    prepared = prepare(case := case_of(bases / "llama-1b"))

    def full(_: object) -> torch.Tensor:
        raise torch.OutOfMemoryError("no more")

    with pytest.raises(torch.OutOfMemoryError):
        Run(prepared._replace(step=full), case).measure()


def test_a_family_that_liger_does_not_know_is_named(tmp_path: Path):
    pytest.importorskip("liger_kernel.transformers.monkey_patch")
    (tmp_path / "config.json").write_text('{"model_type": "homemade"}')
    with pytest.raises(ModelError, match="homemade"):
        patch_with_liger(tmp_path)
