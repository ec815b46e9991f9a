"""One home with one Prefect server for all thimble runs of a worker, each run a process of its own."""

import json
import os
import select
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import pytest
from filelock import FileLock

from flows.servers import start_private
from flows.settings import Settings, prefect_environment

ROOT = Path(__file__).parents[2]
CONFIG = "tests/thimble/tiny.yaml"
CLI = ("-m", "flows.cli")
LIMIT = 300
"""Seconds after which a command hangs."""


class Ran(NamedTuple):
    code: int
    events: list[dict]
    stderr: str

    @property
    def phases(self) -> dict[str, str]:
        """Last state of every phase that was touched."""
        return {e["phase"]: e["state"] for e in self.events if e["event"] == "phase"}

    @property
    def gates(self) -> dict[str, str]:
        return {e["gate"]: e["status"] for e in self.events if e["event"] == "gate"}

    @property
    def result(self) -> dict:
        return self.events[-1]


class Factory:
    """Runs the command line in a workspace."""

    def __init__(self, settings: Settings, api: str) -> None:
        self.home = settings.home
        self.environment = {
            **os.environ, "FACTORY_HOME": str(self.home), "PREFECT_API_URL": api, "PYTHONPATH": str(ROOT),
            "OMP_NUM_THREADS": "1",
        }  # fmt: skip
        # Libraries look at these when they are imported, which a command does after it has set them.
        self._warm = Warm({**prefect_environment(settings, api), **self.environment})

    @property
    def mlflow_uri(self) -> str:
        return f"sqlite:///{self.home / 'mlflow.db'}"

    def command(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run a command as a user's shell does."""
        return subprocess.run(
            [sys.executable, *CLI, *arguments], cwd=ROOT, env=self.environment, capture_output=True, text=True,
            check=False, timeout=LIMIT,
        )  # fmt: skip

    def warm(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run a command in a fork that finds the large libraries imported."""
        return self._warm.run(self.environment, *CLI, *arguments)

    def run(self, workspace: Path, *options: str, config: str = CONFIG, cold: bool = False) -> Ran:
        """Run the factory, warm unless it is to start as in a user's shell."""
        arguments = ("run", config, "--workspace", str(workspace), "--json", *options)
        return parsed(self.command(*arguments) if cold else self.warm(*arguments))

    def kill_in(self, phase: str, name: str, workspace: Path) -> Ran:
        script = ("tests/thimble/kill_in.py", phase, name)
        arguments = ("run", CONFIG, "--workspace", str(workspace), "--json")
        return parsed(self._warm.run(self.environment, *script, *arguments))

    def close(self) -> None:
        self._warm.close()


class Warm:
    """A process that has the large libraries imported and forks for every command: see warm.py."""

    def __init__(self, environment: dict[str, str]) -> None:
        self._environment = environment
        self._process: subprocess.Popen[str] | None = None

    def run(self, environment: dict[str, str], *command: str) -> subprocess.CompletedProcess[str]:
        process = self._process = self._process or self._start()
        assert process.stdin and process.stdout
        with TemporaryDirectory() as folder:
            out, err = Path(folder, "out"), Path(folder, "err")
            request = {"command": command, "environment": environment, "out": str(out), "err": str(err)}
            process.stdin.write(json.dumps(request) + "\n")
            process.stdin.flush()
            if not select.select([process.stdout], [], [], LIMIT)[0]:
                pytest.fail(f"not done after {LIMIT} s: {err.read_text()[-2000:]}")
            code = int(process.stdout.readline())
            return subprocess.CompletedProcess(command, code, out.read_text(), err.read_text())

    def _start(self) -> "subprocess.Popen[str]":
        return subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("warm.py"))], cwd=ROOT, env=self._environment,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True,
        )  # fmt: skip

    def close(self) -> None:
        """End it, and a command that hangs."""
        if self._process is not None:
            if self._process.poll() is None:
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.communicate()


def parsed(done: subprocess.CompletedProcess[str]) -> Ran:
    events = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    return Ran(done.returncode, events, done.stderr)


@pytest.fixture(scope="package")
def factory(tmp_path_factory: pytest.TempPathFactory, cache: Path) -> Iterator[Factory]:
    settings = Settings(home=tmp_path_factory.mktemp("home"), cache=cache)
    # What the server of one worker prepares helps the next one's.
    with FileLock(cache / "lock"):
        server = start_private(settings)
        factory = Factory(settings, server.url)
        server.wait()
    with server:
        yield factory
        factory.close()


def flow_states(factory: Factory) -> list[tuple[str, str]]:
    request = urllib.request.Request(
        factory.environment["PREFECT_API_URL"] + "/flow_runs/filter", data=b"{}", method="POST",
        headers={"Content-Type": "application/json"},
    )  # fmt: skip
    with urllib.request.urlopen(request, timeout=30) as answer:
        return [(run["state_type"], run["state_name"]) for run in json.load(answer)]
