"""Runs a language model whose weights are 8-bit integers, on the CPU; inputs are rounded on the fly.

    pip install torch transformers safetensors
    python run.py "What is 3 + 4?"

Add --system TEXT for instructions and --max-new-tokens N for longer answers. A copy of this file travels with every such
model as ``run.py``, so it imports nothing but these libraries. In other programs: ``from run import rebuild``, then
``rebuild(folder)`` is a Transformers model that generates.
"""

import argparse
import sys
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import safe_open
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig, PreTrainedModel

WEIGHTS_FILE = "int8.safetensors"
"""Not the name that Transformers looks for: it would draw at random what it does not find."""
FORMAT = {"format": "pt", "layout": "rows of int8 with float32 scales", "version": "1"}
"""What the header of such a file says."""
TIED = "tied"
"""Header entry: name of the output head whose rows are the embedding's."""
LEVELS, SCALES, BIAS = "levels", "scales", "bias"
WEIGHT_TOP, INPUT_TOP, NARROW_TOP = 127, 127, 63
SMALLEST = 1e-12
"""Largest input of a row that counts as all zeros."""
DIRECT = ("x86", "fbgemm")
"""Engines whose product takes the step between levels; others work it out from the numbers they are given."""


class Rows(NamedTuple):
    """A matrix as integers, with one step per row: weight = levels x step."""

    levels: Tensor
    """[out, in], int8, within 127 of zero."""
    scales: Tensor
    """[out], float32."""


def round_rows(weight: Tensor) -> Rows:
    """Round every row to the nearest of 255 levels, the outermost at its largest weight.

    Args:
        weight: [out, in].
    """
    exact = weight.detach().float()
    scales = exact.abs().amax(dim=1) / WEIGHT_TOP
    steps = scales.clamp_min(torch.finfo(torch.float32).tiny)[:, None]
    levels = (exact / steps).round_().clamp_(-WEIGHT_TOP, WEIGHT_TOP)
    return Rows(levels.to(torch.int8), scales)


def engine() -> str:
    """Name the engine of PyTorch that multiplies integers here.

    Raises:
        RuntimeError: If this build of PyTorch or this processor has none.
    """
    found = str(torch.backends.quantized.engine)
    if found == "none" or found not in torch.backends.quantized.supported_engines:
        raise RuntimeError(f"PyTorch has no engine for 8-bit integers on this processor ({found})")
    return found


def input_top() -> int:
    """Return the outermost level of inputs: 127, or 63 where an x86 processor would overflow.

    Without VNNI two products are added in 16 bits, and 2 x 255 x 127 is more than those hold.
    """
    return (
        INPUT_TOP if engine() == "qnnpack" or torch.cpu.get_capabilities().get("avx512_vnni") else NARROW_TOP
    )


class ByteLinear(nn.Module):
    """A linear layer of 8-bit weights. Each input row is divided by its largest number, rounded, multiplied as integers.

    PyTorch's own dynamic layer takes one step for a whole batch of inputs, so that one large number costs all others
    their digits, and an answer depends on the questions beside it. Here every row has its own.
    """

    def __init__(self, rows: Rows, bias: Tensor | None, top: int | None = None) -> None:
        """Pack the weights for this processor.

        Args:
            rows: The weights, [out, in].
            bias: [out], kept in float32.
            top: Outermost level of inputs.
        """
        super().__init__()
        self.out_features, self.in_features = rows.levels.shape
        self.top, self.is_direct = top or input_top(), engine() in DIRECT
        zeros = torch.zeros(len(rows.scales), dtype=torch.long)
        with warnings.catch_warnings():
            warnings.filterwarnings(
                "ignore", message=r"torch\.quantize_per_tensor, torch\.quantize_per_channel"
            )
            weight = torch._make_per_channel_quantized_tensor(rows.levels, rows.scales.double(), zeros, 0)  # type: ignore[attr-defined]
            self.packed = torch.ops.quantized.linear_prepack(weight, None)
        self.bias = None if bias is None else nn.Parameter(bias.detach().float(), requires_grad=False)

    @classmethod
    def from_float(cls, layer: nn.Linear, use_precomputed_fake_quant: bool = False) -> "ByteLinear":
        """Round a layer; PyTorch's converter calls this by name."""
        # The converter's settings refer back to the layer, and would keep its weights in memory for a while.
        layer.__dict__.pop("qconfig", None)
        return cls(round_rows(layer.weight), layer.bias)

    def rows(self) -> Rows:
        """Return the integers as they were packed."""
        weight, _ = torch.ops.quantized.linear_unpack(self.packed)
        return Rows(weight.int_repr(), weight.q_per_channel_scales().float())

    def forward(self, inputs: Tensor) -> Tensor:
        """Multiply: [..., in] to [..., out], float32."""
        largest = inputs.abs().amax(dim=-1, keepdim=True).clamp_min(SMALLEST)
        product = self._multiply(inputs / largest) * largest
        return product if self.bias is None else product + self.bias

    def _multiply(self, unit: Tensor) -> Tensor:
        """Round numbers between -1 and 1 and multiply them with the weights."""
        run: Any = torch.ops.quantized
        if self.is_direct:
            step, zero = 1.0 / self.top, self.top + 1
            direct: Tensor = run.linear_with_input_q_dq_qweight_dq_output_fp32(unit, step, zero, self.packed)
            return direct
        found: Tensor = run.linear_dynamic(unit, self.packed, self.top == NARROW_TOP)
        return found


class ByteEmbedding(nn.Module):
    """An embedding of 8-bit rows; those that are looked up become float32."""

    def __init__(self, rows: Rows, factor: Tensor | None = None) -> None:
        """Take the rows, [v, e], and what Gemma multiplies them with."""
        super().__init__()
        self.register_buffer(LEVELS, rows.levels)
        self.register_buffer(SCALES, rows.scales)
        self.register_buffer("embed_scale", factor)

    def rows(self) -> Rows:
        """Return the integers."""
        return Rows(self.get_buffer(LEVELS), self.get_buffer(SCALES))

    def forward(self, ids: Tensor) -> Tensor:
        """Look rows up: [...] to [..., e]."""
        levels, scales = self.rows()
        found = levels[ids].float() * scales[ids].unsqueeze(-1)
        factor: Tensor | None = self._buffers["embed_scale"]
        return found if factor is None else found * factor


def rebuild(folder: Path | str) -> PreTrainedModel:
    """Load a model that was saved as 8-bit integers.

    Args:
        folder: Holds ``config.json`` and ``int8.safetensors``.

    Returns:
        The model on the CPU, ready to generate.

    Raises:
        ValueError: If the file is another kind, or does not fit ``config.json``.
        RuntimeError: If this processor cannot run it.
        OSError: If a file is missing.
        SafetensorError: If the weights are damaged.
    """
    place = Path(folder)
    config = AutoConfig.from_pretrained(place, trust_remote_code=False)
    with torch.device("meta"):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with safe_open(str(place / WEIGHTS_FILE), framework="pt") as file:
        header = file.metadata() or {}
        if any(header.get(key) != value for key, value in FORMAT.items()):
            raise ValueError(f"{WEIGHTS_FILE} does not hold 8-bit rows of version {FORMAT['version']}")
        names = set(file.keys())
        taken = _fill_layers(model, file, names, header.get(TIED))
        taken |= _fill_others(model, file, names - taken)
    _require_whole(model, names - taken)
    if (place / "generation_config.json").is_file():
        model.generation_config = GenerationConfig.from_pretrained(place)
    model.eval()
    return model


def _fill_layers(model: nn.Module, file: Any, names: set[str], tied: str | None) -> set[str]:
    """Put 8-bit layers in their places; return the names of the tensors used."""
    taken: set[str] = set()
    for name in sorted(name.removesuffix(f".{LEVELS}") for name in names if name.endswith(f".{LEVELS}")):
        parts = {part: f"{name}.{part}" for part in (LEVELS, SCALES, BIAS) if f"{name}.{part}" in names}
        tensors = {part: file.get_tensor(key) for part, key in parts.items()}
        _swap(model, name, tensors)
        if tied and isinstance(model.get_submodule(name), ByteEmbedding):
            _swap(model, tied, tensors)
        taken |= set(parts.values())
    return taken


def _swap(model: nn.Module, name: str, tensors: Mapping[str, Tensor]) -> None:
    """Replace a layer without weights by one with these."""
    place, levels, scales = model.get_submodule(name), tensors[LEVELS], tensors[SCALES]
    fits = isinstance(place, nn.Linear | nn.Embedding) and place.weight.shape == levels.shape
    if not fits:
        raise ValueError(
            f"{name} of shape {list(levels.shape)} does not fit the model that config.json describes"
        )
    if levels.dtype != torch.int8 or scales.dtype != torch.float32:
        raise ValueError(f"{name}: these are not 8-bit integers with float32 steps")
    if scales.shape != levels.shape[:1]:
        raise ValueError(f"{name} has {scales.numel()} steps for {len(levels)} rows")
    rows = Rows(levels, scales)
    if isinstance(place, nn.Linear):
        model.set_submodule(name, ByteLinear(rows, tensors.get(BIAS)))
    else:
        model.set_submodule(name, ByteEmbedding(rows, place._buffers.get("embed_scale")))


def _fill_others(model: nn.Module, file: Any, names: set[str]) -> set[str]:
    """Fill in norms, biases and frequencies, which stay float32; return the names of those used."""
    empty = {name for name, each in (*model.named_parameters(), *model.named_buffers()) if each.is_meta}
    for name in sorted(names & empty):
        path, _, leaf = name.rpartition(".")
        owner, value = model.get_submodule(path), file.get_tensor(name)
        if getattr(owner, leaf).shape != value.shape:
            raise ValueError(f"{name} does not have the shape that config.json describes")
        held = nn.Parameter(value, requires_grad=False) if leaf in owner._parameters else value
        setattr(owner, leaf, held)
    return names & empty


def _require_whole(model: nn.Module, unused: set[str]) -> None:
    lacking = [name for name, each in (*model.named_parameters(), *model.named_buffers()) if each.is_meta]
    if lacking:
        raise ValueError(
            f"{WEIGHTS_FILE} lacks {len(lacking)} tensors of the model, such as {sorted(lacking)[0]}"
        )
    if unused:
        raise ValueError(f"{WEIGHTS_FILE} holds tensors that the model has not, such as {sorted(unused)[0]}")


def main() -> None:
    """Answer the question of the command line."""
    options = argparse.ArgumentParser(description="Ask the model in this folder a question.")
    options.add_argument("question")
    options.add_argument("--system", default="")
    options.add_argument("--max-new-tokens", type=int, default=256)
    asked = options.parse_args()
    here = Path(__file__).resolve().parent
    tokenizer: Any = AutoTokenizer.from_pretrained(here, trust_remote_code=False)
    said = [("system", asked.system)] * bool(asked.system) + [("user", asked.question)]
    messages = [{"role": role, "content": text} for role, text in said]
    prompt = tokenizer.apply_chat_template(
        messages, add_generation_prompt=True, return_dict=True, return_tensors="pt"
    )
    model: Any = rebuild(here)
    made = model.generate(**prompt, max_new_tokens=asked.max_new_tokens, do_sample=False)
    answer = tokenizer.decode(made[0, prompt["input_ids"].shape[1] :], skip_special_tokens=True)
    sys.stdout.write(answer.strip() + "\n")


if __name__ == "__main__":
    main()
