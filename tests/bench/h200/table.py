"""The results of qlora.py in Markdown."""

from typing import Any


def table(results: list[dict[str, Any]]) -> str:
    """Lay the results out in Markdown."""
    head = (
        "| case | batch x tokens | ms/step | tok/s | peak alloc. GiB | reserved | process | loss first → last | "
        "status file: changes, broken | note |\n|---|---|---|---|---|---|---|---|---|---|\n"
    )
    return head + "".join(line(result) for result in results)


def line(result: dict[str, Any]) -> str:
    if "error" in result:
        return f"| {result['case']} | | | | | | | | | {result['error'][-160:].replace(chr(10), ' ')} |\n"
    memory, watch, gib = result["memory"], result["watch"], 1 << 30
    peaks = [memory.get(key, {}) for key in ("start", "steady")]
    allocated, reserved = (
        max((p.get(key, 0) for p in peaks), default=0) / gib for key in ("allocated", "reserved")
    )
    # What the run itself reports: the sampler sees nothing of training in a process of its own.
    allocated = max(allocated, result.get("report", {}).get("peak_memory_bytes", 0) / gib)
    kept = "" if ":unsloth" in result["case"] else f"{reserved:.2f}"
    note = f"the run ended with code {result['exit']} after finetune. " if "problem" in result else ""
    if "largest_loss_difference" in result:
        note += f"killed at {result['killed']['killed_at']}, resumed; losses differ by {result['largest_loss_difference']}"
    size, length = result["shape"]
    low, high = result["step_ms_p10_p90"]
    return (
        f"| {result['case']} | {size} x {length} | {result['step_ms']:.0f} ({low}–{high}) | {result['tokens_per_s']} | "
        f"{allocated:.2f} | {kept} | {watch['gpu_process_mib'] / 1024:.2f} | "
        f"{result['loss_first']:.4f} → {result['loss_last']:.4f} | {watch['changes']}, {watch['broken']} | {note} |\n"
    )
