"""The command line. Every command imports what it needs when it runs, so that help is instant."""

import json
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from core.errors import FactoryError, UserError

DONE, INTERNAL, WRONG_INPUT, GATE_CLOSED, INTERRUPTED = 0, 1, 2, 3, 130

app = typer.Typer(
    name="factory",
    help="Domain data and a base model in; a small, gated, served language model out.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

ConfigPath = Annotated[
    Path, typer.Argument(metavar="CONFIG", help="Run config, YAML or JSON.", show_default=False)
]
WorkspacePath = Annotated[
    Path, typer.Argument(metavar="WORKSPACE", help="Workspace folder of a run.", show_default=False)
]
Overrides = Annotated[
    list[str] | None,
    typer.Option(
        "-o", "--override", metavar="KEY=VALUE", help="Change a setting, e.g. -o training.max_steps=50."
    ),
]
Unsloth = Annotated[
    bool, typer.Option("--unsloth", help="Train with unsloth, whatever the config says of the framework.")
]
Json = Annotated[bool, typer.Option("--json", help="One JSON object per line instead of a display.")]


@app.command()
def run(
    config: ConfigPath,
    override: Overrides = None,
    workspace: Annotated[
        Path | None, typer.Option(help="Where to write; default workspace/<config name>.")
    ] = None,
    from_: Annotated[
        str | None, typer.Option("--from", metavar="PHASE", help="Run this phase and later ones anew.")
    ] = None,
    until: Annotated[
        str | None, typer.Option(metavar="PHASE", help="Stop after this phase and its gate.")
    ] = None,
    unsloth: Unsloth = False,
    json_: Json = False,
) -> None:
    """Run the factory: ingest, format, split, baseline, finetune, evaluate, quantize, deploy."""
    from flows.launch import Launch, launch

    request = Launch(config=config, overrides=overrides_of(override, unsloth), workspace=workspace,
                     rerun_from=from_, until=until, as_json=json_)  # fmt: skip
    raise typer.Exit(launch(request))


@app.command()
def validate(
    config: ConfigPath,
    override: Overrides = None,
    unsloth: Unsloth = False,
    json_: Json = False,
    fast: Annotated[bool, typer.Option("--fast", help="Skip learning one batch by heart.")] = False,
) -> None:
    """Check settings, data and hardware, and whether the model would learn these rows."""
    from flows.checks import validate_run

    raise typer.Exit(validate_run(config, overrides_of(override, unsloth), as_json=json_, fast=fast))


def overrides_of(given: list[str] | None, unsloth: bool) -> tuple[str, ...]:
    """List the overrides; --unsloth comes last and in both spellings, so that it wins over either in the file."""
    flag = ("model.framework=unsloth", "model.use_unsloth=true") if unsloth else ()
    return (*(given or ()), *flag)


@app.command()
def gates(
    workspace: WorkspacePath,
    full: Annotated[
        bool, typer.Option("--all", help="Show every check, not only limits and failures.")
    ] = False,
    json_: Json = False,
) -> None:
    """Show the gates of a finished or blocked run. Exit code 3 if one is not open."""
    from flows.checks import show_gates

    raise typer.Exit(show_gates(workspace, full=full, as_json=json_))


@app.command()
def chat(
    workspace: WorkspacePath,
    adapter: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=FOLDER",
            help="Talk to the base with this adapter instead, through PyTorch; give several and switch with /adapter NAME.",
        ),
    ] = None,
    prompt: Annotated[str | None, typer.Option(help="Ask this one question and exit.")] = None,
    system: Annotated[str | None, typer.Option(help="System message put first.")] = None,
    temperature: Annotated[
        float | None, typer.Option(min=0, max=2, help="Sampling temperature; 0 is greedy.")
    ] = None,
    max_tokens: Annotated[int | None, typer.Option(min=1, help="Longest answer.")] = None,
) -> None:
    """Talk to the deployed model, or to the base with adapters."""
    from flows.chat import ChatOptions, chat_with

    options = ChatOptions(
        adapters=tuple(adapter or ()), prompt=prompt, system=system, temperature=temperature,
        max_tokens=max_tokens,
    )  # fmt: skip
    raise typer.Exit(chat_with(workspace, options))


@app.command()
def up() -> None:
    """Start the Prefect and MLflow servers in the background, on this machine only."""
    from flows.dashboards import start

    raise typer.Exit(start())


@app.command()
def down() -> None:
    """Stop the servers that `factory up` started."""
    from flows.dashboards import stop

    raise typer.Exit(stop())


@app.command()
def init(
    name: Annotated[str, typer.Argument(help="Name of the project and of its folder.", show_default=False)],
) -> None:
    """Start a project: config, data folder, docs."""
    from flows.scaffold import init_project

    for line in init_project(name, Path(name)):
        typer.echo(line)


@app.command()
def schema() -> None:
    """Print the JSON schema of the run config, for editors."""
    from flows.config_file import config_schema

    typer.echo(json.dumps(config_schema(), indent=2, ensure_ascii=False))


@app.command()
def doctor(
    fast: Annotated[bool, typer.Option("--fast", help="Skip starting a server.")] = False, json_: Json = False
) -> None:
    """Show what this machine has, what is missing, and the command that fixes it."""
    from flows.checks import show_doctor

    raise typer.Exit(show_doctor(fast=fast, as_json=json_))


bench = typer.Typer(help="Measure this machine.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(bench, name="bench")


@bench.command("finetune")
def bench_finetune(
    peers: Annotated[
        str, typer.Option(help="Of hf, hf-plain, liger and unsloth; empty for none.")
    ] = "hf,liger,unsloth",
    model: Annotated[
        list[str] | None,
        typer.Option(
            help="llama-1b, llama-8b, qwen3-4b, gemma3-1b and others (random weights), or a folder; may be repeated."
        ),
    ] = None,
    seq: Annotated[int, typer.Option(help="Tokens of a row.")] = 2048,
    rows: Annotated[int, typer.Option(help="Rows of a step.")] = 8,
    micro_batch: Annotated[int | None, typer.Option(help="Rows of a forward pass; default all.")] = None,
    storage: Annotated[str, typer.Option(help="nf4 or bf16.")] = "nf4",
    rank: Annotated[int, typer.Option(help="Rank of the adapter.")] = 16,
    checkpointing: Annotated[str, typer.Option(help="on or off: compute activations again.")] = "on",
    budget: Annotated[str, typer.Option(help="GiB for kept activations, or auto; ours only.")] = "auto",
    steps: Annotated[int, typer.Option(help="Timed steps.")] = 20,
    warmup: Annotated[int, typer.Option(help="Steps before them.")] = 5,
    rounds: Annotated[int, typer.Option(help="Run all systems so many times, there and back.")] = 1,
    packed: Annotated[bool, typer.Option("--packed", help="Rows of several documents.")] = False,
    labels: Annotated[str, typer.Option(help="all, or half: answers only.")] = "all",
    profile: Annotated[
        bool, typer.Option("--profile", help="Trace three steps of ours, by kind of work.")
    ] = False,
    ours: Annotated[str, typer.Option(help="The system that the peers stand beside.")] = "fused",
    timeout: Annotated[int, typer.Option(help="Seconds for one process.")] = 1800,
    out: Annotated[Path | None, typer.Option(help="Folder of the report.")] = None,
    scratch: Annotated[Path | None, typer.Option(help="Folder of random bases; default the cache.")] = None,
    json_: Json = False,
) -> None:
    """Time a fine-tuning step of ours beside the peers', after checking that they compute the same.

    Speed is shown only where the loss is within 1e-3 of a float32 reference's, and the gradient of every adapter tensor
    has a cosine >= 0.999, or, where hf measured beside it stays below 0.999 itself (never below 0.98), at least hf's:
    such cosines carry a dagger.
    """
    from flows.bench.finetune import bench_finetune as measure
    from flows.bench.options import Asked

    asked = Asked(
        peers, tuple(model or ["llama-1b"]), seq, rows, micro_batch, storage, rank, checkpointing, budget, steps, warmup,
        rounds, packed, labels, profile, ours, timeout,
    )  # fmt: skip
    raise typer.Exit(measure(asked, out=out, scratch=scratch, as_json=json_))


def main() -> NoReturn:
    """Run the command line and turn errors into messages and exit codes."""
    sys.exit(guarded(app))


def guarded(command: Callable[[], Any]) -> int:
    """Run a command; return its exit code and print one clear message when it fails."""
    try:
        command()
    except SystemExit as ending:
        code = ending.code if isinstance(ending.code, int) else DONE
        # Typer catches Ctrl-C itself and leaves with this code, without a word.
        if code == INTERRUPTED:
            complain("interrupted; run the same command again to continue")
        return code
    except UserError as wrong:
        complain(str(wrong))
        return WRONG_INPUT
    except FactoryError as failure:
        complain(str(failure))
        return INTERNAL
    except Exception:  # noqa: BLE001 - the last line of defence: an internal failure is exit code 1
        traceback.print_exc()
        return INTERNAL
    return DONE


def complain(message: str) -> None:
    """Print an error message on standard error, red where that is a terminal."""
    typer.secho(f"error: {message}", fg=typer.colors.RED, err=True)


if __name__ == "__main__":
    main()
