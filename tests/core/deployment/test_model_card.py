import json

import pytest
import yaml

from core.data.reports import IngestReport, Leakage, SourceCount, SplitReport
from core.deployment.config import DeploymentConfig
from core.deployment.model_card import (
    BaseFacts,
    CardFacts,
    GateNote,
    build_card,
    model_card_schema,
    render_card,
    validate_card,
)
from core.deployment.reports import Smoke
from core.errors import ConfigError
from core.evaluation.reports import Decoding, EvalReport, MetricValue, Suite
from core.models.config import LoraConfig, ModelConfig
from core.training.config import TrainingConfig
from core.training.reports import TrainReport

DIGEST = "sha256:" + "1" * 64
# The product owner's schema, written down a second time: a star is a required field, [] a list.
OWNER = {
    "": "model_id* base_model* domain* training_data* evaluation* intended_use* model_name version "
    "training_procedure limitations bias_and_fairness deployment api ethics created_at updated_at created_by "
    "license",
    "base_model": "id* provider* size architecture",
    "domain": "name* languages*[] subdomain regions[] cultural_context",
    "training_data": "sample_count* sources*[] data_collection_period preprocessing splits",
    "training_data.sources": "name* type* percentage*",
    "training_data.splits": "train* validation* test*",
    "evaluation": "baseline* finetuned* improvement benchmarks[]",
    "evaluation.baseline": "localization_score factual_accuracy perplexity",
    "evaluation.finetuned": "localization_score factual_accuracy perplexity human_preference_rate",
    "evaluation.improvement": "localization_delta accuracy_delta perplexity_reduction",
    "evaluation.benchmarks": "name* score* baseline_score",
    "intended_use": "primary_use* users*[] use_cases[] out_of_scope[]",
    "training_procedure": "method framework hyperparameters compute",
    "training_procedure.hyperparameters": "learning_rate epochs batch_size max_seq_length lora_r lora_alpha",
    "training_procedure.compute": "hardware training_time cost_estimate",
    "limitations": "technical[] domain[] language[] known_issues[]",
    "bias_and_fairness": "training_data_biases[] mitigation_steps[] evaluation_results",
    "deployment": "quantization formats[] min_requirements inference_speed registry",
    "deployment.min_requirements": "ram_gb vram_gb storage_gb",
    "deployment.inference_speed": "cpu_tokens_per_sec gpu_tokens_per_sec",
    "deployment.registry": "huggingface private",
    "api": "input_format output_format recommended_parameters system_prompt",
    "api.input_format": "max_tokens template",
    "api.output_format": "max_tokens stop_tokens[]",
    "api.recommended_parameters": "temperature top_p repetition_penalty",
    "ethics": "data_consent data_sovereignty privacy_measures[] environmental_impact",
}


def scores(arm, exact, f1, n=300, **changes):
    values = {
        "arm": arm,
        "metric": "exact_match",
        "value": exact,
        "n": n,
        "metrics": {
            "exact_match": MetricValue(value=exact, low=exact - 0.04, high=exact + 0.03, n=n),
            "token_f1": MetricValue(value=f1, low=f1 - 0.02, high=f1 + 0.02, n=n),
        },
        "ids": ("a", "b"),
        "scores": {"exact_match": (0.0, 1.0)},
        "split_digest": DIGEST,
        "model_digest": DIGEST,
        "decoding": Decoding(strategy="greedy", max_new_tokens=64, prompt_digest=DIGEST),
        "resamples": 1000,
        "confidence": 0.95,
        "seed": 1,
        "tokens_per_second": 50.0,
    }
    return EvalReport(**(values | changes))


def facts(**changes):
    leak = {
        pair: Leakage(exact=0, normalised=0, groups=0) for pair in ("train/val", "train/test", "val/test")
    }
    values = {
        "name": "tutor",
        "version": "1.0.0",
        "base": BaseFacts(id="acme/tiny-4m", provider="acme", architecture="Llama", parameters=3_410_000),
        "method": "lora",
        "deployment": DeploymentConfig(domain="arithmetic", languages=("en", "no"), license="Apache-2.0"),
        "ingest": IngestReport(
            rows=4000,
            sources=(
                SourceCount(path="data/tutor", files=2, rows=3200, taken=3000),
                SourceCount(path="/home/somebody/extra.jsonl", files=1, rows=1000, taken=1000),
            ),
        ),
        "split": SplitReport(
            train=2400, val=300, test=300, requested={"train": 0.8}, duplicates=0, leakage=leak, digests={},
            rejected_share=0.0125, max_rejected=0.05, strategy="random", seed=3407,
        ),
        "model": ModelConfig(name="acme/tiny-4m", max_seq_length=512),
        "lora": LoraConfig(r=16, lora_alpha=32),
        "training": TrainingConfig(
            per_device_train_batch_size=4, gradient_accumulation_steps=6, learning_rate=5e-3
        ),
        "trained": TrainReport(
            base_digest=DIGEST, train_digest=DIGEST, adapter_digest=DIGEST, merged_digest=DIGEST,
            steps=400, total_steps=400, epochs=4.0, samples=2400, truncated=0, tokens=9000,
            first_loss=2.0, final_loss=0.2, window=10, eval_losses=(), trainable_parameters=1, parameters=2,
            merge_error=0.0, seconds=31.4, device="cpu", error=None,
        ),
        "baseline": scores("prompted", 0.1, 0.2),
        "tuned": scores("tuned", 0.9, 0.95),
        "shipped": scores("Q4_K_M", 0.88, 0.94),
        "gguf_type": "Q4_K_M",
        "gguf_bytes": 2_140_000,
        "stop_tokens": ("<|im_end|>",),
        "smoke": Smoke(
            prompt="2 + 2?", answer="4", tokens=1, tokens_per_second=812.34, load_seconds=0.1, memory_mb=154.2
        ),
        "hardware": "2 CPU cores",
        "created_at": "2026-11-20T12:00:00+00:00",
    }  # fmt: skip
    return CardFacts(**(values | changes))


def fields(place):
    """Look a place of the schema up, through references and lists."""
    schema = model_card_schema()

    def resolved(node):
        while "$ref" in node or "items" in node:
            node = schema["$defs"][node["$ref"].rsplit("/", 1)[1]] if "$ref" in node else node["items"]
        return node

    node = schema
    for step in place.split(".") if place else ():
        node = resolved(node["properties"][step])
    return node


@pytest.mark.parametrize("place", OWNER)
def test_schema_is_the_owners(place):
    node, wanted = fields(place), OWNER[place].split()
    names = [name.rstrip("[]").rstrip("*") for name in wanted]
    assert sorted(node["properties"]) == sorted(names)
    assert sorted(node.get("required", [])) == sorted(n.rstrip("[]").rstrip("*") for n in wanted if "*" in n)
    lists = {name for name, part in node["properties"].items() if part.get("type") == "array"}
    assert lists == {name.rstrip("[]").rstrip("*") for name in wanted if name.endswith("[]")}


def test_schema_has_no_nulls_and_the_owners_methods():
    assert "null" not in json.dumps(model_card_schema())
    methods = fields("training_procedure")["properties"]["method"]["enum"]
    assert methods == ["full_finetune", "lora", "qlora", "prefix_tuning"]


def test_card_of_a_run_is_valid_and_holds_its_numbers():
    card = json.loads(json.dumps(build_card(facts()).record()))
    assert validate_card(card) == ()
    assert card["training_data"]["sample_count"] == 3000
    assert card["training_data"]["sources"] == [
        {"name": "data/tutor", "type": "files", "percentage": 75.0},
        {"name": "extra.jsonl", "type": "file", "percentage": 25.0},
    ]
    assert card["evaluation"] == {
        "baseline": {"factual_accuracy": 0.1},
        "finetuned": {"factual_accuracy": 0.9},
        "improvement": {"accuracy_delta": 0.8},
        "benchmarks": [
            {"name": "exact_match (base: prompted)", "score": 0.9, "baseline_score": 0.1},
            {"name": "token_f1 (base: prompted)", "score": 0.95, "baseline_score": 0.2},
            {"name": "exact_match (Q4_K_M file; base: prompted)", "score": 0.88, "baseline_score": 0.1},
            {"name": "token_f1 (Q4_K_M file; base: prompted)", "score": 0.94, "baseline_score": 0.2},
        ],
    }
    assert card["training_procedure"]["hyperparameters"] == {
        "learning_rate": 5e-3,
        "epochs": 4.0,
        "batch_size": 24,
        "max_seq_length": 512,
        "lora_r": 16,
        "lora_alpha": 32,
    }
    assert card["deployment"]["min_requirements"] == {"ram_gb": 0.154, "storage_gb": 0.0021}
    assert card["deployment"]["inference_speed"] == {"cpu_tokens_per_sec": 812.3}
    assert "known_issues" not in card["limitations"]


def test_what_was_not_measured_is_absent():
    text = json.dumps(build_card(facts(method="full_finetune", smoke_device="gpu")).record())
    for name in (
        "perplexity",
        "localization",
        "human_preference",
        "top_p",
        "vram",
        "cost",
        "consent",
        "lora_r",
        "cpu_",
    ):
        assert name not in text


def test_a_metric_other_than_exact_match_is_no_factual_accuracy():
    only_f1 = {
        arm: scores(arm, 0.0, f1, metric="token_f1", value=f1, metrics={})
        for arm, f1 in (("baseline", 0.2), ("tuned", 0.7), ("shipped", 0.6))
    }
    card = build_card(facts(**only_f1))
    assert card.record()["evaluation"]["baseline"] == {}
    assert card.evaluation.improvement is None
    assert [(row.name, row.score, row.baseline_score) for row in card.evaluation.benchmarks] == [
        ("token_f1 (base: baseline)", 0.7, 0.2),
        ("token_f1 (Q4_K_M file; base: baseline)", 0.6, 0.2),
    ]


def test_every_way_of_asking_the_base_and_what_was_forgotten_is_told():
    known = Suite(name="general", metric="accuracy", value=0.6, low=0.5, high=0.7, n=80, digest="d")
    arms = (scores("zero_shot", 0.05, 0.1, suites=(known,)), scores("prompted", 0.1, 0.2))
    after = known.model_copy(update={"value": 0.55})
    card = build_card(facts(arms=arms, tuned=scores("tuned", 0.9, 0.95, suites=(after,))))
    text = " ".join(card.limitations.technical)
    assert "asked in 2 ways (exact_match: zero_shot 0.0500, prompted 0.1000); compared is prompted" in text
    assert (
        "general, 80 questions apart from the test split: accuracy 0.5500, and 0.6000 before training" in text
    )
    other = after.model_copy(update={"digest": "other"})
    card = build_card(facts(arms=arms, tuned=scores("tuned", 0.9, 0.95, suites=(other,))))
    assert "general" not in " ".join(card.limitations.technical)


def test_perplexity_has_its_own_fields_and_falls():
    def surprised(arm, value):
        entry = MetricValue(value=value, low=value, high=value, n=300)
        return scores(arm, 0.5, 0.5, metrics={"perplexity": entry}, metric="perplexity", value=value)

    evaluation = build_card(
        facts(baseline=surprised("zero_shot", 9.0), tuned=surprised("tuned", 4.0))
    ).record()["evaluation"]
    assert evaluation["baseline"] == {"perplexity": 9.0}
    assert evaluation["finetuned"] == {"perplexity": 4.0}
    assert evaluation["improvement"] == {"perplexity_reduction": 5.0}


def test_different_questions_are_not_compared():
    card = build_card(facts(baseline=scores("baseline", 0.1, 0.2, split_digest="sha256:" + "2" * 64)))
    assert card.evaluation.improvement is None
    assert {row.baseline_score for row in card.evaluation.benchmarks} == {None}
    assert "not asked the same questions" in card.limitations.known_issues[0]


def test_limitations_say_how_sure_the_scores_are():
    technical = build_card(facts()).limitations.technical
    assert technical[0] == (
        "The shipped file was tested on 300 questions: exact_match 0.8800, "
        "95% bootstrap interval 0.8400 to 0.9100."
    )
    assert "0.8800, against 0.9000 before" in technical[1]


def test_known_issues_are_told():
    base = facts()
    split = base.split.model_copy(
        update={"leakage": {"train/val": Leakage(exact=0, normalised=2, groups=0),
                            "val/test": Leakage(exact=0, normalised=0, groups=3)}}
    )  # fmt: skip
    trained = base.trained.model_copy(update={"truncated": 7, "error": "the disk was full"})
    serving = base.deployment.model_copy(update={"temperature": 0.7, "system_prompt": "Be kind."})
    gates = (
        GateNote(name="dataset-validated", state="passed", summary="dataset-validated: passed, 9 checks"),
        GateNote(
            name="model-performance", state="waived", summary="improvement 0.1 against 0.2; by Ama: demo"
        ),
    )
    changed = {"split": split, "trained": trained, "deployment": serving, "gates": gates}
    card = build_card(facts(shipped=scores("Q4_K_M", 0.88, 0.94, n=50), **changed))
    assert card.limitations.known_issues == (
        "Gate model-performance was waived: improvement 0.1 against 0.2; by Ama: demo",
        "The test split is small (50 questions); read the interval, not the score.",
        "The splits train/val share 2 questions and 0 groups.",
        "The splits val/test share 0 questions and 3 groups; scores may be too high.",
        "Training reported: the disk was full",
    )
    technical = " ".join(card.limitations.technical)
    assert "7 of 2400 training examples" in technical
    assert "without the system prompt" in technical
    assert "temperature of 0.7" in technical


@pytest.mark.parametrize(
    ("wanted", "where"), [({"users": ()}, "IntendedUse.users"), ({"domain": " "}, "Domain.name")]
)
def test_a_blank_fact_is_the_users_to_fill_in(wanted, where):
    with pytest.raises(ConfigError, match=where):
        build_card(facts(deployment=DeploymentConfig(**wanted)))


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        (lambda card: card.pop("model_id"), "card: 'model_id' is a required property"),
        (lambda card: card["domain"].pop("languages"), "domain: 'languages' is a required property"),
        (lambda card: card["domain"].update(languages=[]), "domain.languages: "),
        (lambda card: card["base_model"].update(provider="  "), "base_model.provider: "),
        (lambda card: card.update(version=None), "version: None is not of type 'string'"),
        (
            lambda card: card["evaluation"].update(baseline={"perplexity": "9"}),
            "evaluation.baseline.perplexity: ",
        ),
        (
            lambda card: card["training_data"]["sources"][0].update(percentage=101),
            "training_data.sources.0.percent",
        ),
        (lambda card: card["training_procedure"].update(method="magic"), "training_procedure.method: "),
        (lambda card: card.update(extra=1), "card: Additional properties"),
        (lambda card: card["evaluation"]["finetuned"].update(perplexity=float("nan")), "card: not JSON"),
    ],
)
def test_problems_are_named_with_their_place(damage, problem):
    card = json.loads(json.dumps(build_card(facts()).record()))
    damage(card)
    (found,) = validate_card(card)
    assert found.startswith(problem)


def front_matter(text):
    return yaml.safe_load(text.split("---\n")[1])


def test_front_matter_is_what_the_hub_reads():
    text = render_card(build_card(facts()))
    assert text.startswith("---\n")
    assert front_matter(text) == {
        "license": "apache-2.0",
        "language": ["en", "no"],
        "base_model": "acme/tiny-4m",
        "base_model_relation": "finetune",
        "pipeline_tag": "text-generation",
        "tags": ["gguf", "lora", "arithmetic"],
        "metrics": ["exact_match", "token_f1"],
    }


@pytest.mark.parametrize(
    ("license_name", "expected"),
    [
        (None, {"license": "unknown"}),
        ("Our own terms", {"license": "other", "license_name": "Our own terms"}),
    ],
)
def test_licence_and_local_base_in_the_front_matter(license_name, expected):
    base = BaseFacts(id="data/base", provider="local", architecture="Llama", parameters=1)
    matter = front_matter(
        render_card(build_card(facts(base=base, deployment=DeploymentConfig(license=license_name))))
    )
    assert {name: value for name, value in matter.items() if name.startswith("license")} == expected
    assert "base_model" not in matter


def test_page_shows_scores_limits_and_sources():
    page = render_card(build_card(facts()))
    assert "| exact_match (Q4_K_M file; base: prompted) | 0.8800 | 0.1000 |" in page
    assert "| data/tutor | files | 75 % |" in page
    assert "| learning_rate | 0.005 |" in page
    assert "3000 conversations: 2400 to train, 300 to validate, 300 to test." in page
    assert "- The shipped file was tested on 300 questions" in page
    assert "Bias was not evaluated." in page
    assert "None recorded by the run." in page
    assert "None" not in page.replace("None recorded", "")
    headings = [line for line in page.splitlines() if line.startswith("#")]
    assert headings == [
        *("# tutor", "## Intended use", "## Evaluation", "## Limitations", "### Known issues"),
        *("## Bias and fairness", "## Training data", "## Training", "## Deployment", "## Ethics"),
    ]


def test_no_text_breaks_out_of_its_cell_or_item():
    wanted = DeploymentConfig(domain="a|b\n# c", users=("x\n## not a heading",))
    page = render_card(build_card(facts(deployment=wanted)))
    assert "| Domain | a\\|b # c |" in page
    assert "- x ## not a heading" in page


def test_a_card_of_required_fields_alone_can_be_shown():
    full = build_card(facts()).record()
    names = ("model_id", "base_model", "domain", "training_data", "evaluation", "intended_use")
    bare = type(build_card(facts())).model_validate({name: full[name] for name in names})
    assert validate_card(json.loads(json.dumps(bare.record()))) == ()
    assert "# tutor" in render_card(bare)
