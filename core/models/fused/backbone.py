"""The fused forward function of a model's backbone, put over its own and taken off again."""

import types
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers.masking_utils import create_causal_mask, create_sliding_window_causal_mask
from transformers.modeling_outputs import BaseModelOutputWithPast

from core.kernels.attention import Documents
from core.models.fused.layer import decode
from core.models.fused.passes import Pass
from core.models.fused.sites import Norm, Unsupported, norm_of, refuse_hooks
from core.models.fused.state import MARK, SAVE, FusedState, backbone_of, fused_state, obstacle
from core.models.fused.store import Store
from core.models.fused.stream import FinalNorm, Stream


def fuse(model: nn.Module, dtype: torch.dtype | None = None) -> FusedState | None:
    """Let a model's decoder layers run as fused functions; its modules, parameters and state dict stay.

    Args:
        model: A causal model of Transformers, with PEFT's adapters on it or without.
        dtype: What is computed in; None takes that of the embeddings.

    Returns:
        The handle, whose ``unload`` undoes it; None if its family has no fused layers.
    """
    if obstacle(model):
        return None
    if held := fused_state(model):
        return held
    backbone: Any = backbone_of(model)
    state = FusedState(backbone, backbone.config, dtype or backbone.embed_tokens.weight.dtype)
    state.settle()
    setattr(backbone, MARK, state)
    backbone.forward = types.MethodType(fused_forward, backbone)
    owner = model.get_base_model() if hasattr(model, "get_base_model") else model  # type: ignore[operator]
    state.savers = tuple(
        each for each in dict.fromkeys((owner, backbone)) if SAVE in dir(each) and SAVE not in vars(each)
    )
    for each in state.savers:
        setattr(each, SAVE, types.MethodType(fused_save, each))
    return state


def fused_save(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
    """Stand in for ``save_pretrained``, which refuses weights that share memory and are not contiguous."""
    state: Any = fused_state(self)
    with state.moved_out():
        return getattr(type(self), SAVE)(self, *args, **kwargs)


def fused_forward(
    self: nn.Module,
    input_ids: Tensor | None = None,
    attention_mask: Tensor | None = None,
    position_ids: Tensor | None = None,
    past_key_values: Any = None,
    inputs_embeds: Tensor | None = None,
    use_cache: bool | None = None,
    **more: Any,
) -> Any:
    """Stand in for a backbone's own forward function, which still runs for what this one does not do."""
    state: Any = getattr(self, MARK)
    asked = Asked(input_ids, attention_mask, position_ids, inputs_embeds)
    reason = refusal(state, asked, past_key_values, use_cache, more)
    if reason is None:
        return run(state, asked, more)
    if reason:
        state.tell(reason)
    return state.replaced(
        input_ids=input_ids, attention_mask=attention_mask, position_ids=position_ids,
        past_key_values=past_key_values, inputs_embeds=inputs_embeds, use_cache=use_cache, **more,
    )  # fmt: skip


class Asked(NamedTuple):
    """What a backbone is given."""

    input_ids: Tensor | None
    mask: Tensor | None
    position_ids: Tensor | None
    embedded: Tensor | None


DOCUMENTS = ("cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k")
"""How Transformers is told where documents lie; a caller that knows saves the GPU a question."""
COLLECTED = ("output_hidden_states", "output_attentions")
"""What may be asked for besides the last hidden state, by a call or in the model's config."""


def refusal(
    state: FusedState, asked: Asked, cache: Any, use_cache: bool | None, more: dict[str, Any]
) -> str | None:
    """Say why the model's own code must run; "" where nobody needs to be told, None if it need not."""
    caches = (
        bool(state.settings.use_cache) and not torch.is_grad_enabled() if use_cache is None else use_cache
    )
    collects = any(more.get(name, getattr(state.settings, name, False)) for name in COLLECTED)
    if cache is not None or caches or collects or more.get("return_dict") is False:
        return ""
    if (asked.input_ids is None) == (asked.embedded is None):
        return ""
    unknown = {name for name, value in more.items() if value is not None and value is not False} - {
        *DOCUMENTS, *COLLECTED, "return_dict", "num_items_in_batch", "logits_to_keep",
    }  # fmt: skip
    if unknown:
        return f"batches with {', '.join(sorted(unknown))} run by the model's own code"
    mask = asked.mask
    if mask is None:
        return None
    if not isinstance(mask, Tensor) or mask.dim() != 2:
        return "batches with a mask of their own run by the model's own code"
    if bool((mask[:, 1:] > mask[:, :-1]).any()) or not bool(mask[:, 0].all()):
        return "batches padded on the left run by the model's own code, which is slower; pad on the right"
    return None


def run(state: FusedState, asked: Asked, more: dict[str, Any]) -> BaseModelOutputWithPast:
    """Run the backbone, layer by layer."""
    backbone: Any = state.backbone
    hidden = embedded(backbone, asked)
    b, s, e = hidden.shape
    # Where there is a mask, Transformers takes a row as one document, whatever its positions.
    documents = documents_of(asked.position_ids if asked.mask is None else None, (b, s), more)
    positions = positions_of(asked.position_ids, (b, s), hidden.device)
    reach = reach_of(asked.position_ids, s, more)
    sites = state.sites()
    angles = {site.rope: state.tables(site.rope, reach) for site in sites.values()}
    this = Pass(
        (b, s), positions, angles, documents, Store(hidden.device, state.host), state.scratch, state.chooser
    )
    this.sites, this.depth, this.last = sites, len(state.layers), known_norm(backbone.norm)
    this.gathering = state.gathering
    x = hidden.to(state.dtype).reshape(b * s, e)
    keeps = torch.is_grad_enabled()
    if keeps:
        this.policies = state.policies(sites, b * s, documents.longest if documents else s)
        this.store.ahead = 1 if state.planned is not None and state.planned.is_uneven else 0
    others = Others(state, asked, hidden)
    for index, layer in enumerate(state.layers):
        if index in sites:
            trains = x.requires_grad or any(each.requires_grad for each in sites[index].parameters)
            x = decode(x, this, index, keeps=keeps and trains)
        else:
            x = others(layer, index, x.view(b, s, e)).reshape(b * s, e)
    x = closed(this, backbone.norm, x)
    return BaseModelOutputWithPast(last_hidden_state=x.view(b, s, e))


ASKS = "make_inputs_require_grad"
"""How the hooks' names begin by which Transformers and PEFT let frozen embeddings claim a gradient."""


def embedded(backbone: Any, asked: Asked) -> Tensor:
    """Return the first hidden states [b, s, e].

    Checkpoints of another kind than ours want a gradient to reach frozen embeddings. Nobody reads it, and the first
    layer would multiply for it.
    """
    if asked.embedded is not None:
        return asked.embedded
    found: Tensor = backbone.embed_tokens(asked.input_ids)
    hooks = backbone.embed_tokens._forward_hooks.values()
    is_nobodys = found.is_leaf and all(getattr(each, "__name__", "").startswith(ASKS) for each in hooks)
    return found.detach() if is_nobodys else found


def closed(this: Pass, norm: nn.Module, x: Tensor) -> Tensor:
    """Apply the last norm to [t, e]; the stream has done its work then."""
    found: Tensor = norm(x) if this.last is None else FinalNorm.apply(x, this.last, this.stream)  # type: ignore[no-untyped-call]
    this.stream = Stream()
    return found


def known_norm(norm: nn.Module) -> Norm | None:
    """Describe the last norm; None if its own code must run."""
    try:
        refuse_hooks(norm)
        return norm_of(norm)
    except Unsupported:
        return None


class Others:
    """Runs layers that are not fused by their own code, with what their own backbone would give them."""

    def __init__(self, state: FusedState, asked: Asked, hidden: Tensor) -> None:
        self.state, self.asked, self.hidden = state, asked, hidden
        self.made: dict[str, tuple[Any, Any]] = {}

    def __call__(self, layer: nn.Module, index: int, x: Tensor) -> Tensor:
        """Run one layer on [b, s, e], computing it again in the backward pass where that is wanted."""
        kinds = getattr(self.state.settings, "layer_types", None)
        mask, turns = self._surroundings(kinds[index] if kinds else "full_attention")
        places = self._places()

        def own(y: Tensor) -> Tensor:
            out = layer(y, attention_mask=mask, position_embeddings=turns, position_ids=places)
            found: Tensor = out[0] if isinstance(out, tuple) else out
            return found

        if self.state.is_checkpointed and torch.is_grad_enabled() and layer.training:
            result: Tensor = checkpoint(own, x, use_reentrant=False)
            return result
        return own(x)

    def _places(self) -> Tensor:
        if self.asked.position_ids is not None:
            return self.asked.position_ids
        return torch.arange(self.hidden.shape[1], device=self.hidden.device)[None]

    def _surroundings(self, kind: str) -> tuple[Any, Any]:
        if kind not in self.made:
            make = create_sliding_window_causal_mask if kind == "sliding_attention" else create_causal_mask
            settings = self.state.settings
            if settings.model_type == "mistral" and getattr(settings, "sliding_window", None):
                make = create_sliding_window_causal_mask
            places = self._places()
            mask = make(
                config=settings, inputs_embeds=self.hidden, attention_mask=self.asked.mask, past_key_values=None,
                position_ids=places,
            )  # fmt: skip
            rotary: Any = self.state.backbone.rotary_emb
            keyed = settings.model_type == "gemma3_text"
            turns = rotary(self.hidden, places, kind) if keyed else rotary(self.hidden, position_ids=places)
            self.made[kind] = mask, turns
        return self.made[kind]


def positions_of(position_ids: Tensor | None, shape: tuple[int, int], device: torch.device) -> Tensor:
    """Return the position of every token: [b * s] int32."""
    b, s = shape
    if position_ids is None:
        return torch.arange(s, device=device, dtype=torch.int32).repeat(b)
    return position_ids.to(torch.int32).expand(b, s).reshape(-1)


def reach_of(position_ids: Tensor | None, tokens: int, more: dict[str, Any]) -> int:
    """Return how many positions the tables of angles need; a GPU is asked only where nobody told."""
    if position_ids is None:
        return tokens
    if more.get("cu_seq_lens_q") is not None:
        return max(tokens, int(more.get("max_length_q") or 0))
    return int(position_ids.max()) + 1


def documents_of(
    position_ids: Tensor | None, shape: tuple[int, int], more: dict[str, Any]
) -> Documents | None:
    """Find where documents begin: as told, or where positions do not go on by one.

    Returns:
        None if every row is one document.
    """
    starts = more.get("cu_seq_lens_q")
    if starts is not None:
        longest = more.get("max_length_q")
        return Documents(starts.to(torch.int32), int(longest) if longest is not None else shape[1])
    if position_ids is None:
        return None
    b, s = shape
    begins = torch.ones(b, s, dtype=torch.bool, device=position_ids.device)
    begins[:, 1:] = position_ids[:, 1:] != position_ids[:, :-1] + 1
    found = torch.nonzero(begins.reshape(-1)).flatten()
    if found.numel() == b:
        return None
    starts = torch.cat([found, found.new_tensor([b * s])]).to(torch.int32)
    return Documents(starts, int(starts.diff().max()))
