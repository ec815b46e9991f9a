"""Training in a process of its own: the same numbers, the same errors, and nothing left behind however it ends."""

import json
import math
import os
import signal
import subprocess
import sys
import threading
import time
import warnings
from contextlib import suppress
from multiprocessing import get_context
from pathlib import Path

import psutil
import pytest

from core.artifacts import path_digest
from core.data.chat import IGNORE_INDEX, Encoded
from core.errors import (
    ArtifactChanged,
    ConfigError,
    DataError,
    EngineFailed,
    FactoryError,
    ModelError,
    ResourceError,
    TrainingFailed,
    UserError,
)
from core.models.adapters import attach
from core.models.config import LoraConfig, ModelConfig
from core.models.frameworks import FrameworkNotice
from core.models.loading import load_model
from core.sinks import ListSink
from core.training import apart
from core.training.apart import train_apart
from core.training.config import TrainingConfig
from core.training.handover import hand_over, progress_of, take_over, tuned_of, values_of
from core.training.job import JOB, HandedOver, Job, line, rebuilt, told
from core.training.loop import Plan, Progress
from core.training.memory import out_of_memory
from core.training.rows import SftInputs
from core.training.sft import Tuned, finetune, save_adapter

ROOT = Path(__file__).parents[3]
LORA = LoraConfig(r=4, lora_dropout=0.1, use_gradient_checkpointing=False)
STEPS = 80
TRAINING = TrainingConfig(
    per_device_train_batch_size=4, gradient_accumulation_steps=2, optim="adamw_torch", learning_rate=1e-2,
    eval_steps=20, save_steps=3, warmup_steps=2, max_steps=STEPS,
)  # fmt: skip
EDITED = {"transformers", "peft", "trl", "accelerate", "bitsandbytes", "tokenizers", "datasets"}


def inputs() -> SftInputs:
    rows = []
    for number in range(22):
        ids = [6 + (7 * number + 31 * place) % 390 for place in range(5 + number % 4)]
        rows.append(Encoded(ids, [IGNORE_INDEX] * 3 + ids[3:]))
    return SftInputs(rows[:18], rows[18:], pad_id=1, window=64)


def job(base: Path, folder: Path, **model) -> Job:
    return Job(
        model=ModelConfig(**{"name": str(base), "load_in_4bit": False, **model}),
        lora=LORA, training=TRAINING, checkpoints=folder / "checkpoints", adapter=folder / "lora", fingerprint="f",
    )  # fmt: skip


class Ears:
    """Hears what is told on the way."""

    def __init__(self) -> None:
        self.sink, self.saves, self.starts = ListSink(), [], []

    def train(self, given: Job, log: Path) -> Tuned:
        return train_apart(
            given, inputs(), log=log, sink=self.sink, on_checkpoint=lambda: self.saves.append(1),
            on_start=self.starts.append,
        )  # fmt: skip


@pytest.fixture(autouse=True)
def one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


@pytest.fixture
def others() -> set[psutil.Process]:
    """Children of the tests' own process that are somebody else's: others wait for tests to come."""
    return set(psutil.Process().children())


# An engine that does what a test says, before anything heavy is loaded


@pytest.fixture
def engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Let ``import unsloth`` in the child run a piece of code; its torch only says that there is a GPU."""
    place = tmp_path / "packages"
    place.mkdir()
    (place / "torch.py").write_text("class cuda:\n    is_available = staticmethod(lambda: True)\n")
    monkeypatch.setenv("PYTHONPATH", str(place))

    def write(code: str) -> Job:
        (place / "unsloth.py").write_text(code)
        return job(tmp_path / "base", tmp_path, framework="unsloth")

    return write


def test_the_engine_is_imported_before_all_that_it_edits(engine, tmp_path: Path):
    given = engine(
        f"import sys\nopen({str(tmp_path / 'seen')!r}, 'w').write(' '.join(sys.modules))\nraise ImportError('enough')"
    )
    with pytest.raises(ModelError, match="unsloth is installed but cannot be imported: enough"):
        Ears().train(given, tmp_path / "log")
    seen = set((tmp_path / "seen").read_text().split())
    assert {"core.models.frameworks", "torch"} <= seen
    assert not {name.partition(".")[0] for name in seen} & EDITED


def test_an_error_of_ours_arrives_as_it_was(engine, tmp_path: Path):
    given = engine("from core.errors import DataError\nraise DataError('wät', where='row 7', fix='mend it')")
    with pytest.raises(DataError) as caught:
        Ears().train(given, tmp_path / "log")
    assert (caught.value.what, caught.value.where, caught.value.fix) == ("wät", "row 7", "mend it")


def test_memory_that_runs_out_and_a_full_disk_are_the_callers_to_explain(engine, tmp_path: Path):
    with pytest.raises(MemoryError, match="no more"):
        Ears().train(engine("raise MemoryError('no more')"), tmp_path / "log")


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("raise ValueError('odd')", ("failed: ValueError: odd", "unsloth.py")),
        ("input()", ("EOFError",)),
        ("import os; os._exit(7)", ("exit code 7",)),
        ("import os; os.kill(os.getpid(), 9)", ("signal 9 (SIGKILL)", "main memory", "the last words")),
        ("import os; os.kill(os.getpid(), 11)", ("signal 11 (SIGSEGV)",)),
        ("import os; os.kill(os.getpid(), 15)", ("signal 15 (SIGTERM)", "another program")),
    ],
    ids=["a bug", "a question", "an exit", "SIGKILL", "a crash", "SIGTERM"],
)
def test_any_other_end_is_one_message_with_the_last_lines(engine, tmp_path: Path, code: str, words):
    log = tmp_path / "logs/engine.log"
    log.parent.mkdir()
    log.write_text("an earlier run\n")
    with pytest.raises(EngineFailed, match=r"training in a process of its own failed") as caught:
        Ears().train(engine("print('the last words', flush=True)\n" + code), log)
    assert all(word in str(caught.value) for word in (*words, str(log)))
    assert "an earlier run" not in str(caught.value)
    assert log.read_text().startswith("an earlier run\nthe last words")
    # Where the engine was at that moment.
    assert ("unsloth.py" in log.read_text()) == ("raise" in code or "input" in code or "11" in code)
    assert not list(tmp_path.glob(".*.part"))


@pytest.mark.usefixtures("limit")
def test_a_process_left_behind_that_holds_the_pipe_open_is_not_waited_for(engine, tmp_path: Path):
    left = tmp_path / "left"
    code = f"import os, time\nif pid := os.fork(): open({str(left)!r}, 'x').write(str(pid)); os._exit(7)\ntime.sleep(600)"
    with pytest.raises(EngineFailed, match="exit code 7"):
        Ears().train(engine(code), tmp_path / "log")
    behind = psutil.Process(read_pid(left))
    assert behind.is_running()
    behind.kill()


LIMIT = 120
"""Seconds after which something hangs: no outcome depends on how fast it comes."""
WAITS = """
import os, time
try:
    open({pid!r}, 'x').write(str(os.getpid()))
    {before}
    for _ in range(6000): time.sleep(0.1)
finally:
    open({pid!r} + '-asked', 'x').close()
"""


@pytest.fixture
def limit():
    """Fail a test that hangs."""

    def give_up(number: int, frame: object) -> None:
        raise TimeoutError(f"hangs for {LIMIT} s")

    before = signal.signal(signal.SIGALRM, give_up)
    signal.alarm(LIMIT)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def waiting(engine, file: Path, before: str = "") -> Job:
    return engine(WAITS.format(pid=str(file), before=before))


def read_pid(file: Path) -> int:
    deadline = time.monotonic() + LIMIT
    while not (file.is_file() and file.read_text()):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return int(file.read_text())


def is_gone(pid: int, within: float = LIMIT) -> bool:
    deadline = time.monotonic() + within
    while psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


@pytest.mark.usefixtures("limit")
@pytest.mark.parametrize("is_stubborn", [False, True])
def test_ctrl_c_ends_the_process_before_it_travels_on(
    engine, tmp_path: Path, monkeypatch, others, is_stubborn: bool
):
    monkeypatch.setattr(apart, "GRACE", 0.3 if is_stubborn else 60.0)
    # What is stopped hears of nothing but SIGKILL.
    deaf = "import signal; os.kill(os.getpid(), signal.SIGSTOP)" if is_stubborn else ""
    given = waiting(engine, tmp_path / "pid", deaf)

    over = threading.Event()
    # A shell that starts the tests in the background has it ignored.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)

    def interrupt() -> None:
        pid = read_pid(tmp_path / "pid")
        while is_stubborn and psutil.Process(pid).status() != psutil.STATUS_STOPPED:
            time.sleep(0.02)
        if not over.wait(0.2):
            os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt, daemon=True)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        Ears().train(given, tmp_path / "log")
    over.set()
    thread.join()
    signal.signal(signal.SIGINT, before)
    assert is_gone(read_pid(tmp_path / "pid"), 0.0)
    assert set(psutil.Process().children()) <= others
    assert (tmp_path / "pid-asked").exists() is not is_stubborn
    assert not list(tmp_path.glob(".*.part"))


def test_a_ctrl_c_that_the_process_heard_first_is_one(engine, tmp_path: Path):
    with pytest.raises(KeyboardInterrupt):
        Ears().train(engine("import os; os.kill(os.getpid(), 2)"), tmp_path / "log")


def test_a_listener_that_fails_ends_the_process(tmp_path: Path, others):
    given = job(tmp_path / "base", tmp_path, framework="unsloth", fall_back=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error", FrameworkNotice)
        with pytest.raises(FrameworkNotice, match="not installed"):
            Ears().train(given, tmp_path / "log")
    assert set(psutil.Process().children()) <= others


@pytest.mark.parametrize("how", ["the end of a pipe", pytest.param("the kernel", marks=pytest.mark.skipif(
    sys.platform != "linux", reason="only Linux kernels do"))])  # fmt: skip
def test_the_process_dies_with_its_parent(engine, tmp_path: Path, how: str):
    given = waiting(engine, tmp_path / "pid")
    (tmp_path / JOB).write_text(HandedOver(job=given, pad_id=0).model_dump_json())
    command = [sys.executable, "-m", "core.training.worker", str(tmp_path)]
    read, write = os.pipe()
    heard, told_into = os.pipe()
    # A parent that only waits. With its standard input passed on, the pipe's other end is here, and outlives it.
    parent = subprocess.Popen(
        [sys.executable, "-c", f"import subprocess; subprocess.run({[*command, str(told_into)]!r}, pass_fds=({told_into},))"],
        stdin=read, pass_fds=(told_into,), cwd=ROOT,
    )  # fmt: skip
    os.close(read)
    pid = read_pid(tmp_path / "pid")
    assert not is_gone(pid, 0.3)
    if how == "the kernel":
        parent.kill()
    else:
        os.close(write)
    assert is_gone(pid)
    parent.kill()
    parent.wait()
    for end in (heard, told_into, *([write] if how == "the kernel" else [])):
        os.close(end)


# The whole way, with the stock engine


class Hasty(list):
    """Sends a signal to its own process when the second state is saved, and first notes what ran there."""

    def __init__(self, number: signal.Signals, note: Path) -> None:
        super().__init__()
        self.number, self.note = number, note

    def append(self, one: int) -> None:
        super().append(one)
        if len(self) == 2:
            self.note.write_text(str(psutil.Process().children()[0].pid))
            os.kill(os.getpid(), self.number)


def interrupted_then_killed(given: Job, folder: Path) -> None:
    """Train twice, and be stopped each time. What a shell or the tests do with SIGINT does not count here."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number in (signal.SIGINT, signal.SIGKILL):
        ears = Ears()
        ears.saves = Hasty(number, folder / f"child-{number.name}")
        with suppress(KeyboardInterrupt):
            ears.train(given, folder / "log")
        (folder / f"left-{number.name}").write_text(str(len(psutil.Process().children())))


def states(given: Job) -> dict[str, float]:
    """Return the resumable states and when they were written."""
    return {path.name: path.stat().st_mtime for path in given.checkpoints.glob("checkpoint-*")}


def test_interrupted_then_killed_it_ends_bit_for_bit_where_training_in_this_process_does(
    tmp_path: Path, base_folder: Path
):
    given = job(base_folder, tmp_path, framework="unsloth", fall_back=True)
    # A fork: the driver needs the large libraries, and has them already.
    driver = get_context("fork").Process(target=interrupted_then_killed, args=(given, tmp_path), daemon=True)
    driver.start()
    driver.join(2 * LIMIT)
    assert driver.exitcode == -signal.SIGKILL
    assert (tmp_path / "left-SIGINT").read_text() == "0"
    assert not (tmp_path / "left-SIGKILL").exists()
    assert is_gone(int((tmp_path / "child-SIGKILL").read_text()))
    left = states(given)
    # Two, where the kill came between a new state's last byte and the old one's end.
    assert 1 <= len(left) <= 2
    reached = max(int(name.removeprefix("checkpoint-")) for name in left)
    assert 12 <= reached < STEPS
    time.sleep(0.3)
    assert states(given) == left

    ears = Ears()
    with pytest.warns(FrameworkNotice, match="not installed; training with hf instead"):
        tuned = ears.train(given, tmp_path / "log")
    own = job(base_folder, tmp_path / "own")
    model, sink = attach(load_model(own.model, trainable=True), LORA), ListSink()
    wanted = finetune(
        model, inputs(), TRAINING, checkpoints=own.checkpoints, fingerprint="f", sink=sink,
        on_checkpoint=lambda: None, on_start=lambda progress: None,
    )  # fmt: skip
    save_adapter(model, own.adapter)
    assert path_digest(given.adapter) == path_digest(own.adapter)
    measured = {"seconds": 0, "tokens_per_second": 0, "peak_memory": 0}
    assert tuned._replace(**measured) == wanted._replace(**measured)
    assert tuned.framework == "hf"
    assert tuned.seconds > 0 < tuned.tokens_per_second
    assert [start.step for start in ears.starts] == [reached]
    assert ears.starts[0].losses == wanted.progress.losses[:reached]
    assert len(ears.saves) == sum(step % 3 == 0 or step == STEPS for step in range(reached + 1, STEPS + 1))
    assert without_speed(ears.sink) == [row for row in without_speed(sink) if row[0] > reached]
    # The engine's own folder, and what a killed one left, are for the run's next start to sweep.
    assert len(list(tmp_path.glob(".*.part"))) <= 1


def without_speed(sink: ListSink) -> list[tuple[int, dict[str, float]]]:
    return [(step, {k: v for k, v in row.items() if k != "tokens_per_second"}) for step, row in sink.rows]


# What crosses


ERRORS = [
    *(
        kind("what", where="wo", fix="so")
        for kind in (UserError, ConfigError, DataError, ModelError, ResourceError)
    ),
    ResourceError("nur was"),
    out_of_memory(),
    *(
        kind("it failed:\nat\nlength ✗")
        for kind in (FactoryError, ArtifactChanged, TrainingFailed, EngineFailed)
    ),
]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("out_of_memory", [False, True])
def test_our_errors_cross_as_they_are(error: FactoryError, out_of_memory: bool):
    there = json.loads(line("error", **told(error, out_of_memory=out_of_memory)))
    back = rebuilt(there)
    assert type(back) is type(error)
    assert str(back) == str(error)
    assert back.__dict__ == error.__dict__


class Narrower(ConfigError):
    pass


@pytest.mark.parametrize(
    ("error", "memory", "kind", "words"),
    [
        (Narrower("what"), False, ConfigError, "what"),
        (MemoryError("9 GB"), True, MemoryError, "9 GB"),
        (RuntimeError("CUDA error: out of memory"), True, MemoryError, "CUDA error"),
        (OSError(28, "full", "/d/f"), False, OSError, "/d/f"),
        (OSError(122, "quota"), False, OSError, "quota"),
    ],
)
def test_others_cross_as_what_the_caller_knows(error, memory: bool, kind, words: str):
    back = rebuilt(json.loads(line("error", **told(error, out_of_memory=memory))))
    assert type(back) is kind
    assert words in str(back).lower() or words in str(back)
    assert getattr(back, "errno", None) == getattr(error, "errno", None)


@pytest.mark.parametrize("error", [ValueError("x"), OSError(2, "none"), KeyError("k"), SystemExit(3)])
def test_what_nobody_knows_stays_a_text(error: BaseException):
    there = json.loads(line("error", **told(error, out_of_memory=False)))
    assert rebuilt(there) is None
    assert there["what"].startswith(type(error).__name__)


AWKWARD = (0.1, 1 / 3, 5e-324, 1.7976931348623157e308, -0.0, math.inf, -math.inf, math.nan, 2.5)


def test_floats_cross_exactly():
    progress = Progress(9, 1 << 60, AWKWARD, tuple(enumerate(AWKWARD)), 2, True)
    tuned = Tuned(
        progress, Plan(9, 3, 1, 5, 3, 0.1, 7, None, 1e-300), 1 / 3, 1, 2, "cpu", 9, 1, 2, 0.1, 3, "hf", "nf4"
    )
    back = tuned_of(json.loads(line("done", tuned=values_of(tuned)))["tuned"])
    # As text, for NaN is no equal of itself.
    assert repr(back) == repr(tuned)
    assert repr(progress_of(json.loads(json.dumps(progress._asdict())))) == repr(progress)


@pytest.mark.parametrize("window", [None, 4096])
def test_examples_and_settings_cross_as_they_are(tmp_path: Path, window: int | None, monkeypatch):
    monkeypatch.setattr("core.training.handover.AT_ONCE", 5)
    masks = [[0, 0, 1, 1], [1, 0, 1, 0, 1], [0], [1], [0, 1, 1]]
    rows = [
        Encoded(ids := [place + 100000 for place in range(len(mask))],
                [token if on else IGNORE_INDEX for token, on in zip(ids, mask, strict=True)])
        for mask in masks * 3
    ]  # fmt: skip
    given = Job(
        model=ModelConfig(name="/b ü", load_in_8bit=True, dtype="bfloat16", framework="unsloth", fall_back=True),
        lora=LoraConfig(target_modules="all-linear", lora_dropout=0.1, use_rslora=True),
        training=TrainingConfig(learning_rate=1.1e-5, max_steps=None, num_train_epochs=1 / 3, packing=True),
        checkpoints=tmp_path, adapter=tmp_path / "a", fingerprint="sha256:x",
    )  # fmt: skip
    hand_over(tmp_path, given, SftInputs(rows, [], 7, window))
    assert not {path.suffix for path in tmp_path.iterdir()} & {".pkl", ".pt", ".npy", ".npz"}
    handed = HandedOver.model_validate_json((tmp_path / JOB).read_bytes())
    assert handed.job == given
    back = take_over(tmp_path, handed)
    assert (list(back.train), list(back.val), back.pad_id, back.window) == (rows, [], 7, window)


def test_examples_that_changed_on_the_way_are_refused(tmp_path: Path):
    hand_over(tmp_path, job(tmp_path, tmp_path), inputs())
    handed = HandedOver.model_validate_json((tmp_path / JOB).read_bytes())
    content = bytearray((tmp_path / "train.arrow").read_bytes())
    content[300] ^= 1
    (tmp_path / "train.arrow").write_bytes(content)
    with pytest.raises(EngineFailed, match="not as they were written"):
        take_over(tmp_path, handed)
