"""Start a run from the command line: settings, checks, servers, the flow, the ending."""

import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from rich.console import Console
from rich.markup import escape

from core.config import Frozen
from core.errors import ConfigError, UserError
from flows.config_file import load_config
from flows.measuring import judge_variable
from flows.run_config import RunConfig
from flows.settings import Settings, apply, prefect_environment, read_secret, read_settings
from tasks.events import PHASES

if TYPE_CHECKING:
    from flows.display import JsonLines, Screen
    from tasks.session import Place, Stores


class Launch(Frozen):
    """What was asked for on the command line."""

    config: Path
    overrides: tuple[str, ...] = ()
    workspace: Path | None = None
    rerun_from: str | None = None
    until: str | None = None
    as_json: bool = False


class Ending(NamedTuple):
    """How the flow ended: Prefect's state name, its message, and our exit code."""

    status: str
    message: str
    code: int


def launch(request: Launch) -> int:
    """Run the factory and return the exit code; a machine gets its result line whatever happens.

    Raises:
        UserError: If settings, data, model or machine do not allow the run.
    """
    try:
        return start(request)
    except UserError as wrong:
        if request.as_json:
            from flows.display import JsonLines

            JsonLines(sys.stdout).emit("result", status="bad input", message=str(wrong), exit_code=2)
        raise


def start(request: Launch) -> int:
    """Read the config, look before the run, and conduct it."""
    config = load_config(request.config, request.overrides)
    require_phases(request)
    workspace = (request.workspace or Path("workspace") / config.name).resolve()
    if not request.as_json:
        Console(stderr=False).print(
            f"[bold]{config.name}[/bold]  {request.config} → {workspace}", highlight=False
        )
    require_fit(config, request.config, workspace)
    settings = read_settings()
    variable = judge_variable(config.evaluation)
    judge_key = read_secret(variable, "evaluation.judge.key_variable") if variable else None
    with orchestrated(settings):
        from tasks.session import recorded_in

        with recorded_in(stores_of(settings)._replace(judge_key=judge_key)):
            ending = conduct(request, config, place_of(request, workspace))
    if ending.code == 1:
        print(f"error: {ending.message}", file=sys.stderr)  # noqa: T201
    return ending.code


def require_phases(request: Launch) -> None:
    """Check the names given to --from and --until.

    Raises:
        ConfigError: If one is no phase, or they leave nothing to run.
    """
    for option, phase in (("--from", request.rerun_from), ("--until", request.until)):
        if phase is not None and phase not in PHASES:
            raise ConfigError(f"{phase!r} is not a phase", where=option, fix=f"one of {', '.join(PHASES)}")
    if (
        request.rerun_from
        and request.until
        and PHASES.index(request.rerun_from) > PHASES.index(request.until)
    ):
        raise ConfigError(f"--from {request.rerun_from} lies after --until {request.until}", fix="swap them")


def require_fit(config: RunConfig, path: Path, workspace: Path) -> None:
    """Check data, model and hardware before anything heavy loads.

    Raises:
        UserError: The first finding that makes the run impossible; all of them in its message.
    """
    from flows.preflight import preflight

    findings = preflight(config, path, workspace)
    findings.raise_errors()


@contextmanager
def orchestrated(settings: Settings) -> Iterator[None]:
    """Give Prefect its environment and a server for the duration of a run.

    The server starts while this process imports what it needs.
    """
    from flows.servers import start_prefect, without_heartbeats

    with start_prefect(settings) as api:
        apply(prefect_environment(settings, api.url))
        import flows.factory  # noqa: F401

        api.wait()
        with without_heartbeats():
            yield


def place_of(request: Launch, workspace: Path) -> "Place":
    """Say where the run works."""
    from tasks.session import Place

    return Place(workspace=workspace, base=Path.cwd(), rerun_from=request.rerun_from, until=request.until)


def stores_of(settings: Settings) -> "Stores":
    """Say where the run is recorded.

    Runs of this machine go through the MLflow server of ``factory up`` where it is up: the same
    database, and its connection is open already.
    """
    from flows.servers import running
    from tasks.session import Stores

    ledger = settings.home / "test-uses.jsonl"
    if settings.mlflow_tracking_uri:
        return Stores(settings.mlflow_tracking_uri, None, ledger)
    servers = running(settings)
    uri = servers.mlflow.url if servers and servers.mlflow else settings.mlflow_uri
    return Stores(uri, settings.artifacts, ledger)


def conduct(request: Launch, config: RunConfig, place: "Place") -> Ending:
    """Run the flow with a display and show how it ended."""
    from flows.display import JsonLines, Screen, watching

    warnings.filterwarnings("ignore", category=FutureWarning, module=r"transformers|peft|torch")
    if request.as_json:
        lines = JsonLines(sys.stdout)
        with watching(lines):
            ending = execute(config, place)
        show_json(lines, ending, place.workspace)
        return ending
    screen = Screen(Console(), PHASES)
    with watching(screen), screen.live():
        ending = execute(config, place)
    show(screen, ending, place.workspace)
    return ending


def execute(config: RunConfig, place: "Place") -> Ending:
    """Run the Prefect flow and translate its final state."""
    from flows.factory import factory

    state = factory(config.name, config, place, return_state=True)
    message = state.message or ""
    match state.name:
        case "Released":
            return Ending("passed", message, 0)
        case "Stopped":
            return Ending("partial", message, 0)
        case "GateBlocked":
            return Ending("blocked", message, 3)
        case "BadInput":
            return Ending("bad input", message, 2)
    return Ending("failed", message, 1)


def show_json(lines: "JsonLines", ending: Ending, workspace: Path) -> None:
    """Emit the result line."""
    lines.emit(
        "result",
        status=ending.status,
        message=ending.message,
        exit_code=ending.code,
        workspace=str(workspace),
    )


def show(screen: "Screen", ending: Ending, workspace: Path) -> None:
    """Print the gate table, what happened, and what to do next."""
    from flows.display import gate_table

    console = screen.console
    if screen.gates:
        console.print(gate_table(list(screen.gates.values())))
    if ending.code == 2:
        raise UserError(ending.message)
    if ending.code == 3:
        console.print(f"[red bold]blocked[/red bold] {ending.message}", highlight=False)
        show_hints(screen)
        console.print(f"Report: {workspace / 'report.html'}", highlight=False)
    if ending.status == "passed":
        console.print(f"[green bold]released[/green bold] {ending.message}", highlight=False)
        console.print(
            f"Chat:   factory chat {workspace}\nReport: {workspace / 'report.html'}", highlight=False
        )
    if ending.status == "partial":
        console.print(ending.message)


def show_hints(screen: "Screen") -> None:
    """Print what may open the gate that closed."""
    for record in screen.gates.values():
        for hint in record.hints if record.status == "blocked" else ():
            screen.console.print(f"[yellow]hint[/yellow] {escape(hint)}", highlight=False)
