"""Real servers on free ports: one pair for the module, private ones for runs in child processes."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import psutil
import pytest

from core.errors import ResourceError
from flows.launch import stores_of
from flows.server_database import is_current, seed_of
from flows.server_process import Identity, is_healthy, listen, listen_near, stop
from flows.servers import down, running, start_prefect, start_private, up
from flows.settings import SOURCE, Settings, read_settings

RUN = """
import logging

from flows.settings import apply, prefect_environment, read_settings
from flows.servers import start_prefect, without_heartbeats

settings = read_settings()
with start_prefect(settings) as api:
    apply(prefect_environment(settings, api.url))
    from prefect import flow, get_run_logger, task
    from prefect.states import Completed, Failed

    @task
    def phase(number):
        get_run_logger().info("phase says %d", number)
        return Completed(name="Cached", data=number) if number % 2 else number

    @flow
    def gated():
        total = sum(phase(number, return_state=True).result() for number in range(8))
        return Failed(name="GateBlocked", message=f"[model-performance] sum {total}")

    @task
    def broken():
        raise ValueError("the task broke")

    @flow(log_prints=True)
    def crashing():
        print("a print inside a flow")
        broken()

    api.wait()
    # What Prefect's senders say when a run ends before everything is sent.
    logging.getLogger("EventsWorker").warning("still processing")
    logging.getLogger("APILogWorker").warning("still processing")
    with without_heartbeats():
        state = gated(return_state=True)
        print(state.type.value, state.name, state.message)
        print(crashing(return_state=True).name)
"""

ABANDON = """
import sys, time
from flows.settings import read_settings
from flows.servers import start_prefect

api = start_prefect(read_settings())
if sys.argv[1] == "healthy":
    api.wait()
print(api._private.process.pid, flush=True)
time.sleep(600)
"""


def child(code, settings, *arguments, cwd=None):
    env = {k: v for k, v in os.environ.items() if not k.startswith(("PREFECT_", "MLFLOW_"))}
    env |= {
        "FACTORY_HOME": str(settings.home),
        "FACTORY_CACHE": str(settings.cache),
        "PYTHONPATH": str(SOURCE),
    }
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.Popen(
        command, env=env, cwd=cwd or settings.home, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def ask(url, body=None):
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=30) as answer:
        return answer.read()


def gone(pid):
    """Wait for the end of a process; one that is not ended on purpose never comes to one."""
    deadline = time.monotonic() + 60
    while psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    home = tmp_path_factory.mktemp("home")
    return Settings(home=home, cache=tmp_path_factory.getbasetemp() / "cache")


@pytest.fixture(scope="module")
def runs(settings):
    """What two runs printed that started at once, each with a private server, on one new home."""
    return [process.communicate(timeout=300) for process in [child(RUN, settings), child(RUN, settings)]]


@pytest.fixture(scope="module")
def pair(settings, runs):
    lines = []
    with listen(0) as busy:
        taken = busy.getsockname()[1]
        servers = up(settings, prefect_port=taken, mlflow_port=0, progress=lines.append)
    yield servers, taken, lines
    down(settings)


def test_a_blocked_and_a_crashing_flow_print_nothing_of_their_own(runs):
    for out, err in runs:
        assert out.splitlines() == ["FAILED GateBlocked [model-performance] sum 28", "Failed"]
        assert err == ""


def test_tracebacks_are_kept_in_the_client_log(settings, runs):
    assert "ValueError: the task broke" in (settings.prefect_home / "client.log").read_text()


def test_history_of_private_servers_survives_them(pair):
    api = pair[0].prefect_api_url
    flows = json.loads(ask(f"{api}/flow_runs/filter", {}))
    assert sorted(run["state_name"] for run in flows) == ["Failed", "Failed", "GateBlocked", "GateBlocked"]
    for run in (run for run in flows if run["state_name"] == "GateBlocked"):
        mine = {"flow_runs": {"id": {"any_": [run["id"]]}}}
        states = [task["state_name"] for task in json.loads(ask(f"{api}/task_runs/filter", mine))]
        assert sorted(states) == ["Cached"] * 4 + ["Completed"] * 4


def test_log_lines_reached_the_api(pair):
    lines = [line["message"] for line in json.loads(ask(f"{pair[0].prefect_api_url}/logs/filter", {}))]
    assert lines.count("phase says 7") == 2
    assert lines.count("a print inside a flow") == 2


def test_tables_are_made_once_and_remembered(settings, runs):
    assert seed_of(settings.cache).is_file()
    assert is_current(settings.prefect_database)


def test_a_taken_port_is_passed_over_and_named(pair):
    servers, taken, lines = pair
    assert servers.prefect.url != f"http://127.0.0.1:{taken}"
    assert any(f"port {taken} is taken" in line for line in lines)


def test_both_interfaces_answer_on_loopback_only(pair):
    for server in (pair[0].prefect, pair[0].mlflow):
        assert b"<html" in ask(server.url).lower()
        group = [
            psutil.Process(server.process.pid),
            *psutil.Process(server.process.pid).children(recursive=True),
        ]
        seen = [c.laddr.ip for p in group for c in p.net_connections() if c.status == psutil.CONN_LISTEN]
        assert seen and set(seen) == {"127.0.0.1"}


def test_up_again_keeps_what_runs(settings, pair):
    assert up(settings) == pair[0] == running(settings)


def test_a_run_prefers_the_servers_that_are_up(settings, pair):
    with start_prefect(settings) as api:
        assert api.wait() == pair[0].prefect_api_url


def test_the_environments_api_wins_over_everything(settings, pair):
    named = settings.model_copy(update={"prefect_api_url": "http://there:4200/api"})
    api = start_prefect(named)
    assert api.url == "http://there:4200/api" and not api.is_private


def test_artifacts_logged_without_a_server_show_in_the_interface(settings, pair):
    from mlflow import MlflowClient

    direct = MlflowClient(settings.mlflow_uri)
    experiment = direct.create_experiment(
        "direct", artifact_location=(settings.artifacts / "direct").as_uri()
    )
    run = direct.create_run(experiment).info.run_id
    direct.log_text(run, "12 rows", "gates/report.txt")
    base = pair[0].mlflow.url
    listed = json.loads(ask(f"{base}/ajax-api/2.0/mlflow/artifacts/list?run_id={run}&path=gates"))
    assert [file["path"] for file in listed["files"]] == ["gates/report.txt"]
    assert ask(f"{base}/get-artifact?path=gates/report.txt&run_uuid={run}") == b"12 rows"


def test_artifacts_of_an_experiment_made_by_the_server_are_plain_files(settings, pair):
    from mlflow import MlflowClient

    shared = MlflowClient(pair[0].mlflow.url)
    run = shared.create_run(shared.create_experiment("shared")).info
    assert run.artifact_uri.startswith(settings.artifacts.as_uri())
    shared.log_text(run.run_id, "x", "a.txt")
    assert list(settings.artifacts.rglob("a.txt"))


def test_a_run_finds_both_servers_and_is_recorded_through_them(settings, pair, tmp_path):
    from mlflow import MlflowClient

    asked = (
        "run",
        "tests/thimble/tiny.yaml",
        "--workspace",
        str(tmp_path / "ws"),
        "--json",
        "--until",
        "ingest",
    )
    run = child("from flows.cli import main; main()", settings, *asked, cwd=SOURCE)
    out, err = run.communicate(timeout=300)
    assert run.returncode == 0, err
    assert json.loads(out.splitlines()[-1])["status"] == "partial"
    assert stores_of(settings).tracking_uri == pair[0].mlflow.url
    client = MlflowClient(pair[0].mlflow.url)
    whole, phase = (
        client.search_runs(
            [client.get_experiment_by_name("thimble").experiment_id], f"attributes.run_name LIKE '%{name}%'"
        )
        for name in ("thimble", "ingest")
    )
    assert [each.info.status for each in (*whole, *phase)] == ["FINISHED", "FINISHED"]
    assert phase[0].data.tags["mlflow.parentRunId"] == whole[0].info.run_id
    states = [
        each["state_name"] for each in json.loads(ask(f"{pair[0].prefect_api_url}/flow_runs/filter", {}))
    ]
    assert states.count("Stopped") == 1


def test_down_ends_both_and_forgets_them(settings, pair):
    servers = pair[0]
    pids = [servers.prefect.process.pid, servers.mlflow.process.pid]
    pids += [c.pid for pid in pids for c in psutil.Process(pid).children(recursive=True)]
    assert sorted(down(settings)) == sorted([servers.prefect.url, servers.mlflow.url])
    assert all(gone(pid) for pid in pids)
    assert running(settings) is None and down(settings) == []


@pytest.mark.parametrize("moment", ["starting", "healthy"])
def test_a_private_server_ends_with_its_killed_parent(settings, moment):
    parent = child(ABANDON, settings, moment)
    pid = int(parent.stdout.readline())
    assert psutil.pid_exists(pid)
    parent.send_signal(signal.SIGKILL)
    parent.communicate()
    assert gone(pid)


def test_a_private_server_ends_with_its_block(settings):
    with start_private(settings) as api:
        url = api.wait()
        assert is_healthy(f"{url}/health", 60.0)
    assert not is_healthy(f"{url}/health", 1.0)


def test_a_server_that_cannot_start_shows_its_log(settings, monkeypatch, tmp_path):
    monkeypatch.setenv("PREFECT_API_DATABASE_CONNECTION_URL", f"sqlite+aiosqlite:///{tmp_path}/none/such.db")
    broken = settings.model_copy(update={"prefect_database_url": read_settings().prefect_database_url})
    with (
        pytest.raises(ResourceError, match="unable to open database") as caught,
        start_private(broken) as api,
    ):
        api.wait()
    assert "prefect-private.log" in caught.value.where and "factory doctor" in caught.value.fix


@pytest.mark.parametrize("text", [None, "", "{", '{"prefect": 1}', "[]"])
def test_no_record_or_a_broken_one_means_nothing_runs(tmp_path, text):
    if text is not None:
        (tmp_path / "servers.json").write_text(text)
    assert running(Settings(home=tmp_path, cache=tmp_path)) is None


def test_a_record_of_another_process_with_the_same_number_is_stale(tmp_path):
    with listen(0) as other:
        server = {
            "url": f"http://127.0.0.1:{other.getsockname()[1]}",
            "process": {"pid": os.getpid(), "started": 1.0},
        }
        (tmp_path / "servers.json").write_text(json.dumps({"prefect": server, "mlflow": server}))
        settings = Settings(home=tmp_path, cache=tmp_path)
        assert running(settings) is None
        assert down(settings) == []
    assert not (tmp_path / "servers.json").exists()


def test_up_starts_nothing_that_the_environment_names(tmp_path):
    settings = Settings(
        home=tmp_path, cache=tmp_path, prefect_api_url="http://a:1/api", mlflow_tracking_uri="http://b:2"
    )
    servers = up(settings)
    assert servers.prefect.url == "http://a:1" and servers.mlflow.url == "http://b:2"
    assert servers.prefect_api_url == "http://a:1/api"
    assert running(settings) is None


def test_stop_tells_whether_there_was_something_to_stop():
    process = subprocess.Popen(["sleep", "100"], start_new_session=True)
    identity = Identity.of(process.pid)
    assert stop(identity) is True
    process.wait()
    assert stop(identity) is False


def test_listen_gives_up_when_no_port_is_left():
    lines = []
    with socket.socket() as last:
        try:
            last.bind(("127.0.0.1", 65535))
        except OSError:
            pytest.skip("another program holds the last port")
        last.listen()
        with pytest.raises(ResourceError, match="no free port from 65535"):
            listen_near(65535, lines.append)


def test_source_is_the_folder_that_holds_the_packages():
    assert Path(SOURCE, "flows", "server_child.py").is_file()
