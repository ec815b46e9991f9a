"""One home with both servers up for all thimble runs, each run a process of its own."""

import json
import os
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from flows.servers import down, up
from flows.settings import Settings

ROOT = Path(__file__).parents[2]
CONFIG = "tests/thimble/tiny.yaml"


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

    def __init__(self, home: Path, api: str) -> None:
        self.home = home
        self.environment = {
            **os.environ, "FACTORY_HOME": str(home), "PREFECT_API_URL": api, "PYTHONPATH": str(ROOT),
            "OMP_NUM_THREADS": "1",
        }  # fmt: skip

    @property
    def mlflow_uri(self) -> str:
        return f"sqlite:///{self.home / 'mlflow.db'}"

    def command(
        self, *arguments: str, script: tuple[str, ...] = ("-m", "flows.cli")
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, *script, *arguments], cwd=ROOT, env=self.environment, capture_output=True, text=True,
            check=False, timeout=300,
        )  # fmt: skip

    def run(self, workspace: Path, *options: str, config: str = CONFIG) -> Ran:
        return parsed(self.command("run", config, "--workspace", str(workspace), "--json", *options))

    def kill_in(self, phase: str, name: str, workspace: Path) -> Ran:
        script = ("tests/thimble/kill_in.py", phase, name)
        return parsed(self.command("run", CONFIG, "--workspace", str(workspace), "--json", script=script))


def parsed(done: subprocess.CompletedProcess[str]) -> Ran:
    events = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    return Ran(done.returncode, events, done.stderr)


@pytest.fixture(scope="session")
def factory(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Factory]:
    home = tmp_path_factory.mktemp("home")
    settings = Settings(home=home, cache=home / "cache")
    # Workers look for free ports at the same moment; each starts looking elsewhere.
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    servers = up(settings, prefect_port=4300 + 20 * worker, mlflow_port=5300 + 20 * worker)
    yield Factory(home, servers.prefect_api_url)
    down(settings)


def flow_states(factory: Factory) -> list[tuple[str, str]]:
    request = urllib.request.Request(
        factory.environment["PREFECT_API_URL"] + "/flow_runs/filter", data=b"{}", method="POST",
        headers={"Content-Type": "application/json"},
    )  # fmt: skip
    with urllib.request.urlopen(request, timeout=30) as answer:
        return [(run["state_type"], run["state_name"]) for run in json.load(answer)]
