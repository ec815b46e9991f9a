"""Make base models of real shapes with random weights, and rows to train them on; nothing is downloaded.

    python -m tests.bench.h200.make_models FOLDER --models llama-1b,qwen3-4b

Weights are drawn on the GPU if there is one (std 0.02: power and clocks depend on the data, so no zeros) and stored
as bfloat16 shards. The tokenizer is trained on the spot; config.json pads its vocabulary to the family's.
"""

import argparse
import json
import random
import time
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedTokenizerFast

SHARD = 4 << 30
STD = 0.02
STARTS = "bdfgklmnprstvz"
ENDS = ("a", "e", "i", "o", "u", "an", "en", "on", "ar", "el")


class Chat(NamedTuple):
    """How a family writes a conversation."""

    bos: str
    end: str
    pad: str
    others: tuple[str, ...]
    template: str


LLAMA = Chat(
    "<|begin_of_text|>",
    "<|eot_id|>",
    "<|finetune_right_pad_id|>",
    ("<|start_header_id|>", "<|end_header_id|>", "<|end_of_text|>"),
    "{{ bos_token }}{% for message in messages %}{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n'"
    " + message['content'] | trim + '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}",
)
CHATML = Chat(
    "",
    "<|im_end|>",
    "<|endoftext|>",
    ("<|im_start|>",),
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}",
)
GEMMA = Chat(
    "<bos>",
    "<end_of_turn>",
    "<pad>",
    ("<start_of_turn>", "<eos>"),
    "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'system' %}"
    "{{ raise_exception('System role not supported') }}{% endif %}"
    "{{ '<start_of_turn>' + ('model' if message['role'] == 'assistant' else message['role']) + '\n'"
    " + message['content'] | trim + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}",
)


def _llama(
    hidden: int, layers: int, heads: int, kv: int, inner: int, tied: bool, **more: Any
) -> dict[str, Any]:
    return {
        "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": hidden,
        "num_hidden_layers": layers, "num_attention_heads": heads, "num_key_value_heads": kv,
        "intermediate_size": inner, "head_dim": hidden // heads, "vocab_size": 128_256, "tie_word_embeddings": tied,
        "max_position_embeddings": 131_072, "rms_norm_eps": 1e-5, "hidden_act": "silu",
        "rope_parameters": {"rope_type": "default", "rope_theta": 500_000.0}, **more,
    }  # fmt: skip


SHAPES: dict[str, tuple[Chat, dict[str, Any]]] = {
    "llama-1b": (LLAMA, _llama(2048, 16, 32, 8, 8192, True)),
    "llama-8b": (LLAMA, _llama(4096, 32, 32, 8, 14_336, False)),
    "qwen3-4b": (CHATML, {
        "model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"], "hidden_size": 2560, "num_hidden_layers": 36,
        "num_attention_heads": 32, "num_key_value_heads": 8, "intermediate_size": 9728, "head_dim": 128,
        "vocab_size": 151_936, "tie_word_embeddings": True, "max_position_embeddings": 40_960, "rms_norm_eps": 1e-6,
        "hidden_act": "silu", "rope_parameters": {"rope_type": "default", "rope_theta": 1_000_000.0},
    }),
    "gemma3-1b": (GEMMA, {
        "model_type": "gemma3_text", "architectures": ["Gemma3ForCausalLM"], "hidden_size": 1152,
        "num_hidden_layers": 26, "num_attention_heads": 4, "num_key_value_heads": 1, "intermediate_size": 6912,
        "head_dim": 256, "vocab_size": 262_144, "tie_word_embeddings": True, "max_position_embeddings": 32_768,
        "query_pre_attn_scalar": 256, "sliding_window": 512,
    }),
    "gemma3-4b": (GEMMA, {
        "model_type": "gemma3_text", "architectures": ["Gemma3ForCausalLM"], "hidden_size": 2560,
        "num_hidden_layers": 34, "num_attention_heads": 8, "num_key_value_heads": 4, "intermediate_size": 10_240,
        "head_dim": 256, "vocab_size": 262_208, "tie_word_embeddings": True, "max_position_embeddings": 131_072,
        "query_pre_attn_scalar": 256, "sliding_window": 1024,
    }),
    "phi-3-mini": (CHATML, {
        "model_type": "phi3", "architectures": ["Phi3ForCausalLM"], "hidden_size": 3072, "num_hidden_layers": 32,
        "num_attention_heads": 32, "num_key_value_heads": 32, "intermediate_size": 8192, "vocab_size": 32_064,
        "tie_word_embeddings": False, "max_position_embeddings": 4096, "original_max_position_embeddings": 4096,
        "rms_norm_eps": 1e-5, "hidden_act": "silu",
    }),
}  # fmt: skip

SMALL = {
    "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "intermediate_size": 128, "head_dim": 16, "vocab_size": 1024, "query_pre_attn_scalar": 16,
}  # fmt: skip


def config_of(name: str, *, tiny: bool = False) -> PretrainedConfig:
    """Build a family's config, of the real size or of a size for trying this on a CPU."""
    settings = dict(SHAPES[name][1])
    if tiny:
        settings.update({key: value for key, value in SMALL.items() if key in settings})
    kind = settings.pop("model_type")
    return AutoConfig.for_model(kind, **settings, dtype="bfloat16")


def make_tokenizer(chat: Chat) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE tokenizer of about 600 tokens on invented words."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = [text for text in (chat.bos, chat.end, chat.pad, *chat.others) if text]
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        special_tokens=[AddedToken(text, special=True, normalized=False) for text in special],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    rng = random.Random(1)
    tokenizer.train_from_iterator((" ".join(_words(rng, 50)) for _ in range(400)), trainer)
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=chat.bos or None,
        eos_token=chat.end,
        pad_token=chat.pad,
        additional_special_tokens=list(chat.others),
        clean_up_tokenization_spaces=False,
    )
    wrapped.chat_template = chat.template
    return wrapped


def _words(rng: random.Random, n: int) -> list[str]:
    return [
        "".join(rng.choice(STARTS) + rng.choice(ENDS) for _ in range(rng.randint(2, 4))) for _ in range(n)
    ]


def make_model(name: str, folder: Path, *, tiny: bool = False, seed: int = 0) -> float:
    """Write config, weights and tokenizer of one model; returns the seconds it took."""
    began = time.monotonic()
    folder.mkdir(parents=True, exist_ok=True)
    config, tokenizer = config_of(name, tiny=tiny), make_tokenizer(SHAPES[name][0])
    config.bos_token_id, config.eos_token_id = tokenizer.bos_token_id, tokenizer.eos_token_id
    config.pad_token_id = tokenizer.pad_token_id
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    _write_shards(model, folder, seed)
    config.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    ids = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    (folder / "generation_config.json").write_text(
        json.dumps({**ids, "pad_token_id": tokenizer.pad_token_id})
    )
    return time.monotonic() - began


def _write_shards(model: torch.nn.Module, folder: Path, seed: int) -> None:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    generator = torch.Generator(device).manual_seed(seed)
    is_gemma = "gemma" in type(model).__name__.lower()
    placed: dict[str, str] = {}
    shard: dict[str, torch.Tensor] = {}
    total = held = number = 0
    stored = [(name, parameter.shape) for name, parameter in model.named_parameters()]
    for i, (name, shape) in enumerate(stored, 1):
        tensor = torch.empty(shape, dtype=torch.bfloat16, device=device)
        _fill(name, tensor, generator, is_gemma=is_gemma)
        shard[name] = tensor.cpu()
        held += tensor.numel() * 2
        if held > SHARD or i == len(stored):
            number, total = number + 1, total + held
            file = f"model-{number:05d}.safetensors"
            save_file(shard, folder / file, metadata={"format": "pt"})
            placed |= dict.fromkeys(shard, file)
            shard, held = {}, 0
    index = {"metadata": {"total_size": total}, "weight_map": placed}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def _fill(name: str, tensor: torch.Tensor, generator: torch.Generator, *, is_gemma: bool) -> None:
    if tensor.ndim > 1:
        tensor.normal_(0.0, STD, generator=generator)
    elif name.endswith("bias") or is_gemma:
        tensor.zero_()  # Gemma's norms multiply by 1 + weight
    else:
        tensor.fill_(1.0)


def make_rows(target: Path, tokenizer: PreTrainedTokenizerFast, n: int, length: int) -> float:
    """Write chat rows of nearly ``length`` tokens each; returns their mean length in tokens.

    The question is short and the answer long, so that nearly every position is trained.
    """
    rng, total = random.Random(7), 0
    target.parent.mkdir(parents=True, exist_ok=True)
    with target.open("w", encoding="utf-8") as out:
        for _ in range(n):
            question, answer = " ".join(_words(rng, 12)) + "?", _answer(rng, tokenizer, length - 48)
            turns = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
            total += len(tokenizer(tokenizer.apply_chat_template(turns, tokenize=False)).input_ids)
            out.write(json.dumps({"messages": turns}) + "\n")
    return total / n


def _answer(rng: random.Random, tokenizer: PreTrainedTokenizerFast, tokens: int) -> str:
    words = _words(rng, tokens)
    ids = tokenizer(" ".join(words), add_special_tokens=False).input_ids[: max(4, tokens - 16)]
    return str(tokenizer.decode(ids)).strip()


def main() -> None:
    """Make the models named on the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--models", default="llama-1b")
    parser.add_argument("--tiny", action="store_true")
    options = parser.parse_args()
    for name in options.models.split(","):
        seconds = make_model(name, options.folder / name, tiny=options.tiny)
        print(f"{name}: {seconds:.1f} s", flush=True)


if __name__ == "__main__":
    main()
