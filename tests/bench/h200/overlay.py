"""Whether loss curves lie upon each other: by how much, and beside what noise."""

import math
from collections.abc import Sequence
from typing import Any

WIDTH = 10
"""Steps a smoothed curve is the mean of."""
SHOWN = (1, 10, 50, 100, 200, 300)
FIRST = 1e-3
"""Relative distance of the first losses: the adapter does nothing yet, so only rounding tells engines apart."""
MEAN, MOST = 1e-3, 5e-3
"""Distances, relative to the loss, that count as noise whatever another seed does."""
SLACK = 1.5
"""How much farther the largest distance may be than that of another seed."""
LEARNED = 0.75
"""What a run that learned anything has left of its first loss, at most."""
PACKED = 0.03
"""Relative distance of validation losses that counts as noise: other rows share a step."""
RULE = (
    f"Within noise: every layer ran fused; the first loss is within {FIRST:g} of hf's; of the curves, smoothed over "
    f"{WIDTH} steps, the mean distance to hf's is no larger than that of hf with another adapter seed (or {MEAN:g} of "
    f"the loss), and the largest no more than {SLACK:g} times that run's (or {MOST:g}); both have lost a quarter of "
    f"their loss. A packed run sees other rows together: its validation loss at the end may be above hf's by thrice "
    f"the distance of the other seed's, or by {PACKED:g}."
)


def smoothed(losses: Sequence[float]) -> list[float]:
    """Return the mean of the last steps at every step."""
    return [
        sum(part) / len(part) for n in range(1, len(losses) + 1) if (part := losses[max(0, n - WIDTH) : n])
    ]


def distances(one: Sequence[float], other: Sequence[float]) -> tuple[float, float]:
    """Return the mean and the largest distance of two curves, smoothed."""
    apart = [abs(a - b) for a, b in zip(smoothed(one), smoothed(other), strict=True)]
    return sum(apart) / len(apart), max(apart)


def compare(runs: dict[str, Any]) -> dict[str, Any]:
    """Judge every fused run of a model beside hf's; a run that failed is not within noise."""
    told: dict[str, Any] = {}
    for name, run in runs.items():
        if not name.startswith("fused"):
            continue
        missing = [each for each in ("hf", "hf-seed", name) if "losses" not in runs.get(each, {})]
        if missing:
            told[name] = {"verdict": f"not known: no curve of {', '.join(missing)}"}
        else:
            judge = judge_packed if "packed" in name else judge_curve
            told[name] = judge(run, runs["hf"], runs["hf-seed"])
    return told


def judge_curve(fused: dict[str, Any], hf: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """Hold a fused curve against hf's on the same rows."""
    mean, most = distances(fused["losses"], hf["losses"])
    noise, peak = distances(other["losses"], hf["losses"])
    typical = sum(hf["losses"]) / len(hf["losses"])
    first = abs(fused["losses"][0] / hf["losses"][0] - 1)
    problems = {
        f"the first losses are {first:.1e} apart": first > FIRST,
        "the mean distance is larger than that of another seed": mean > max(noise, MEAN * typical),
        "the largest distance is larger than that of another seed": most > max(SLACK * peak, MOST * typical),
    }
    told = {"mean": mean, "most": most, "noise_mean": noise, "noise_most": peak, "first": first}
    return {**told, "verdict": verdict(fused, hf, problems)}


def judge_packed(fused: dict[str, Any], hf: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """Hold a packed run against hf's by the loss on the same validation rows."""
    found, wanted, beside = (run["validation"][-1][1] for run in (fused, hf, other))
    band = max(3 * abs(beside - wanted), PACKED * wanted)
    problems = {"the validation loss at the end is higher": found > wanted + band}
    told = {"validation": found, "hf": wanted, "band": band}
    return {**told, "verdict": verdict(fused, hf, problems)}


def verdict(fused: dict[str, Any], hf: dict[str, Any], problems: dict[str, bool]) -> str:
    """Put a judgement into words."""
    said = [problem for problem, is_so in problems.items() if is_so]
    said += [notice for notice in fused["notices"] if notice.startswith("FusedNotice")]
    if not all(has_learned(run["losses"]) for run in (fused, hf)):
        said.append("too little was learned to tell")
    return "; ".join(said) or "within noise"


def has_learned(losses: Sequence[float]) -> bool:
    """Tell whether a run has lost a quarter of its first loss, and nothing became infinite."""
    return all(map(math.isfinite, losses)) and smoothed(losses)[-1] <= LEARNED * losses[0]


def table(results: dict[str, Any]) -> str:
    """Lay curves and judgements out in Markdown."""
    steps = [
        step
        for step in SHOWN
        if any(step <= len(r.get("losses", ())) for m in results.values() for r in m["runs"].values())
    ]
    lines = ["| model | run | " + " | ".join(f"step {step}" for step in steps) + " | validation | tok/s | seconds |",
             "|" + "---|" * (len(steps) + 5)]  # fmt: skip
    for model, each in results.items():
        lines += [line(model, name, run, steps) for name, run in each["runs"].items()]
    lines += ["", "| model | run | mean distance | of another seed | largest | of another seed | first loss | verdict |",
              "|---|---|---|---|---|---|---|---|"]  # fmt: skip
    for model, each in results.items():
        lines += [judgement(model, name, told) for name, told in each["verdicts"].items()]
    return "\n".join(lines) + "\n"


def line(model: str, name: str, run: dict[str, Any], steps: Sequence[int]) -> str:
    """Write one curve."""
    if "error" in run:
        return f"| {model} | {name} | failed: {run['error'].strip().splitlines()[-1] if run['error'].strip() else ''} |"
    losses = run["losses"]
    shown = [f"{losses[step - 1]:.4f}" if step <= len(losses) else "" for step in steps]
    start = f"{model} (ln v = {math.log(run['vocabulary']):.2f})"
    rate, last = f"{run['tokens_per_second']:.0f}", f"{run['validation'][-1][1]:.4f}"
    return "| " + " | ".join([start, name, *shown, last, rate, f"{run['seconds']:.0f}"]) + " |"


def judgement(model: str, name: str, told: dict[str, Any]) -> str:
    """Write one verdict."""
    cells = [
        f"{told[key]:.2e}" if key in told else ""
        for key in ("mean", "noise_mean", "most", "noise_most", "first")
    ]
    if "band" in told:
        cells[0] = f"validation {told['validation'] - told['hf']:+.4f}, band {told['band']:.4f}"
    return "| " + " | ".join([model, name, *cells, told["verdict"]]) + " |"
