"""Deploy: start the file that will ship, document it, and make it a candidate bundle.

The candidate becomes the workspace's bundle in ``tasks.release``, after the last gate.
"""

import json
import platform
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from core.artifacts import (
    Bundle,
    Checkpoint,
    PhaseResult,
    Quantized,
    Splits,
    fingerprint,
    read_jsonl,
    write_text,
)
from core.config import Frozen
from core.data.config import ChatTemplateName
from core.data.reports import IngestReport, SplitReport
from core.deployment.config import DeploymentConfig
from core.deployment.reports import BundleReport, Smoke
from core.evaluation.reports import EvalReport
from core.models.config import LoraConfig, ModelConfig
from core.quantization.reports import PytorchFile, QuantizedFile, QuantReport
from core.training.config import TrainingConfig
from core.training.reports import TrainReport
from tasks.chat_tokens import READS as CHAT
from tasks.chat_tokens import chat_tokenizer
from tasks.context import RunContext
from tasks.file_story import file_story, rounding_story, scored_line
from tasks.phase import Outcome, phase

if TYPE_CHECKING:
    from core.data.chat import ChatTokenizer
    from core.deployment.api_page import ApiFacts, Example
    from core.deployment.model_card import CardFacts


class Story(Frozen):
    """What earlier phases reported and were told, for the documents."""

    base_name: str
    """Where the base came from; its digest is in ``trained``."""
    ingest: IngestReport
    split: SplitReport
    baseline: EvalReport
    """The base, asked in the way that the gate compared with."""
    arms: tuple[EvalReport, ...]
    """The base in every way it was asked."""
    tuned: EvalReport
    trained: TrainReport
    quantized: QuantReport
    model: ModelConfig
    lora: LoraConfig
    training: TrainingConfig

    not_in_fingerprint: ClassVar[frozenset[str]] = frozenset({"base_name"})


class Deployed(PhaseResult[Bundle, BundleReport]):
    """The bundle and how it behaved."""


READS = (
    "core.deployment.api_page",
    "core.deployment.bundle",
    "core.deployment.llama",
    "core.deployment.card_facts",
    "core.deployment.card_schema",
    "core.deployment.model_card",
    "core.deployment.modelfile",
    "core.deployment.templates",
    "core.deployment.tokenizer_files",
    "core.evaluation.effects",
    "core.evaluation.statistics",
    "gates.evidence",
    "gates.gains",
    "gates.rungs",
    "tasks.file_story",
    *CHAT,
)


@phase("deploy", Deployed, reads=READS, engines=("llama-cpp-python", "jinja2"))
def deploy(
    context: RunContext,
    key: str,
    quantized: Quantized,
    merged: Checkpoint,
    splits: Splits,
    story: Story,
    chosen: QuantizedFile,
    config: DeploymentConfig,
    name: str,
    verdicts: list[str],
    template: ChatTemplateName,
) -> Outcome:
    """Run the file that the gate chose once, write card, API page and Modelfile, and bundle them with it."""
    from core.deployment.bundle import BundleContents, Provenance, write_bundle

    quantized.verified(), merged.verified(), splits.verified()
    gguf = context.workspace.root / chosen.path
    context.watcher.advanced("deploy", 0, 3, f"starting {gguf.name}")
    examples = real_answers(context, chosen)
    smoke = try_out(gguf, examples[0], config, context.threads)
    context.watcher.advanced("deploy", 1, 3, "writing documents")
    chat = chat_tokenizer(merged.path, template)
    facts = card_facts(context, name, chosen, story, config, smoke, chat, merged.path)
    page = api_facts(name, gguf.name, chosen, config, facts.stop_tokens, examples, story.quantized.pytorch)
    contents = BundleContents(
        gguf=gguf,
        tokenizer=merged.path,
        modelfile=modelfile(gguf.name, chat, config, facts.stop_tokens),
        license_note=None,
        provenance=Provenance(
            base_model=story.trained.base_digest,
            adapter=story.trained.adapter_digest,
            merged=merged.digest,
            splits=splits.digest,
            config=fingerprint(story.model, story.lora, story.training, config),
        ),
        **documents(context, facts, page, config),
    )
    context.watcher.advanced("deploy", 2, 3, "bundling")
    files, missing = write_bundle(context.workspace.candidate, contents)
    docs = copy_docs(context)
    report = BundleReport(
        gguf_type=chosen.type,
        gguf_digest=next(file.digest for file in files if file.path == gguf.name),
        verified_digest=chosen.digest,
        files=files,
        missing=missing,
        card_errors=card_errors(context),
        smoke=smoke,
    )
    note = f"{gguf.name}, {chosen.bytes / 1e6:.1f} MB, {smoke.tokens_per_second:.0f} tokens/s"
    outputs = (context.workspace.candidate, *docs)
    return Outcome(Deployed(artifact=Bundle.of(context.workspace.candidate), report=report), outputs, note)


def real_answers(context: RunContext, chosen: QuantizedFile) -> list["Example"]:
    """Take questions of the test split with what the chosen file answered, right or wrong."""
    from core.deployment.api_page import ApiMessage, Example

    rows = list(read_jsonl(context.workspace.metrics / f"quantization-{chosen.type}-answers.jsonl"))
    return [
        Example(
            messages=tuple(ApiMessage.model_validate(turn) for turn in row["messages"]),
            answer=row["answer"],
            expected=row["reference"],
        )
        for row in rows[:5]
    ]


def try_out(gguf: Path, example: "Example", config: DeploymentConfig, threads: int) -> Smoke:
    """Start the file as it will be served and ask it one question."""
    from core.deployment.llama import LlamaRuntime

    began = time.monotonic()
    with LlamaRuntime(gguf, context_length=config.context_length, threads=threads) as runtime:
        load = time.monotonic() - began
        said = runtime.generate(example.request, max_new_tokens=config.max_tokens)
        return Smoke(
            prompt=example.prompt,
            answer=said.text.strip(),
            tokens=said.n_generated,
            tokens_per_second=said.n_generated / max(said.seconds, 1e-9),
            load_seconds=load,
            memory_mb=runtime.memory_mb(),
        )


def card_facts(
    context: RunContext,
    name: str,
    chosen: QuantizedFile,
    story: Story,
    config: DeploymentConfig,
    smoke: Smoke,
    chat: "ChatTokenizer",
    merged: Path,
) -> "CardFacts":
    """Gather what the model card says."""
    from core.deployment.model_card import BaseFacts, CardFacts, GateNote
    from core.models.loading import read_hf_config

    is_local = Path(story.base_name).exists()
    shape = read_hf_config(merged)
    return CardFacts(
        name=name,
        version=story.trained.merged_digest.removeprefix("sha256:")[:12],
        base=BaseFacts(
            id=Path(story.base_name).name if is_local else story.base_name,
            provider="local" if is_local else story.base_name.split("/")[0],
            architecture=str((shape.get("architectures") or ["unknown"])[0]),
            parameters=story.trained.parameters - story.trained.trainable_parameters,
        ),
        method="qlora" if story.model.load_in_4bit else "lora",
        deployment=config,
        ingest=story.ingest,
        split=story.split,
        model=story.model,
        lora=story.lora,
        training=story.training,
        trained=story.trained,
        baseline=story.baseline,
        arms=story.arms,
        tuned=story.tuned,
        shipped=chosen.evaluation,
        gguf_type=chosen.type,
        gguf_story=(*rounding_story(story.trained.quantization_aware), *file_story(chosen, story.quantized)),
        gguf_bytes=chosen.bytes,
        stop_tokens=stop_tokens(chat),
        smoke=smoke,
        hardware=f"{platform.machine()} processor" if story.trained.device == "cpu" else story.trained.device,
        gates=tuple(GateNote(name=r.gate, state=r.status, summary=r.summary) for r in context.judged),
        created_at=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def stop_tokens(chat: "ChatTokenizer") -> tuple[str, ...]:
    """Name the tokens generation stops at."""
    return tuple(str(chat.tokenizer.convert_ids_to_tokens(token)) for token in sorted(chat.stop_ids))


def api_facts(
    name: str,
    gguf_name: str,
    chosen: QuantizedFile,
    config: DeploymentConfig,
    stops: tuple[str, ...],
    examples: list["Example"],
    pytorch: tuple[PytorchFile, ...] = (),
) -> "ApiFacts":
    """Gather what the inference page says."""
    from core.deployment.api_page import ApiFacts, PytorchForm

    return ApiFacts(
        name=name,
        gguf_name=gguf_name,
        gguf_type=chosen.type,
        measured=scored_line(chosen),
        context_length=config.context_length,
        max_tokens=config.max_tokens,
        temperature=config.temperature,
        system_prompt=config.system_prompt,
        stop_tokens=stops,
        languages=config.languages,
        domain=config.domain,
        limits=config.out_of_scope,
        pytorch=tuple(PytorchForm(path=file.path, measured=scored_line(file)) for file in pytorch),
        examples=tuple(examples),
    )


def documents(
    context: RunContext, facts: "CardFacts", page: "ApiFacts", config: DeploymentConfig
) -> dict[str, Any]:
    """Write card, page and handoff from the same facts."""
    from core.deployment.api_page import build_handoff, render_api_page
    from core.deployment.model_card import build_card

    # A waived gate vouches for nothing.
    vouched = (config.primary_use,) if all(record.passed for record in context.judged) else ()
    return {
        "card": build_card(facts),
        "api_page": render_api_page(page),
        "handoff": build_handoff(page, base_model=facts.base.id, validated_use_cases=vouched),
    }


def modelfile(gguf_name: str, chat: "ChatTokenizer", config: DeploymentConfig, stops: tuple[str, ...]) -> str:
    """Write Ollama's Modelfile from the shape of the model's own chat template."""
    from core.data.examples import as_messages
    from core.deployment.modelfile import probe_chat, render_modelfile

    tokenizer = chat.tokenizer
    # llama.cpp puts a BOS first exactly when the tokenizer does; the template must not bring a second one.
    adds_bos = tokenizer("")["input_ids"][:1] == [tokenizer.bos_token_id]
    shape = probe_chat(
        lambda messages, prompt: chat.render(as_messages(messages), add_generation_prompt=prompt),
        bos=str(tokenizer.bos_token) if adds_bos else "",
    )
    return render_modelfile(
        gguf_name,
        shape,
        stops=stops,
        system=config.system_prompt,
        temperature=config.temperature,
        context=config.context_length,
    )


def copy_docs(context: RunContext) -> tuple[Path, ...]:
    """Put the card and the page where people look for documents."""
    pages = []
    for name in ("model-card.md", "inference-api.md"):
        text = (context.workspace.candidate / name).read_text(encoding="utf-8")
        pages.append(write_text(context.workspace.docs / name, text))
    return tuple(pages)


def card_errors(context: RunContext) -> tuple[str, ...]:
    """Judge the card that was written, by its schema."""
    from core.deployment.model_card import validate_card

    return validate_card(
        json.loads((context.workspace.candidate / "model-card.json").read_text(encoding="utf-8"))
    )
