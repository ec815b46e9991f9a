"""Greedy matching of token embeddings against a brute-force formula, on a tiny random BERT."""

import math
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

from core.errors import ModelError, ResourceError
from core.evaluation.config import EncoderConfig, EvaluationConfig
from core.evaluation.metrics import Asked, Tools, measure
from core.evaluation.questions import Question
from core.evaluation.responders import Answer
from core.evaluation.similarity import Encoder, load_encoder

WORDS = [
    "[PAD]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    "the",
    "cat",
    "sat",
    "on",
    "mat",
    "a",
    "dog",
    "ran",
    "far",
    "away",
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    backend = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    backend.normalizer = normalizers.Lowercase()
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]"
    )
    config = BertConfig(
        vocab_size=14, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=12, pad_token_id=0,
    )  # fmt: skip
    model = BertModel(config)
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn(weight.shape, generator=draw) * 0.3)
    place = tmp_path_factory.mktemp("encoder")
    model.save_pretrained(place)
    tokenizer.save_pretrained(place)
    return place


@pytest.fixture(scope="module")
def encoder(folder: Path) -> Encoder:
    return load_encoder(str(folder))


def vectors(encoder: Encoder, text: str) -> list[list[float]]:
    ids = [2, *(WORDS.index(word) for word in text.split()), 3]
    with torch.no_grad():
        hidden = encoder.model(input_ids=torch.tensor([ids])).last_hidden_state[0]
    return hidden[1:-1].tolist()


def cosine(a, b) -> float:
    dot = sum(x * y for x, y in zip(a, b, strict=True))
    return dot / math.sqrt(sum(x * x for x in a) * sum(y * y for y in b))


def by_formula(encoder: Encoder, answer: str, reference: str) -> float:
    got, wanted = vectors(encoder, answer), vectors(encoder, reference)
    recall = sum(max(cosine(x, y) for y in got) for x in wanted) / len(wanted)
    precision = sum(max(cosine(x, y) for x in wanted) for y in got) / len(got)
    return 2 * precision * recall / (precision + recall)


def test_similarity_is_the_f1_of_greedy_matching_whatever_else_is_in_the_batch(encoder: Encoder):
    pairs = [
        ("the cat sat", "a dog ran far away"),
        ("the cat", "the cat sat on the mat"),
        ("dog", "cat"),
        ("a a", "a"),
    ]
    found = encoder.similarities(pairs)
    assert found == pytest.approx([by_formula(encoder, *pair) for pair in pairs], rel=1e-5)
    assert found == pytest.approx([encoder.similarities([pair])[0] for pair in pairs], rel=1e-5)
    assert len(set(found)) == 4


def test_equal_texts_are_alike_and_empty_ones_only_to_each_other(encoder: Encoder):
    pairs = [
        ("the cat sat", "the cat sat"),
        ("", "cat"),
        ("cat", " "),
        ("", ""),
        ("THE Cat sat", "the cat sat"),
    ]
    assert encoder.similarities(pairs) == pytest.approx([1, 0, 0, 1, 1])
    assert max(encoder.similarities(pairs)) <= 1.0


def test_what_exceeds_the_encoder_is_left_out(encoder: Encoder):
    assert encoder.longest == 12
    long = "the cat sat on the mat a dog ran far"
    assert encoder.similarities([(f"{long} away away", long)]) == pytest.approx([1.0])


def test_mean_distance_is_over_all_pairs_of_mean_embeddings(encoder: Encoder):
    texts = ["the cat sat", "a dog", "far away", "a dog"]
    means = [torch.tensor(vectors(encoder, text)).mean(0).tolist() for text in texts]
    pairs = [1 - cosine(means[i], means[j]) for i in range(4) for j in range(i + 1, 4)]
    assert encoder.mean_distance(texts) == pytest.approx(sum(pairs) / 6, rel=1e-4)
    assert encoder.mean_distance(["cat"]) == 0.0
    assert encoder.mean_distance(["cat", "cat"]) == pytest.approx(0.0, abs=1e-6)
    assert encoder.mean_distance(["cat", ""]) == 1.0
    assert encoder.mean_distance(["", ""]) == 0.0


def test_similarity_is_a_metric(folder: Path, encoder: Encoder):
    config = EvaluationConfig(encoder=EncoderConfig(model=str(folder)), resamples=1000)
    said = ("the cat", "a dog ran")
    asked = [
        Asked(Question(f"q{i}", [], "the cat sat", {}), [], Answer(text, [], 1))
        for i, text in enumerate(said)
    ]
    found = measure("similarity", asked, None, config, Tools())
    assert found.scores == pytest.approx(
        [by_formula(encoder, text, "the cat sat") for text in said], rel=1e-5
    )


def test_an_encoder_that_cannot_be_had_is_one_message(tmp_path: Path, folder: Path):
    with pytest.raises(ModelError, match="cannot load the encoder"):
        load_encoder(str(tmp_path))
    if not torch.cuda.is_available():
        with pytest.raises(ResourceError, match="no GPU"):
            load_encoder(str(folder), "gpu")


def test_pickled_weights_are_refused(folder: Path, tmp_path: Path):
    for file in folder.iterdir():
        if file.suffix != ".safetensors":
            (tmp_path / file.name).write_bytes(file.read_bytes())
    torch.save(BertModel.from_pretrained(folder).state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(ModelError, match="cannot load the encoder"):
        load_encoder(str(tmp_path))
