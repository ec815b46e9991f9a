"""The factory: raw data and a base model go in, a released bundle comes out."""

import psutil
from prefect import flow
from prefect.client.schemas.objects import State
from prefect.states import Completed, Failed

from core.data.config import DatasetConfig
from core.errors import UserError
from core.training.hints import hints_for
from flows.display import current_watcher
from flows.run_config import RunConfig
from gates.baseline_established import baseline_established
from gates.dataset_validated import dataset_validated
from gates.deployment_ready import deployment_ready
from gates.model_performance import model_performance
from gates.quantization_verified import quantization_verified
from gates.verdict import GateClosed
from tasks.base_model import base_model
from tasks.baseline import baseline
from tasks.context import StopHere
from tasks.deploy import Story, deploy
from tasks.evaluate import evaluate
from tasks.finetune import finetune
from tasks.format_records import format_records
from tasks.gate import through, verdicts
from tasks.ingest import ingest
from tasks.ladder import serving_context
from tasks.learnable import Setup
from tasks.measure import files_of
from tasks.quantize import plan_for, quantize
from tasks.release import release
from tasks.scores import compare, share
from tasks.session import Place, Purpose, session
from tasks.shipping import advice_on, choose
from tasks.split import GivenRules, split
from tasks.uses import earlier_uses
from tasks.will_learn import will_learn


@flow(name="factory", flow_run_name="{name}", log_prints=False, validate_parameters=False)
def factory(name: str, run: RunConfig, place: Place) -> State:
    """Run the phases in order and stop at the first closed gate.

    Args:
        name: Name of the run, shown in lists.
        run: The whole run config.
        place: Workspace and stores.
    """
    purpose = Purpose(
        name=name,
        experiment=run.tracking.experiment or name,
        gates=run.gates,
        threads=run.deployment.threads or psutil.cpu_count(logical=False) or 1,
        max_file_mb=run.tracking.max_file_mb,
        execution=run.executed,
    )
    try:
        with session(purpose, place, run, current_watcher()):
            return Completed(name="Released", message=chain(name, run))
    except GateClosed as closed:
        return Failed(name="GateBlocked", message=closed.verdict.summary)
    except StopHere as stop:
        return Completed(name="Stopped", message=f"stopped after {stop}")
    except UserError as error:
        return Failed(name="BadInput", message=str(error))


def chain(name: str, run: RunConfig) -> str:
    """Eight phases and the five gates between them; return the released version."""
    gates, data, aware = run.gates, run.dataset or DatasetConfig(), run.quantized.aware
    template = data.chat_template
    corpus = ingest(run.training_sources, data.text_field)
    dataset = format_records(corpus.artifact, run.format, run.quality, run.split.seed)
    rules = GivenRules(format=run.format, quality=run.quality, text_field=data.text_field)
    splits = split(dataset.artifact, dataset.report, run.split, data.validation_path, rules)
    used = earlier_uses(splits.report)
    through(dataset_validated(corpus.report, dataset.report, splits.report, gates.dataset_validated, used))

    model = base_model(run.model.name, run.model.revision)
    will_learn(model, splits.artifact, Setup(run.model, run.lora, run.training, template))
    files, judged = files_of(run.evaluation), gates.model_performance
    base = baseline(model, splits.artifact, run.evaluation, files, template)
    beaten = compare(base.report, judged.compare_to)
    through(baseline_established(base.report, splits.report, gates.baseline_established, judged.compare_to))

    tuned = finetune(model, splits.artifact, run.model, run.lora, run.training, run.save, template, aware)
    scored = evaluate(tuned.artifact, splits.artifact, run.evaluation, files, template)
    advice = hints_for(tuned.report, share(scored.report))
    through(model_performance(base.report, scored.report, tuned.report, judged), advice)

    limits, wanted = gates.quantization_verified, run.deployment.format
    serving = serving_context(tuned.artifact.path, run.deployment.context_length)
    quantized = quantize(
        tuned.artifact, scored.artifact, splits.artifact,
        plan_for(run.quantized, scored.report, limits, wanted, serving),
        run.evaluation, files, run.save.gguf_path, name,
    )  # fmt: skip
    shipped = choose(scored.report, quantized.report, limits, wanted)
    advice = advice_on(scored.report, quantized.report, limits, wanted)
    through(quantization_verified(scored.report, quantized.report, limits, wanted), advice)

    story = Story(
        base_name=run.model.name, ingest=corpus.report, split=splits.report, baseline=beaten,
        arms=base.report.arms, tuned=scored.report, trained=tuned.report, quantized=quantized.report,
        model=run.model, lora=run.lora, training=run.training,
    )  # fmt: skip
    bundle = deploy(
        quantized.artifact, tuned.artifact, splits.artifact, story, shipped, run.deployment, name, verdicts(),
        template,
    )  # fmt: skip
    through(deployment_ready(bundle.report, quantized.report, gates.deployment_ready, shipped.digest))
    return release(bundle.artifact, bundle.report, run.deployment, run.save)
