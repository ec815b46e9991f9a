"""Do hf and unsloth compute the same? Trained tensors, logits, loss, gradients and greedy text of one base.

python -m tests.bench.h200.frameworks OUT [--model llama-1b] [--scratch DIR] [--tiny]
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

FRAMEWORKS = ("hf", "unsloth")
PROMPT, LENGTH, NEW = 4, 256, 16


def child(base: Path, framework: str, target: Path) -> None:
    """Compute everything under one framework and save it."""
    from core.models.config import LoraConfig, ModelConfig
    from core.models.frameworks import prepare_framework

    config = ModelConfig(name=str(base), framework=framework, max_seq_length=2048, fall_back=False)
    prepare_framework(config)
    import torch

    from core.data.batches import Batch
    from core.models.adapters import attach
    from core.models.loading import load_model
    from core.training.language import LanguageStep, autocast

    model = attach(load_model(config, trainable=True), LoraConfig(r=16, lora_alpha=16))
    device = next(model.parameters()).device
    draw = torch.Generator().manual_seed(1)
    # Both start from B = 0, where an adapter does nothing.
    with torch.no_grad():
        for _, weight in sorted(model.named_parameters()):
            if weight.requires_grad:
                weight.copy_(0.02 * torch.randn(weight.shape, generator=draw))
    vocabulary = model.config.get_text_config().vocab_size
    ids = torch.randint(10, vocabulary - 10, (PROMPT, LENGTH), generator=draw)
    batch = Batch(ids, ids.clone(), torch.ones_like(ids))
    seen = LanguageStep(model, device, autocast(device, torch.bfloat16))([batch])
    gradients = {n: p.grad.float().cpu() for n, p in model.named_parameters() if p.requires_grad}
    model.eval()
    with torch.no_grad(), torch.autocast(device.type, torch.bfloat16):
        logits = model(input_ids=ids[:1].to(device)).logits.float().cpu()
        text = model.generate(
            input_ids=ids[:2, :32].to(device), attention_mask=torch.ones(2, 32, device=device, dtype=torch.long),
            max_new_tokens=NEW, do_sample=False,
        )  # fmt: skip
    trained = {n: (tuple(p.shape), str(p.dtype)) for n, p in model.named_parameters() if p.requires_grad}
    torch.save(
        {
            "loss": float(seen.loss),
            "gradients": gradients,
            "logits": logits,
            "text": text.cpu(),
            "trained": trained,
        },
        target,
    )


def compared(first: dict[str, Any], second: dict[str, Any]) -> dict[str, Any]:
    """Set the two results side by side."""
    import torch

    one, two = first["logits"].double(), second["logits"].double()
    p, q = one.log_softmax(-1), two.log_softmax(-1)
    alike = [
        float(
            torch.cosine_similarity(first["gradients"][n].flatten(), second["gradients"][n].flatten(), dim=0)
        )
        for n in first["gradients"]
        if n in second["gradients"]
    ]
    return {
        "same trained names, shapes, dtypes": first["trained"] == second["trained"],
        "trained tensors": len(first["trained"]),
        "loss": [first["loss"], second["loss"]],
        "smallest gradient cosine": min(alike, default=None),
        "largest logit difference": float((one - two).abs().max()),
        "largest logit": float(one.abs().max()),
        "KL": float((p.exp() * (p - q)).sum(-1).mean()),
        "argmax agreement": float((one.argmax(-1) == two.argmax(-1)).double().mean()),
        "greedy tokens equal": float((first["text"] == second["text"]).double().mean()),
    }


def main() -> None:
    """Make the base, run both children, compare."""
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=Path)
    parser.add_argument("--model", default="llama-1b")
    parser.add_argument("--scratch", type=Path, default=Path("/dev/shm/frameworks"))
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--frameworks", default=",".join(FRAMEWORKS))
    parser.add_argument("--child", nargs=3, metavar=("BASE", "FRAMEWORK", "TARGET"))
    options = parser.parse_args()
    if options.child:
        base, framework, target = options.child
        child(Path(base), framework, Path(target))
        return
    # Not above: it loads Transformers, which unsloth wants to come before.
    from core.models.random_base.making import make_model

    base = options.scratch / options.model
    if not base.is_dir():
        make_model(options.model, base, tiny=options.tiny)
    files = []
    for number, framework in enumerate(options.frameworks.split(",")):
        files.append(options.scratch / f"{number}.pt")
        command = [sys.executable, "-m", "tests.bench.h200.frameworks", str(options.out)]
        subprocess.run([*command, "--child", str(base), framework, str(files[-1])], check=True)
    import torch

    result = compared(*(torch.load(file, weights_only=True) for file in files))
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / f"frameworks-{options.model}.json").write_text(json.dumps(result, indent=1))
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
