"""The same jobs on a Ray cluster of two machines, here two nodes on one."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

# Ray reads both when it is loaded.
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
ray = pytest.importorskip("ray")
cluster_utils = pytest.importorskip("ray.cluster_utils")

from core.data.workers import Inline, Workers, open_workers  # noqa: E402
from core.errors import ConfigError, DataError, ResourceError  # noqa: E402


def count_lines(path: Path) -> tuple[str, int]:
    return path.name, len(path.read_text().splitlines())


def node(_: int) -> str:
    return str(ray.get_runtime_context().get_node_id())


def refuse(number: int) -> int:
    if number == 3:
        raise DataError("bad row", where="rows.jsonl:3", fix="mend it")
    return number


def die(number: int) -> int:
    if number == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return number


def speak(number: int) -> int:
    print("a worker that speaks")
    return number


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """A head that computes nothing and two nodes that do."""
    cluster = cluster_utils.Cluster(
        initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False}
    )
    for _ in range(2):
        cluster.add_node(num_cpus=1)
    cluster.wait_for_nodes()
    yield cluster.address
    cluster.shutdown()


@pytest.fixture
def workers(address: str) -> Iterator[Workers]:
    with open_workers("ray", None, address) as cluster:
        yield cluster


def test_a_cluster_gives_what_one_process_gives(workers: Workers, tmp_path: Path) -> None:
    files = [tmp_path / f"{number}.txt" for number in range(30)]
    for number, file in enumerate(files):
        file.write_text("line\n" * number)
    assert list(workers.map(count_lines, files)) == list(Inline().map(count_lines, files))


def test_both_nodes_work_and_the_head_does_not(workers: Workers) -> None:
    assert workers.count == 2
    assert len(set(workers.map(node, range(40)))) == 2


def test_jobs_are_taken_only_as_needed(workers: Workers) -> None:
    taken: list[int] = []
    results = workers.map(abs, (taken.append(number) or number for number in range(100)))
    for done in range(1, 10):
        next(results)
        assert len(taken) - done < 2 * workers.count
    results.close()
    assert list(workers.map(abs, [-1, -2])) == [1, 2]


def test_an_error_arrives_as_it_was_raised(workers: Workers) -> None:
    results = workers.map(refuse, range(10))
    assert [next(results) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(DataError) as caught:
        next(results)
    assert type(caught.value) is DataError
    assert str(caught.value) == str(DataError("bad row", where="rows.jsonl:3", fix="mend it"))


def test_a_killed_worker_is_one_clear_error(workers: Workers) -> None:
    with pytest.raises(ResourceError, match="killed"):
        list(workers.map(die, range(4)))


def test_workers_are_silent(workers: Workers, capfd: pytest.CaptureFixture[str]) -> None:
    assert list(workers.map(speak, range(4))) == [0, 1, 2, 3]
    assert "speaks" not in capfd.readouterr().out


def test_auto_finds_the_cluster_of_this_machine(address: str) -> None:
    with open_workers("ray", None, "auto") as cluster:
        assert cluster.count == 2


def test_fewer_workers_than_the_cluster_has_is_obeyed(address: str) -> None:
    with open_workers("ray", 1, address) as one:
        assert one.count == 1
        taken: list[int] = []
        results = one.map(abs, (taken.append(number) or number for number in range(9)))
        next(results)
        assert len(taken) == 1
        results.close()


def test_a_joined_cluster_goes_on_and_our_sigterm_handler_stays(address: str) -> None:
    before = signal.getsignal(signal.SIGTERM)
    for _ in range(2):
        with open_workers("ray", None, address) as cluster:
            assert list(cluster.map(abs, [-1, -2, -3])) == [1, 2, 3]
            assert signal.getsignal(signal.SIGTERM) == before
        assert not ray.is_initialized()


def test_without_an_address_a_cluster_is_started_and_stopped() -> None:
    before = set(psutil.Process().children(recursive=True))
    with open_workers("ray", 1, None) as one:
        assert one.count == 1
        assert list(one.map(abs, [-1, -2, -3])) == [1, 2, 3]
    left = psutil.wait_procs(set(psutil.Process().children(recursive=True)) - before, timeout=10)[1]
    assert left == []


@pytest.mark.parametrize("address", ["127.0.0.1:1", "ray://127.0.0.1:1", "no address"])
def test_an_address_nobody_answers_at_is_an_error_that_names_the_key(address: str) -> None:
    with pytest.raises(ConfigError, match=r"execution\.address"), open_workers("ray", 2, address):
        pass
