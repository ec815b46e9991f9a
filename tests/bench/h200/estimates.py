"""Hold the estimates of core.models.resources against peaks measured by memory.py and qlora.py.

    python -m tests.bench.h200.estimates RESULTS...

RESULTS are memory.json and qlora.json files. Prints Markdown.
"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from core.models.config import LoraConfig, ModelConfig
from core.models.resources import (
    ModelShape,
    TrainingLoad,
    count_lora,
    estimate_inference,
    estimate_merge,
    estimate_training,
    optimizer_bytes,
    shape_from_config,
    storage_of,
)

GIB = 1 << 30


class Line(NamedTuple):
    """One comparison."""

    case: str
    what: str
    estimated: float
    measured: float

    @property
    def error(self) -> float:
        """The estimate's error as a share of what was measured."""
        return self.estimated / self.measured - 1

    def __str__(self) -> str:
        return (
            f"| {self.case} | {self.what} | {self.estimated / GIB:.2f} | {self.measured / GIB:.2f} "
            f"| {100 * self.error:+.1f} % |"
        )


def shape_of(name: str) -> ModelShape:
    """Return the shape of a base that make_models.py makes."""
    from core.models.random_base.shapes import SHAPES

    shape = shape_from_config(SHAPES[name][1])
    assert shape is not None
    return shape


def load_of(storage: str, framework: str, point: dict[str, Any]) -> TrainingLoad:
    """Describe a measured point."""
    from tests.bench.h200.memory import model_block

    model: ModelConfig = model_block(Path("base"), storage, framework, 2048)
    return TrainingLoad(
        micro_batch=point["micro_batch"],
        window=point["length"],
        optimizer="adamw_8bit",
        is_checkpointed=point["checkpointed"],
        storage=storage_of(model),
        width=4 if storage == "fp32" else 2,
        framework=framework,
        is_packed=point["packed"],
    )


def of_memory(results: list[dict[str, Any]]) -> Iterator[Line]:
    """Compare every point of memory.json."""
    for result in results:
        name, storage, framework = result["part"].split(":")
        shape, case = shape_of(name), f"{name} {storage} {framework}"
        lora = LoraConfig(r=16, lora_alpha=16, use_dora=storage.endswith("dora"))
        for point in result.get("points", []):
            if "peak" in point:
                need = estimate_training(shape, lora, load_of(storage, framework, point))
                what = f"{point['micro_batch']} x {point['length']}, checkpointing {'on' if point['checkpointed'] else 'off'}"
                what += ", packed" if point["packed"] else ""
                yield Line(case, what, need.total, point["peak"]["allocated"])
        yield from _other_phases(result, shape, case, lora)


def _other_phases(result: dict[str, Any], shape: ModelShape, case: str, lora: LoraConfig) -> Iterator[Line]:
    if told := result.get("inference"):
        need = estimate_inference(shape, 2, batch=told["batch"], window=told["prompt"], more=told["new"])
        what = f"answering {told['batch']} x ({told['prompt']} + {told['new']})"
        yield Line(case, what, need.total, told["peak"]["allocated"])
    if told := result.get("merge"):
        yield Line(case, "merging", estimate_merge(shape, lora, 2).total, told["peak"]["allocated"])
    for name, told in result.get("optimizers", {}).items():
        if told.get("state"):
            estimated = optimizer_bytes(shape, lora, name)
            yield Line(case, f"{name} for {count_lora(shape, lora) / 1e6:.1f} M", estimated, told["state"])


def of_qlora(results: list[dict[str, Any]]) -> Iterator[Line]:
    """Compare the peak that each whole run reported."""
    for result in results:
        if "report" not in result:
            continue
        name, framework, *_ = result["case"].split(":")
        size, length = result["shape"]
        point = {"micro_batch": size, "length": length, "checkpointed": True, "packed": False}
        need = estimate_training(
            shape_of(name), LoraConfig(r=16, lora_alpha=16), load_of("nf4", framework, point)
        )
        what = f"whole run, {size} x {length}"
        yield Line(result["case"], what, need.total, result["report"]["peak_memory_bytes"])


def main() -> None:
    """Print the table and the largest error of training steps."""
    lines: list[Line] = []
    for path in sys.argv[1:]:
        results = json.loads(Path(path).read_text(encoding="utf-8"))["results"]
        lines += of_memory(results) if any("part" in each for each in results) else of_qlora(results)
    print("| case | what | estimated GiB | measured GiB | error |\n|---|---|---|---|---|")
    for line in lines:
        print(line)
    worst = max(lines, key=lambda line: abs(line.error))
    print(f"\nlargest error: {100 * worst.error:+.1f} % ({worst.case}, {worst.what})")


if __name__ == "__main__":
    main()
