"""Jobs in processes: same results in the same order, errors unchanged, nothing left running."""

import contextlib
import functools
import importlib.util
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pyarrow as pa
import pytest

from core.data.workers import Inline, Local, Workers, open_workers
from core.errors import ConfigError, DataError, EngineFailed, ResourceError

ROOT = Path(__file__).parents[3]


SLEEP = 120
"""Seconds that a worker sleeps which nobody ends."""


def square(number: int) -> int:
    return number * number


def square_slowly_at_first(number: int) -> int:
    time.sleep(0.2 if number == 0 else 0)
    return number * number


def process_id(_: int) -> int:
    return os.getpid()


def circumstances(_: int) -> tuple[int, int, bool]:
    print("a worker that speaks")
    os.write(1, b"even past Python")
    return pa.cpu_count(), pa.io_thread_count(), signal.getsignal(signal.SIGINT) is signal.SIG_IGN


def refuse(number: int) -> int:
    if number == 3:
        raise DataError("bad row", where="rows.jsonl:3", fix="mend it")
    return number


class NotForTravel(Exception):
    def __init__(self, *, code: int) -> None:
        super().__init__(f"code {code}")


def refuse_strangely(number: int) -> int:
    raise NotForTravel(code=number)


def die(number: int) -> int:
    if number == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return number


def touch_and_sleep(folder: Path, number: int) -> int:
    (folder / str(os.getpid())).touch()
    time.sleep(SLEEP)
    return number


@pytest.fixture(scope="module")
def workers() -> Iterator[Workers]:
    with open_workers("local", 2, None) as two:
        yield two


def test_results_come_in_the_order_of_the_jobs(workers: Workers) -> None:
    assert list(workers.map(square_slowly_at_first, range(20))) == list(Inline().map(square, range(20)))


@pytest.mark.parametrize("jobs", [0, 1, 2, 3, 5])
def test_any_number_of_jobs_will_do(workers: Workers, jobs: int) -> None:
    assert list(workers.map(square, range(jobs))) == [number**2 for number in range(jobs)]


def test_two_processes_are_at_work_and_neither_is_this_one(workers: Workers) -> None:
    others = set(workers.map(process_id, range(20)))
    assert 1 <= len(others) <= 2
    assert os.getpid() not in others


def test_jobs_are_taken_only_as_needed_at_most_twice_the_workers_ahead(workers: Workers) -> None:
    taken: list[int] = []
    results = workers.map(square, (taken.append(number) or number for number in range(100)))
    assert taken == []
    for done in range(1, 20):
        next(results)
        assert len(taken) - done < 2 * workers.count
    results.close()
    assert len(taken) < 30


def test_an_endless_list_of_jobs_can_be_left_early(workers: Workers) -> None:
    results = workers.map(square, iter(int, 1))
    assert [next(results) for _ in range(5)] == [0] * 5
    results.close()
    assert list(workers.map(square, [1, 2])) == [1, 4]


def test_a_worker_has_one_thread_no_voice_and_no_ear_for_ctrl_c(capfd: pytest.CaptureFixture[str]) -> None:
    with open_workers("local", 2, None) as two:
        assert set(two.map(circumstances, range(4))) == {(1, 1, True)}
    assert capfd.readouterr().out == ""


def test_an_error_arrives_as_it_was_raised(workers: Workers) -> None:
    results = workers.map(refuse, range(10))
    assert [next(results) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(DataError) as caught:
        next(results)
    assert str(caught.value) == str(DataError("bad row", where="rows.jsonl:3", fix="mend it"))
    assert (caught.value.what, caught.value.where, caught.value.fix) == ("bad row", "rows.jsonl:3", "mend it")
    assert list(workers.map(square, [1, 2])) == [1, 4]


def test_an_error_that_cannot_travel_is_told_by_name(workers: Workers) -> None:
    with pytest.raises(EngineFailed, match="NotForTravel: code 0"):
        list(workers.map(refuse_strangely, range(3)))


def test_an_error_in_the_list_of_jobs_arrives_too(workers: Workers) -> None:
    def jobs() -> Iterator[int]:
        yield from range(3)
        raise DataError("no more")

    with pytest.raises(DataError, match="no more"):
        list(workers.map(square, jobs()))


def test_a_killed_worker_is_one_clear_error_with_a_way_out() -> None:
    with open_workers("local", 2, None) as two, pytest.raises(ResourceError) as caught:
        list(two.map(die, range(10)))
    assert "execution.workers: 1" in str(caught.value)


def test_after_a_worker_was_killed_further_work_is_refused_as_clearly() -> None:
    with open_workers("local", 2, None) as two:
        for _ in range(2):
            with pytest.raises(ResourceError, match="killed"):
                list(two.map(die, range(10)))


def test_nothing_starts_for_a_single_job() -> None:
    with open_workers("local", 2, None) as two:
        before = set(psutil.Process().children())
        assert list(two.map(process_id, [0])) == [os.getpid()]
        assert set(psutil.Process().children()) <= before


def test_one_worker_is_this_process() -> None:
    with open_workers("local", 1, None) as one:
        assert isinstance(one, Inline)
        assert set(one.map(process_id, range(5))) == {os.getpid()}


def test_without_a_number_every_core_works() -> None:
    with open_workers("local", None, None) as all_of_them:
        assert all_of_them.count == len(os.sched_getaffinity(0))


def test_workers_can_be_used_from_a_thread() -> None:
    found: list[int] = []

    def work() -> None:
        with open_workers("local", 2, None) as two:
            found.extend(two.map(square, range(5)))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join(30)
    assert found == [0, 1, 4, 9, 16]


def test_an_error_in_the_block_ends_sleeping_workers_at_once(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), open_workers("local", 2, None) as two:
        results = two.map(functools.partial(touch_and_sleep, tmp_path), range(10))
        threading.Thread(target=_first_of, args=(results,), daemon=True).start()
        _await(lambda: len(list(tmp_path.iterdir())) == 2)
        began = time.monotonic()
        raise KeyboardInterrupt
    _await(lambda: not _alive(tmp_path))
    assert time.monotonic() - began < SLEEP / 2


def _first_of(results: Iterator[int]) -> None:
    with contextlib.suppress(ResourceError):
        next(results)


PARENT = """
    import functools, pathlib, signal, sys
    from core.data.workers import open_workers
    from tests.core.data.test_workers import touch_and_sleep
    if __name__ == "__main__":
        # A shell that starts the tests in the background has it ignored.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        with open_workers("local", 2, None) as two:
            list(two.map(functools.partial(touch_and_sleep, pathlib.Path(sys.argv[1])), range(10)))
"""


@pytest.mark.parametrize("how", ["kill -9 of the parent", "Ctrl-C to all"])
def test_no_worker_outlives_its_parent(tmp_path: Path, how: str) -> None:
    script = tmp_path / "parent.py"
    script.write_text(textwrap.dedent(PARENT))
    places = tmp_path / "pids"
    places.mkdir()
    parent = subprocess.Popen(
        [sys.executable, str(script), str(places)],
        start_new_session=True,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    _await(lambda: len(list(places.iterdir())) == 2)
    if how == "Ctrl-C to all":
        os.killpg(parent.pid, signal.SIGINT)
    else:
        parent.kill()
    _, errors = parent.communicate(timeout=SLEEP / 2)
    _await(lambda: not _alive(places))
    assert "SpawnProcess" not in errors
    # The parent's own, if it was asked and not shot.
    assert errors.count("Traceback") == (how == "Ctrl-C to all")


def _alive(folder: Path) -> list[int]:
    return [int(file.name) for file in folder.iterdir() if psutil.pid_exists(int(file.name))]


def _await(reached: Callable[[], bool], seconds: float = SLEEP / 2) -> None:
    deadline = time.monotonic() + seconds
    while not reached():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_without_ray_the_message_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with (
        pytest.raises(ConfigError, match=r'pip install "data-factory\[ray\]"'),
        open_workers("ray", 2, None),
    ):
        pass


def test_closing_twice_is_harmless() -> None:
    local = Local(2)
    local.close()
    assert list(local.map(square, range(3))) == [0, 1, 4]
    local.close()
    local.close()
