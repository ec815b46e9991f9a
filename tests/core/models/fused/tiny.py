"""Tiny random models of every family that is fused, with adapters whose B is not zero, and the same model unfused."""

import copy
import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from core.models.fused import attention_backward, layer, mlp_backward, recalled, stream, sublayers
from core.models.fused import gradients as below
from core.models.fused.backbone import fuse
from core.models.fused.policy import FULL, LEAST, Place, Policy
from core.models.fused.state import FusedState

SIZES = {
    "vocab_size": 97, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 256, "pad_token_id": 0, "bos_token_id": 1,
    "eos_token_id": 2,
}  # fmt: skip
WINDOW = 5
MIXED_KINDS = ["sliding_attention", "sliding_attention", "full_attention"]


def _turned(kind: str, **settings: float) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": kind, "rope_theta": 10000.0, **settings}}


FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {"model_type": "llama"},
    "llama3": {"model_type": "llama", **_turned("llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
                                                original_max_position_embeddings=64)},
    "linear": {"model_type": "llama", **_turned("linear", factor=2.0)},
    "yarn": {"model_type": "llama", **_turned("yarn", factor=4.0, original_max_position_embeddings=64)},
    "biased": {"model_type": "llama", "attention_bias": True, "mlp_bias": True},
    "mistral": {"model_type": "mistral", "sliding_window": WINDOW},
    "qwen2": {"model_type": "qwen2"},
    "qwen2-window": {"model_type": "qwen2", "use_sliding_window": True, "sliding_window": WINDOW,
                     "layer_types": MIXED_KINDS},
    "qwen3": {"model_type": "qwen3"},
    "gemma3": {"model_type": "gemma3_text", "sliding_window": WINDOW, "query_pre_attn_scalar": 20,
               "layer_types": MIXED_KINDS, "tie_word_embeddings": True,
               "rope_parameters": {"sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
                                   "full_attention": {"rope_type": "linear", "rope_theta": 1e6, "factor": 8.0}}},
}  # fmt: skip
"""Every way of turning, windows, biases, head norms, and a sandwich with two tables of angles."""
KINDS = ("llama3", "mistral", "qwen2", "qwen3", "gemma3")
"""One of each model type."""
ALL = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")

R, H, D = Place.RECOMPUTE, Place.HOST, Place.DEVICE
POLICIES = {
    "full": FULL,
    "least": LEAST,
    "attention": Policy(D, R, D, R, R, R, D),
    "gates": Policy(D, D, R, R, D, D, D),
    "residuals": Policy(H, R, R, D, R, R, H),
    "host": Policy(H, H, H, H, R, H, H),
    "queries": Policy(H, H, R, R, D, R, D),
}
"""What each layer keeps: input, qkv, attention, residual, gate_up, attention_out, mlp_out."""


def base(name: str, dtype: torch.dtype = torch.float64, **settings: Any) -> PreTrainedModel:
    """Build a model whose norms and biases are nothing special."""
    torch.manual_seed(11)
    config = AutoConfig.for_model(**{**SIZES, **FAMILIES[name], **settings})
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.normal_(0.5, 0.2)
            else:
                parameter.mul_(4.0)
            # Loading casts parameters too, and leaves the frequencies of rotary embeddings alone.
            parameter.data = parameter.data.to(dtype)
    return model.eval()


def adapt(model: PreTrainedModel, *, seed: int = 3, **settings: Any) -> PeftModel:
    """Put an adapter on that already does something."""
    settings = {"r": 4, "lora_alpha": 6, "target_modules": list(ALL), **settings}
    adapted = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", **settings))
    stir(adapted, seed)
    return adapted


def stir(model: nn.Module, seed: int = 3) -> None:
    """Give every adapter tensor random values."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                drawn = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
                parameter.copy_(0.1 * drawn)


class Pair(NamedTuple):
    """The same model twice."""

    theirs: PeftModel
    """By Transformers and PEFT."""
    ours: PeftModel
    state: FusedState


_BUILT: dict[str, bytes] = {}
"""Models with adapters, by what they were built from."""


def pair(
    name: str, dtype: torch.dtype = torch.float64, config: dict[str, Any] | None = None, **lora: Any
) -> Pair:
    """Return a model with an adapter, and a copy of it that is fused."""
    # Building one takes several times as long as reading the bytes of one that was built before.
    key = repr((name, dtype, config, sorted(lora.items())))
    if key not in _BUILT:
        _BUILT[key] = pickle.dumps(adapt(base(name, dtype, **(config or {})), **lora))
    torch.manual_seed(11)
    return _fused(*(pickle.loads(_BUILT[key]) for _ in range(2)))


def fused_copy(theirs: PeftModel) -> Pair:
    """Fuse a copy."""
    return _fused(theirs, copy.deepcopy(theirs))


def _fused(theirs: PeftModel, ours: PeftModel) -> Pair:
    state = fuse(ours)
    assert state is not None
    return Pair(theirs, ours, state)


def keep(state: FusedState, policy: Policy) -> None:
    """Let every layer keep the same."""
    state.policies = lambda sites, tokens, longest: dict.fromkeys(sites, policy)  # type: ignore[method-assign]


def ids(b: int = 3, s: int = 13, seed: int = 7) -> Tensor:
    """Draw tokens that are not special."""
    return torch.randint(3, 97, (b, s), generator=torch.Generator().manual_seed(seed))


Gradients = dict[str, Tensor]


def gradients(model: nn.Module) -> Gradients:
    """Return copies of all gradients."""
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def learn(model: nn.Module, tokens: Tensor | None = None, **inputs: Any) -> tuple[Tensor, Gradients]:
    """Return the loss and its gradients by the model's own loss function."""
    tokens = ids() if tokens is None else tokens
    model.zero_grad()
    inputs = {"input_ids": tokens, "labels": tokens, "use_cache": False, **inputs}
    loss = model(**inputs).loss
    loss.backward()
    return loss.detach(), gradients(model)


def error(found: Gradients, exact: Gradients) -> float:
    """Return the largest relative Frobenius error of a tensor."""
    assert list(found) == list(exact)
    return max(
        ((found[name].double() - one.double()).norm() / one.double().norm().clamp_min(1e-30)).item()
        for name, one in exact.items()
    )


def same(model: Pair, tolerance: float = 3e-5, **inputs: Any) -> None:
    """See that both models have the same loss and gradients; eager attention rounds to float32 in between."""
    expected, theirs = learn(model.theirs, **inputs)
    found, ours = learn(model.ours, **inputs)
    assert torch.allclose(found.double(), expected.double(), rtol=tolerance / 10, atol=0)
    assert all(float(one.norm()) > 0 for one in ours.values())
    assert error(ours, theirs) < tolerance


def hidden(model: nn.Module, **inputs: Any) -> Tensor:
    """Return logits without gradients."""
    with torch.no_grad():
        found: Tensor = model(**{"use_cache": False, **inputs}).logits
    return found


@contextmanager
def counted(patch: Any, owner: Any, name: str) -> Iterator[list[tuple[Any, ...]]]:
    """Note the arguments of every call of a method, which still runs."""
    calls: list[tuple[Any, ...]] = []
    real = getattr(owner, name)

    def noting(*args: Any, **kwargs: Any) -> Any:
        calls.append(args)
        return real(*args, **kwargs)

    with patch.context() as inner:
        inner.setattr(owner, name, noting)
        yield calls


class Spent:
    """Memory that runs out once, in the middle of a step."""

    def __init__(self, real: Any, after: int) -> None:
        self.real, self.left = real, after

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.left -= 1
        if self.left == 0:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return self.real(*args, **kwargs)


def run_out(patch: Any, name: str, after: int) -> Spent:
    """Let memory run out at one call of an operator, wherever the layers call it."""
    places = [
        each
        for each in (attention_backward, below, layer, mlp_backward, recalled, stream, sublayers)
        if hasattr(each, name)
    ]
    spent = Spent(getattr(places[0], name), after)
    for place in places:
        patch.setattr(place, name, spent)
    return spent
