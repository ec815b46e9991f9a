"""Build small models from nothing: a tokenizer trained on a text, and a Llama with random weights."""

from collections.abc import Iterable
from pathlib import Path

from pydantic import Field
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from core.artifacts import atomic_path
from core.config import Frozen
from core.models.seed import seed_everything

SPECIALS = ("<|bos|>", "<|pad|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>")

# The pre-tokenizer llama.cpp knows as "qwen2": every digit stands alone, so numbers are spelled
# out digit by digit, and text is cut the same way in PyTorch and in the exported file.
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)

CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{{ '<|' + message['role'] + '|>' + message['content'] | trim"
    " + '<|end|>' }}{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


class LlamaShape(Frozen):
    """Sizes of a small Llama."""

    vocab_size: int = Field(default=1024, ge=300)
    """v, tokens of the trained byte-level BPE."""
    hidden_size: int = 256
    """e; a multiple of 256, or the smallest GGUF types fall back to larger ones."""
    intermediate_size: int = 768
    """f; likewise."""
    layers: int = 4
    heads: int = 4
    """h, query heads."""
    kv_heads: int = 2
    """g, key and value heads."""
    max_positions: int = 512


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE tokenizer with this project's chat template.

    Args:
        texts: Documents; special tokens in them are kept whole.
        vocab_size: Tokens, the 256 bytes and six special ones included.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), behavior="isolated", invert=False),
            pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[AddedToken(text, special=True, normalized=False) for text in SPECIALS],
        # All bytes are in the vocabulary, so no text is ever unknown.
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<|bos|>",
        eos_token="<|end|>",
        pad_token="<|pad|>",
        additional_special_tokens=["<|system|>", "<|user|>", "<|assistant|>"],
        clean_up_tokenization_spaces=False,
    )
    wrapped.chat_template = CHAT_TEMPLATE
    return wrapped


def build_llama(shape: LlamaShape, tokenizer: PreTrainedTokenizerFast, seed: int) -> LlamaForCausalLM:
    """Build a Llama with random weights and tied embeddings, in float32."""
    seed_everything(seed)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=shape.vocab_size,
            hidden_size=shape.hidden_size,
            intermediate_size=shape.intermediate_size,
            num_hidden_layers=shape.layers,
            num_attention_heads=shape.heads,
            num_key_value_heads=shape.kv_heads,
            max_position_embeddings=shape.max_positions,
            tie_word_embeddings=True,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def save_model(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Write weights, config and tokenizer as one folder, atomically."""
    with atomic_path(folder) as part:
        model.save_pretrained(part, safe_serialization=True)
        tokenizer.save_pretrained(part)
