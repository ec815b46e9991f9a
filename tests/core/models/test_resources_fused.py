"""Memory of the fused engine: counted once more from its parts, against Unsloth's peaks, and what preflight says."""

import subprocess
import sys
from pathlib import Path

import pytest

from core.kernels.linear_cross_entropy.reference import TILE_NUMBERS as TILE
from core.kernels.lora_linear.group import SPARE as EXTRA
from core.models.config import LoraConfig
from core.models.fused.costs import FAMILIES, TILE_NUMBERS
from core.models.fused.policy import FULL, Place, Plan, micro_batch_ms, plan, plan_with_expansions
from core.models.resources import (
    GB,
    NF4_BYTES,
    PUBLISHED,
    Memory,
    ModelShape,
    TrainingLoad,
    count_block_weights,
    count_lora,
    count_parameters,
    estimate_training,
    find_outlook,
    fused_obstacle,
)
from core.models.resources.fused import FUSED, GROUPS, SPARE, extended, layer_shapes
from core.models.resources.outlook import Outlook, kept_words
from core.training.packing import FUSED as APART

ROOT = Path(__file__).parents[3]
LLAMA = PUBLISHED["meta-llama/Llama-3.1-8B-Instruct"]
SMALL = PUBLISHED["meta-llama/Llama-3.2-1B-Instruct"]
QWEN = PUBLISHED["Qwen/Qwen3-4B"]
GEMMA = PUBLISHED["google/gemma-3-4b-it"]._replace(vision=None)
LORA = LoraConfig(r=16)
MIB = 1024**2


def load(**changes) -> TrainingLoad:
    given = {
        "micro_batch": 8, "window": 2048, "optimizer": "adamw_8bit", "is_checkpointed": True,
        "storage": "4bit+double", "width": 2, "framework": "fused",
    }  # fmt: skip
    return TrainingLoad(**{**given, **changes})


def outlook(
    shape: ModelShape, free: float, host: float, budget: float | None = None, rows=8, **changes
) -> Outlook:
    found = find_outlook(
        shape, LORA, load(**{"micro_batch": 2, **changes}), per_step=rows, free=int(free * GB),
        host=int(host * GB), budget=budget,
    )  # fmt: skip
    assert found is not None
    return found


def test_what_is_written_twice_is_the_same() -> None:
    assert FUSED == FAMILIES == APART
    assert (SPARE, TILE_NUMBERS) == (EXTRA, TILE)


def test_a_base_in_4_bits_keeps_its_other_weights_in_16() -> None:
    need = estimate_training(LLAMA, LORA, load())
    blocks = count_block_weights(LLAMA)
    assert need.weights == int(blocks * NF4_BYTES) + 2 * (count_parameters(LLAMA) - blocks)
    trained = count_lora(LLAMA, LORA)
    assert (need.adapter, need.gradients) == (4 * trained, 4 * trained)
    stock = estimate_training(LLAMA, LORA, load(framework="hf"))
    assert stock.weights - need.weights == 2 * (count_parameters(LLAMA) - blocks)


def test_the_least_is_one_layers_work_with_its_weights_expanded() -> None:
    tokens, e, f, q, k = 16384, 4096, 14336, 4096, 1024
    work = 2 * (2 * f + f + 8 * e + q + 2 * k) + 2 * (e + q + 2 * k + e) + (2 * q + 4 * 32)
    groups = ((e, q + 2 * k), (q, e), (e, 2 * f), (f, e))
    scratch = sum(2 * (rows + 64) * (columns + 64) for rows, columns in groups)
    assert estimate_training(LLAMA, LORA, load()).activations == tokens * work + scratch


def test_weights_in_16_bits_live_in_extended_matrices() -> None:
    need = estimate_training(LLAMA, LORA, load(storage="full"))
    e, f, q, k = 4096, 14336, 4096, 1024
    groups = ((e, q + 2 * k), (q, e), (e, 2 * f), (f, e))
    more = 32 * sum(2 * ((rows + 64) * (columns + 64) - rows * columns) for rows, columns in groups)
    assert need.weights == 2 * count_parameters(LLAMA) + more
    packed = estimate_training(LLAMA, LORA, load())
    scratch = sum(2 * (rows + 64) * (columns + 64) for rows, columns in groups)
    assert packed.activations - need.activations == scratch


def test_ranks_of_a_group_add_up_to_its_extra_columns() -> None:
    def scratch(**changes) -> int:
        lora = LoraConfig(**{"r": 64, **changes})
        whole, packed = (
            estimate_training(LLAMA, lora, load(storage=s)).activations for s in ("full", "4bit")
        )
        return packed - whole

    e, f = 4096, 14336
    # Only q: 64 columns; q and v: 128; nothing at all in the other groups.
    plain = 2 * (e * e + 3 * e * f)
    assert scratch(target_modules=("q_proj",)) == plain + 2 * (6144 + 64) * (e + 64)
    assert scratch(target_modules=("q_proj", "v_proj")) == plain + 2 * (6144 + 128) * (e + 128)
    assert [len(names) for names in GROUPS] == [3, 1, 2, 1]


def test_a_bias_takes_an_extra_column() -> None:
    biased = PUBLISHED["Qwen/Qwen2.5-7B-Instruct"]
    lora = LoraConfig(r=64, target_modules=("q_proj",))
    with_bias, without = (
        estimate_training(shape, lora, load()).activations
        for shape in (biased, biased._replace(qkv_bias=False))
    )
    n, e = 28 * 128 + 2 * 4 * 128, 3584
    assert with_bias - without == 2 * ((n + 128) * (e + 128) - (n + 64) * (e + 64))


def test_few_tokens_peak_at_the_head() -> None:
    need = estimate_training(LLAMA, LORA, load(micro_batch=1, window=1024))
    assert need.logits == 2 * 1024 * 128_256
    many = estimate_training(SMALL, LORA, load(micro_batch=64))
    assert many.logits in (0, 512 * MIB)


def test_without_checkpointing_everything_stays_on_the_gpu() -> None:
    less, more = (estimate_training(LLAMA, LORA, load(is_checkpointed=on)) for on in (True, False))
    kept = 16384 * 32 * sum(layer_shapes(LLAMA, 2)[0].item_bytes)
    fetched = 16384 * (2 * (4096 + 6144 + 4096 + 4096) + 4 * 32)
    assert more.total - less.total == kept - fetched


@pytest.mark.parametrize(
    ("shape", "storage", "peak"),
    [
        (LLAMA, "4bit+double", 9.9),
        (LLAMA, "full", 19.5),
        (QWEN, "4bit+double", 5.9),
        (SMALL, "4bit+double", 3.4),
    ],
)
def test_the_least_is_not_more_than_unsloth_was_measured_to_take(
    shape: ModelShape, storage, peak: float
) -> None:
    # Its peaks on an H200 at 8 x 2048 tokens, reports of 2026-11-20.
    need = estimate_training(shape, LORA, load(storage=storage)).total / GB
    assert 0.7 * peak < need < peak


# Models that are not fused


@pytest.mark.parametrize(
    ("shape", "lora", "is_8bit", "words"),
    [
        (LLAMA, {}, False, None),
        (GEMMA, {"bias": "all"}, False, None),
        (PUBLISHED["google/gemma-3-4b-it"], {}, False, "gemma3 with images"),
        (PUBLISHED["microsoft/phi-4"], {}, False, "phi3 have no fused layers"),
        (LLAMA, {"use_dora": True}, False, "DoRA"),
        (LLAMA, {"lora_dropout": 0.1}, False, "dropout"),
        (PUBLISHED["Qwen/Qwen2.5-7B-Instruct"], {"bias": "all"}, False, "biases"),
        (LLAMA, {}, True, "8-bit"),
    ],
)
def test_what_is_not_fused_is_known_and_counted_as_the_stock_engine(shape, lora, is_8bit, words) -> None:
    lora = LoraConfig(**{"r": 16, **lora})
    reason = fused_obstacle(shape, lora, is_8bit=is_8bit)
    assert (reason is None) == (words is None)
    if words is None:
        return
    assert words in str(reason)
    given = load(storage="8bit") if is_8bit else load(storage="full")
    fused, stock = (
        estimate_training(shape, lora, given._replace(framework=name)) for name in ("fused", "hf")
    )
    if is_8bit:
        # Embeddings keep their 16 bits, and so does what they are added to.
        assert stock.activations - fused.activations == 16384 * 4096 * 2 * (32 + 1)
        stock = stock._replace(activations=fused.activations)
    assert fused._replace(weights=0) == stock._replace(weights=0)
    assert find_outlook(shape, lora, given, per_step=8, free=80 * GB, host=0, budget=None) is None


def test_other_engines_have_no_outlook() -> None:
    for name in ("hf", "unsloth"):
        assert (
            find_outlook(LLAMA, LORA, load(framework=name), per_step=8, free=80 * GB, host=0, budget=None)
            is None
        )


# What will be done


@pytest.mark.parametrize("free", [8, 12, 16, 24, 48, 140])
def test_what_is_planned_fits_into_what_is_free(free: int) -> None:
    found = outlook(LLAMA, free, 32)
    assert 0.75 * min(free, 55) < found.need.total / GB <= free
    assert 8 % found.micro_batch == 0
    least = estimate_training(LLAMA, LORA, load(micro_batch=found.micro_batch))
    expanded = found.expanded * sum(extended(LLAMA, LORA, 2))
    assert found.need.total - least.total == found.kept.device_bytes + expanded
    assert (", weights of every layer expanded, in micro" in found.words) == (found.expanded == 32)
    assert (f", weights of {found.expanded} of 32 layers expanded" in found.words) == (
        0 < found.expanded < 32
    )
    assert found.kept.host_bytes <= 32 * GB


@pytest.mark.parametrize(("shape", "size"), [(SMALL, 4), (GEMMA, 2), (GEMMA, 1)])
def test_what_just_fits_is_not_refused_for_logits_it_never_makes(shape: ModelShape, size: int) -> None:
    short = {"window": 256, "micro_batch": size}
    need = estimate_training(shape, LORA, load(**short)).total
    assert outlook(shape, (need + MIB) / GB, 100, rows=size, **short).micro_batch == size
    if size > 1:
        assert outlook(shape, (need - MIB) / GB, 100, rows=size, **short).micro_batch < size


@pytest.mark.parametrize("free", [14, 18, 30])
def test_the_micro_batch_is_the_fastest_beside_weights_and_states(free: int) -> None:
    layers, times = layer_shapes(LLAMA, 2), {}
    expansions = (sum(extended(LLAMA, LORA, 2)),) * len(layers)
    for size in (1, 2, 4, 8, 16):
        room = free * GB - estimate_training(LLAMA, LORA, load(micro_batch=size)).total
        held = plan_with_expansions(layers, expansions, size * 2048, 2048, max(0, room), 64 * GB)
        if room >= held.device_bytes:
            one = micro_batch_ms(layers, size * 2048, 2048, held.plan) + held.unpack_ms
            times[size] = one * 16 / size
    best = min(times.values())
    assert times[outlook(LLAMA, free, 64, rows=16).micro_batch] <= 1.01 * best
    # More rows would be faster in an empty card.
    assert outlook(LLAMA, free + 40, 64, rows=16).micro_batch > outlook(LLAMA, free, 64, rows=16).micro_batch


def test_a_card_that_is_too_small_is_told_the_least_of_one_row() -> None:
    found = outlook(LLAMA, 4, 32)
    least = estimate_training(LLAMA, LORA, load(micro_batch=1))
    assert found.micro_batch == 1
    assert found.need.total == least.total > 4 * GB


def test_a_budget_is_kept_to_whatever_is_free() -> None:
    for gib in (0.0, 3.0):
        found = outlook(LLAMA, 140, 32, budget=gib)
        assert found.micro_batch == 2
        assert gib * 0.9 * GB <= found.kept.device_bytes <= gib * GB
    assert outlook(LLAMA, 140, 0, budget=0.0).kept.device_bytes == 2 * 2048 * 32 * 4096 * 2


def test_without_checkpointing_there_is_nothing_to_plan() -> None:
    found = outlook(LLAMA, 8, 32, is_checkpointed=False)
    assert set(found.kept.policies) == {FULL}
    assert found.micro_batch == 2
    assert found.need == estimate_training(LLAMA, LORA, load(micro_batch=2, is_checkpointed=False))


def of(policies, device=0, host=0) -> Plan:
    return Plan(tuple(policies), int(device * GB), int(host * GB), 0.0, 0.0)


def test_a_plan_is_told_in_words() -> None:
    some = FULL._replace(gate_up=Place.RECOMPUTE, qkv=Place.HOST)
    least = FULL._replace(**dict.fromkeys(("qkv", "attention", "residual", "gate_up"), Place.RECOMPUTE))
    assert kept_words(of([FULL] * 3, 1.5)) == "keeps everything of every layer: 1.5 GB on the GPU"
    assert kept_words(of([some] * 2 + [FULL] * 2, 2, 6.1)) == (
        "keeps qkv, attention and residual of every layer and gate_up of 2 of 4 layers: "
        "2.0 GB on the GPU, 6.1 GB in main memory"
    )
    assert kept_words(of([least, some, FULL], 2)) == (
        "keeps qkv, attention and residual of 2 of 3 layers and gate_up of 1 of 3 layers: 2.0 GB on the GPU"
    )
    assert kept_words(of([least] * 2, 0, 1)) == "keeps the inputs of layers alone: 1.0 GB in main memory"
    gemma = FULL._replace(attention_out=Place.RECOMPUTE)
    assert kept_words(of([gemma, FULL], 1)) == (
        "keeps qkv, attention, residual and gate_up of every layer and attention_out of 1 of 2 layers: 1.0 GB on the GPU"
    )
    assert Outlook(4, of([FULL], 1), Memory(0)).words.endswith("1.0 GB on the GPU, in micro-batches of 4")


def test_the_planners_view_is_that_of_the_shape() -> None:
    layer = layer_shapes(GEMMA, 2)[0]
    assert layer.is_sandwich
    assert not layer_shapes(QWEN, 2)[0].is_sandwich
    assert len(layer_shapes(GEMMA, 2)) == GEMMA.layers
    assert layer.weights * GEMMA.layers == count_block_weights(GEMMA)
    assert layer_shapes(QWEN, 4)[0].item_bytes.input == 4 * 2560
    found = plan(layer_shapes(QWEN, 2)[0], 36, 2048, 2048, 0, 10**12)
    assert found.device_bytes == 0


def test_estimates_load_no_framework() -> None:
    code = (
        "import sys\nfrom core.models.config import LoraConfig\nfrom core.models.resources import *\n"
        "find_outlook(PUBLISHED['Qwen/Qwen3-4B'], LoraConfig(), TrainingLoad(1, 512, 'sgd', True, 'full', 2, 'fused'),"
        " per_step=4, free=20 * GB, host=GB, budget=None)\n"
        "assert not {'torch', 'triton', 'transformers', 'peft'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
