"""What to change when training went wrong: one sentence per trouble, with the key of the config.

Pure text, so that gates and reports can show it, too.
"""

from typing import Literal

from core.training.reports import TrainReport

Trouble = Literal["oom", "flat", "diverged", "slow", "garbage", "quantization_drop", "overfit"]

HINTS: dict[Trouble, str] = {
    "oom": "halve training.per_device_train_batch_size and double training.gradient_accumulation_steps (the same "
    "result), lower model.max_seq_length, set lora.use_gradient_checkpointing: true and model.load_in_4bit: true, or with "
    "model.framework: fused set training.activation_budget to fewer GiB",
    "flat": "the loss hardly falls: set training.learning_rate: 1e-4, or a higher one if it is lower already, and let "
    "factory validate show which tokens are trained",
    "diverged": "lower training.learning_rate (1e-4 is a safe start), check the data for extreme rows, or train in "
    "bfloat16 instead of float16 (training.bf16: true)",
    "slow": "set training.bf16: true where the GPU has bfloat16, training.packing: true if examples are short, or "
    "model.framework: unsloth with lora.use_gradient_checkpointing: unsloth",
    "garbage": "the answers are garbage although training went well: the chat template does not fit the model; set "
    "dataset.chat_template to the model's own family",
    "quantization_drop": "the quantized file answers worse than the model: add Q8_0 to quantization.formats (or set "
    "save.gguf_quantization: Q8_0)",
    "overfit": "the validation loss is far above the training loss: set training.early_stopping_patience: 3, fewer "
    "training.num_train_epochs or a higher lora.lora_dropout, or gather more rows",
}  # fmt: skip

FLAT_SHARE = 0.98
"""A loss that stays above this share of what it was is flat."""
LARGEST_GAP = 0.3
"""Validation loss minus training loss, in nats per token, from which a model has learned its rows by heart."""


def hint(trouble: Trouble) -> str:
    """Return what to do about a trouble."""
    return HINTS[trouble]


def troubles_of(report: TrainReport, score: float | None = None) -> tuple[Trouble, ...]:
    """Tell from a finished training what is wrong with it.

    Args:
        report: What training did.
        score: The model's score afterwards, of 0 to 1, if it was measured.
    """
    found: list[Trouble] = []
    is_flat = report.final_loss > FLAT_SHARE * report.first_loss
    if is_flat:
        found.append("flat")
    if report.shrinks:
        found.append("oom")
    if report.eval_losses and _kept_loss(report) - report.final_loss > LARGEST_GAP:
        found.append("overfit")
    if score == 0.0 and not is_flat:
        found.append("garbage")
    return tuple(found)


def _kept_loss(report: TrainReport) -> float:
    """Return the validation loss of the adapter that was kept."""
    by_step = {each.step: each.loss for each in report.eval_losses}
    last = report.eval_losses[-1]
    return by_step.get(report.kept_step if report.kept_step is not None else last.step, last.loss)


def hints_for(report: TrainReport, score: float | None = None) -> tuple[str, ...]:
    """Return the advice on a finished training, in the order of ``troubles_of``."""
    return tuple(hint(trouble) for trouble in troubles_of(report, score))
