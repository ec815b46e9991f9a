"""Likeness of meaning by the token embeddings of a local encoder."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModel, AutoTokenizer

from core.errors import ModelError, ResourceError

BATCH = 64
"""Texts encoded at once; encoders are small."""
LONGEST = 512
"""Tokens of a text that are read, if the encoder's settings do not say; what follows is left out."""


def load_encoder(name: str, device: str = "cpu") -> "Encoder":
    """Load an encoder and its tokenizer: a folder or a Hub id, safetensors only, no remote code.

    Args:
        name: Folder or Hub id.
        device: cpu or gpu. On the CPU no memory of a GPU is touched.

    Raises:
        ModelError: If it cannot be loaded.
        ResourceError: If there is no GPU although one is asked for.
    """
    if device == "gpu" and not torch.cuda.is_available():
        raise ResourceError(
            "there is no GPU for the encoder", where="evaluation.encoder.device", fix="set device: cpu"
        )
    try:
        tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
        model = AutoModel.from_pretrained(
            name, dtype=torch.float32, use_safetensors=True, trust_remote_code=False
        )
    except (OSError, ValueError) as error:
        raise ModelError(
            f"cannot load the encoder: {str(error).splitlines()[0]}",
            where=name,
            fix="give a folder with config.json, tokenizer.json and *.safetensors, or a Hub id you can reach "
            "(evaluation.encoder.model)",
        ) from error
    return Encoder(model.to("cuda" if device == "gpu" else "cpu"), tokenizer)


class Encoder:
    """Compares texts by contextual token embeddings, the special tokens left out."""

    def __init__(self, model: Any, tokenizer: Any) -> None:
        """Take an encoder that gives ``last_hidden_state``, and its tokenizer."""
        self.model, self.tokenizer = model.eval(), tokenizer
        self.longest = _longest(model.config, tokenizer)

    def similarities(self, pairs: Sequence[tuple[str, str]]) -> list[float]:
        """Return the F1 of greedy matching for each pair of answer and reference.

        Recall is the mean, over the reference's tokens, of the largest cosine with a token of the answer;
        precision the same the other way round (BERTScore, arXiv:1904.09675, section 3, eq. 1-3; neither
        weighted by rarity nor rescaled). Below 0 it counts as 0. Of two empty texts it is 1, of one 0.

        Args:
            pairs: (answer, reference).
        """
        tokens = self._tokens([text for pair in pairs for text in pair])
        return [_matched(tokens[answer], tokens[reference]) for answer, reference in pairs]

    def mean_distance(self, texts: Sequence[str]) -> float:
        """Return the mean of 1 - cosine over all pairs of texts, each the mean of its token embeddings.

        A text without tokens is at distance 1 from all but its like. A single text is at distance 0.
        """
        tokens = self._tokens(texts)
        means = [_unit(tokens[text].mean(0)) if len(tokens[text]) else None for text in texts]
        pairs = [(a, b) for i, a in enumerate(means) for b in means[i + 1 :]]
        return sum(_distance(a, b) for a, b in pairs) / len(pairs) if pairs else 0.0

    def _tokens(self, texts: Sequence[str]) -> dict[str, Tensor]:
        """Return the token embeddings of each text, [s, e], float32 on the CPU."""
        order = sorted(set(texts), key=lambda text: (len(text), text))
        found: dict[str, Tensor] = {}
        for start in range(0, len(order), BATCH):
            chosen = order[start : start + BATCH]
            found.update(zip(chosen, self._encoded(chosen), strict=True))
        return found

    @torch.no_grad()
    def _encoded(self, texts: Sequence[str]) -> list[Tensor]:
        batch = self.tokenizer(
            list(texts),
            padding=True,
            truncation=True,
            max_length=self.longest,
            return_special_tokens_mask=True,
            return_tensors="pt",
        )
        special = batch.pop("special_tokens_mask").bool()
        inputs = {name: value.to(self.model.device) for name, value in batch.items()}
        hidden = self.model(**inputs).last_hidden_state.float().cpu()
        kept = batch["attention_mask"].bool() & ~special
        return [row[mask] for row, mask in zip(hidden, kept, strict=True)]


def _longest(config: Any, tokenizer: Any) -> int:
    """Return the most tokens of a text; RoBERTa's positions start after the padding id."""
    positions = getattr(config, "max_position_embeddings", LONGEST)
    offset = (config.pad_token_id or 0) + 1 if "roberta" in config.model_type else 0
    return int(min(tokenizer.model_max_length, positions - offset))


def _matched(answer: Tensor, reference: Tensor) -> float:
    if not len(answer) or not len(reference):
        return float(len(answer) == len(reference))
    cosines = _unit(answer) @ _unit(reference).T
    precision, recall = cosines.max(1).values.mean(), cosines.max(0).values.mean()
    total = float(precision + recall)
    f1 = 2 * float(precision) * float(recall) / total if total > 0 else 0.0
    return min(1.0, max(0.0, f1))


def _unit(vectors: Tensor) -> Tensor:
    return torch.nn.functional.normalize(vectors, dim=-1)


def _distance(left: Tensor | None, right: Tensor | None) -> float:
    if left is None or right is None:
        return float(left is not right)
    return 1 - float(left @ right)
