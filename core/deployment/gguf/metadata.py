"""A model's shape and its tokenizer, as GGUF metadata."""

import re
from pathlib import Path
from typing import Any

from gguf import GGML_QUANT_VERSION, GGUFWriter

from core.deployment.gguf.families import Family, head_width
from core.deployment.gguf.speech import Stops, chat_template, speech_of, spelling_of, stops_of
from core.deployment.gguf.vocab import Vocab
from core.deployment.llama.spelling import KEY
from core.deployment.llama.template import without_generation_tags


def write_shape(writer: GGUFWriter, config: Any, family: Family) -> None:
    """Write widths, counts and limits of the network.

    Args:
        writer: File under construction.
        config: transformers config of the language model.
        family: Its family.
    """
    heads = config.num_attention_heads
    writer.add_context_length(_usable_context(config, family))
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(heads)
    writer.add_head_count_kv(getattr(config, "num_key_value_heads", None) or heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_key_length(head_width(config))
    writer.add_value_length(head_width(config))
    if family.alternates_window:
        writer.add_sliding_window(config.sliding_window)


def _usable_context(config: Any, family: Family) -> int:
    """Return how many tokens llama.cpp computes exactly.

    Where it ignores a sliding window, results hold only as far as the window reaches.
    """
    window = None if family.alternates_window else getattr(config, "sliding_window", None)
    return int(min(config.max_position_embeddings, window or config.max_position_embeddings))


def write_identity(writer: GGUFWriter, name: str, file_type: int, vocab: Vocab) -> None:
    """Write the file's name and type.

    llama.cpp trims the space after control tokens if, and only if, the name mentions
    Phi-3 (and then it insists on that tokenizer's tokens), so the name must say so
    exactly when the tokenizer does trim.

    Args:
        writer: File under construction.
        name: Name the model gets.
        file_type: llama.cpp's number of the type most weights have.
        vocab: The vocabulary that goes into the file.
    """
    mention = re.compile(r"(phi)-?(3)", re.IGNORECASE)
    if not vocab.trims_after_control:
        name = mention.sub(r"\1 \2", name)
    elif not mention.search(name):
        name = f"{name} (phi-3 tokenizer)"
    writer.add_name(name)
    writer.add_file_type(file_type)
    writer.add_quantization_version(GGML_QUANT_VERSION)


def write_tokenizer(writer: GGUFWriter, vocab: Vocab, tokenizer: Any, model_dir: Path) -> None:
    """Write the vocabulary, the special tokens and the chat template.

    Args:
        writer: File under construction.
        vocab: The vocabulary in GGUF's terms.
        tokenizer: The transformers tokenizer it was read from.
        model_dir: Folder that may hold a ``generation_config.json``.
    """
    writer.add_tokenizer_model(vocab.model)
    writer.add_tokenizer_pre(vocab.pre)
    writer.add_token_list(vocab.tokens)
    writer.add_token_types(vocab.types)
    writer.add_vocab_size(len(vocab.tokens))
    if vocab.scores is not None:
        writer.add_token_scores(vocab.scores)
        writer.add_add_space_prefix(vocab.space_prefix)
    if vocab.merges is not None:
        writer.add_token_merges(vocab.merges)
    chat = speech_of(tokenizer)
    _write_special(writer, tokenizer, stops_of(tokenizer, chat, model_dir))
    writer.add_string(KEY, spelling_of(tokenizer, chat, model_dir).dump())
    template = chat_template(tokenizer)
    if template:
        writer.add_chat_template(without_generation_tags(template))


def _write_special(writer: GGUFWriter, tokenizer: Any, stops: Stops) -> None:
    for token, add in (
        (tokenizer.bos_token_id, writer.add_bos_token_id),
        (tokenizer.eos_token_id, writer.add_eos_token_id),
        (tokenizer.pad_token_id, writer.add_pad_token_id),
        (tokenizer.unk_token_id, writer.add_unk_token_id),
        (stops.eot, writer.add_eot_token_id),
        (stops.eom, writer.add_eom_token_id),
    ):
        if token is not None:
            add(token)
    ids = tokenizer("a")["input_ids"]
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    writer.add_add_bos_token(bos is not None and ids[0] == bos)
    writer.add_add_eos_token(eos is not None and ids[-1] == eos)
