"""What a look before the run found, and what it means for the command that asked."""

from typing import Literal, Self

from core.config import Frozen
from core.errors import ConfigError, DataError, ModelError, ResourceError, UserError

ERRORS: dict[str, type[UserError]] = {
    "setting": ConfigError,
    "data": DataError,
    "model": ModelError,
    "hardware": ResourceError,
    "software": ResourceError,
}


class Finding(Frozen):
    """One thing that a run would stumble over."""

    level: Literal["error", "warning", "note"]
    kind: Literal["setting", "data", "model", "hardware", "software"]
    where: str
    """The key it concerns."""
    what: str
    fix: str = ""

    @property
    def is_of_this_machine(self) -> bool:
        """Another machine would not have this problem: the config itself is fine."""
        return self.kind in {"hardware", "software"}

    def as_error(self) -> UserError:
        """Return the exception that carries this finding."""
        return ERRORS[self.kind](self.what, where=self.where, fix=self.fix)


class Estimate(Frozen):
    """What a phase needs, and what there is."""

    phase: str
    place: str
    """GPU memory, memory, or the folder whose disk it is."""
    needed_gb: float
    available_gb: float

    @property
    def is_enough(self) -> bool:
        """There is room."""
        return self.needed_gb <= self.available_gb


class PreflightReport(Frozen):
    """Everything found, and the table of estimates (empty if the model's size is unknown)."""

    findings: tuple[Finding, ...]
    estimates: tuple[Estimate, ...]
    device: str
    """The device a run would train on, in words."""
    parameters: int | None
    """Parameters of the base model, if known."""

    @property
    def errors(self) -> tuple[Finding, ...]:
        """Findings that make a run impossible."""
        return tuple(finding for finding in self.findings if finding.level == "error")

    @property
    def warnings(self) -> tuple[Finding, ...]:
        """Findings worth reading."""
        return tuple(finding for finding in self.findings if finding.level == "warning")

    @property
    def notes(self) -> tuple[Finding, ...]:
        """Findings that nothing is wrong with: what could be better."""
        return tuple(finding for finding in self.findings if finding.level == "note")

    def for_any_machine(self) -> Self:
        """Turn what only this machine lacks into warnings: the config may be meant for another one."""
        softened = (
            f.model_copy(update={"level": "warning"}) if f.level == "error" and f.is_of_this_machine else f
            for f in self.findings
        )
        return self.model_copy(update={"findings": tuple(softened)})

    def raise_errors(self) -> None:
        """Stop if there is any error.

        Raises:
            UserError: Of the first error's kind, with all of them in its message.
        """
        if len(self.errors) == 1:
            raise self.errors[0].as_error()
        if self.errors:
            lines = [str(finding.as_error()).replace("\n", "\n  ") for finding in self.errors]
            raise ERRORS[self.errors[0].kind]("\n  ".join([f"{len(lines)} problems before the run", *lines]))
