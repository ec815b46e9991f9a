"""Is training with a file type's rounding worth it? The quickstart, once as it is and once for each type.

    OMP_NUM_THREADS=1 nice -n 10 python -m tests.bench.aware WORKSPACE [--steps 120] [--questions 300] [--seeds 3407 11]

Runs ``factory run configs/quickstart.yaml --until quantize`` in one workspace, so that everything before training is
made once. Every file of every run is measured on the whole test split; divergences are those between a file and the
merged model it was made from, on the model's own answers (GGUF) or on prompts and answers (ONNX).
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

REPORT = Path(__file__).parent / "reports" / "2026-11-21-aware.md"
TRAINED_FOR = (None, "Q4_0", "int4")
COLUMNS = (
    "trained for", "seed", "kept eval loss", "merged eval loss", "merge error", "tok/s", "seconds", "file", "score",
    "KL", "argmax", "max diff", "worse/better", "same text",
)  # fmt: skip


def run(workspace: Path, aware: str | None, seed: int, steps: int, questions: int) -> list[dict[str, Any]]:
    """Train for one type and measure the merged model and every file; one row each."""
    options = {
        "quantization.formats": "[Q4_0]",
        "quantization.onnx": "[int4]",
        "quantization.parity_examples": "64",
        "quantization.aware": aware or "null",
        "training.max_steps": steps,
        "training.seed": seed,
        "evaluation.max_examples": questions,
        "gates.dataset_validated.min_test": 200,
        "evaluation.baseline.arms": "[zero_shot]",
    }
    command = [sys.executable, "-m", "flows.cli", "run", "configs/quickstart.yaml", "--json"]
    command += ["--workspace", str(workspace), "--until", "quantize"]
    for key, value in options.items():
        command += ["-o", f"{key}={value}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode not in (0, 3):
        sys.exit(done.stderr[-4000:])
    return list(rows_of(workspace / "metrics", aware, seed))


def rows_of(metrics: Path, aware: str | None, seed: int) -> list[dict[str, Any]]:
    """Read what a run left."""
    trained = json.loads((metrics / "training-stats.json").read_text())
    quantized = json.loads((metrics / "quantization.json").read_text())
    tuned = json.loads((metrics / "evaluation.json").read_text())
    kept = {each["step"]: each["loss"] for each in trained["eval_losses"]}[trained["kept_step"]]
    common = {
        "trained for": aware or "nothing", "seed": seed, "kept eval loss": f"{kept:.6f}",
        "merged eval loss": f"{trained['merged_eval_loss']:.6f}", "merge error": f"{trained['merge_error']:.1e}",
        "tok/s": f"{trained['tokens_per_second']:.0f}", "seconds": f"{trained['seconds']:.0f}",
    }  # fmt: skip
    rows = [{**common, "file": "merged model", "score": f"{tuned['value']:.4f}"}]
    for file in [*quantized["files"], *quantized["onnx"]]:
        rows.append({**common, **measured(file)})
    return rows


def measured(file: dict[str, Any]) -> dict[str, str]:
    """Put one file's numbers into words."""
    apart, found = file["distance"], {"file": file["type"], "score": f"{file['evaluation']['value']:.4f}"}
    found |= {"KL": f"{apart['kl']:.2e}", "argmax": f"{apart['argmax_agreement']:.4f}"}
    found |= {"max diff": f"{apart['max_abs']:.3f}", "same text": f"{100 * file['text_agreement']:.1f} %"}
    return found | ({"worse/better": f"{file['broken']}/{file['fixed']}"} if "broken" in file else {})


def table(rows: list[dict[str, Any]]) -> str:
    """Draw the rows."""
    lines = ["| " + " | ".join(COLUMNS) + " |", "|" + "---|" * len(COLUMNS)]
    lines += ["| " + " | ".join(str(row.get(column, "")) for column in COLUMNS) + " |" for row in rows]
    return "\n".join(lines)


def main() -> None:
    """Run every case and print the table; add it to the report."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("workspace", type=Path)
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--questions", type=int, default=300)
    parser.add_argument("--seeds", type=int, nargs="+", default=[3407])
    parser.add_argument("--report", type=Path, default=REPORT)
    given = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for seed in given.seeds:
        for aware in TRAINED_FOR:
            rows += run(given.workspace.resolve(), aware, seed, given.steps, given.questions)
            print(table(rows), flush=True)
    with given.report.open("a", encoding="utf-8") as stream:
        stream.write(f"\n{given.steps} steps, {given.questions} questions:\n\n{table(rows)}\n")


if __name__ == "__main__":
    main()
