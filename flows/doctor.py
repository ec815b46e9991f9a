"""What this machine has, what is missing, and the command that fixes it.

Version numbers alone miss failures: one release of a database library let every flow run but
no schedule start. So, unless it is asked to be fast, the examination starts a Prefect server
and waits until a scheduled run appears.
"""

import json
import os
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import time
import tomllib
import urllib.error
import urllib.request
from contextlib import closing
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil
from packaging.requirements import Requirement

from core.config import Frozen
from core.errors import ResourceError
from core.models.frameworks import find_caveat
from flows.server_process import listen
from flows.servers import PrefectApi, running, start_private
from flows.settings import SOURCE, Settings

DISTRIBUTION = "data-factory"
INSTALL_GPU = f"pip install '{DISTRIBUTION}[gpu]'"
PINNED = (
    "prefect",
    "mlflow",
    "fastapi",
    "sqlalchemy",
    "torch",
    "transformers",
    "peft",
    "gguf",
    "llama-cpp-python",
)
LEAST_MEMORY = 4e9
LEAST_DISK = 5e9
GIGA = 1e9


class Finding(Frozen):
    """One thing that was looked at."""

    name: str
    """What it is about."""
    ok: bool
    """Whether the program works with it."""
    detail: str
    """What was found."""
    fix: str = ""
    """Command or action that helps, if something does."""


def examine(settings: Settings, *, fast: bool = False) -> list[Finding]:
    """Look at everything the program needs on this machine; nothing leaves it.

    Args:
        settings: Whose home and ports to look at.
        fast: Leave out what takes seconds: loading llama.cpp, starting a server.
    """
    findings = [
        python(sys.version_info[:3]),
        *versions(),
        compiler(settings),
        memory(),
        disk(settings),
        gpu(),
        kernels(),
    ]
    findings += [home(settings), *ports(settings), models(settings)]
    return findings if fast else [*findings, llama(), scheduling(settings)]


def python(version: tuple[int, ...]) -> Finding:
    """Judge the interpreter's version."""
    text = ".".join(map(str, version))
    ok = version >= (3, 11)
    return Finding(name="python", ok=ok, detail=text, fix="" if ok else "install Python 3.11 or newer")


def versions() -> list[Finding]:
    """Compare the installed packages that break easily with the ranges this project asks for."""
    wanted = {need.name.lower(): need for need in map(Requirement, _requirements())}
    return [installed(wanted[name]) for name in PINNED if name in wanted]


def installed(need: Requirement) -> Finding:
    """Compare one installed package with a requirement, without importing it."""
    fix = f'pip install "{need}"'
    try:
        found = metadata.version(need.name)
    except metadata.PackageNotFoundError:
        return Finding(name=need.name, ok=False, detail=f"not installed, need {need}", fix=fix)
    ok = need.specifier.contains(found, prereleases=True)
    return Finding(
        name=need.name, ok=ok, detail=found if ok else f"{found}, need {need}", fix="" if ok else fix
    )


def _requirements() -> list[str]:
    project = SOURCE / "pyproject.toml"
    if project.is_file():
        return list(tomllib.loads(project.read_text(encoding="utf-8"))["project"]["dependencies"])
    return [line for line in metadata.requires(DISTRIBUTION) or [] if "extra ==" not in line]


def compiler(settings: Settings) -> Finding:
    """Look for the C compiler that builds llama-cpp-python and Triton's launchers."""
    names = [settings.compiler.split()[0]] if settings.compiler else ["cc", "gcc", "clang"]
    found = next((path for name in names if (path := shutil.which(name))), "")
    fix = "" if found else "install gcc or clang, for example `apt-get install build-essential`"
    return Finding(name="c-compiler", ok=bool(found), detail=found or "none found", fix=fix)


def memory() -> Finding:
    """Judge the memory that is free now."""
    state = psutil.virtual_memory()
    detail = f"{state.available / GIGA:.1f} GB free of {state.total / GIGA:.1f} GB"
    ok = state.available >= LEAST_MEMORY
    return Finding(
        name="memory", ok=ok, detail=detail, fix="" if ok else "close other programs: 4 GB should be free"
    )


def disk(settings: Settings) -> Finding:
    """Judge the space where the home lies or will lie."""
    place = next(p for p in (settings.home, *settings.home.parents) if p.exists())
    free = shutil.disk_usage(place).free
    ok = free >= LEAST_DISK
    fix = "" if ok else "free some space, or set FACTORY_HOME to another disk"
    return Finding(name="disk", ok=ok, detail=f"{free / GIGA:.1f} GB free at {place}", fix=fix)


def gpu() -> Finding:
    """Name the NVIDIA GPUs; a machine without one is fine, only slow."""
    tool = shutil.which("nvidia-smi")
    if not tool:
        return Finding(
            name="gpu", ok=True, detail="no NVIDIA GPU; training runs on the CPU, small models only"
        )
    query = [tool, "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
    code, text = _run(query, 20.0)
    fix = "" if code == 0 else "reinstall the NVIDIA driver, then try `nvidia-smi`"
    return Finding(name="gpu", ok=code == 0, detail="; ".join(text.splitlines()), fix=fix)


def kernels() -> Finding:
    """Tell whether model.framework: fused would run its own kernels here; training works without them."""
    has_gpu = shutil.which("nvidia-smi") is not None
    if has_gpu and (build := _cpu_build()):
        detail = f"torch {build} leaves the GPU idle: fused trains with the plain definitions of its kernels"
        fix = f"install a build of torch with CUDA, then {INSTALL_GPU}"
        return Finding(name="kernels", ok=True, detail=detail, fix=fix)
    caveat = find_caveat("fused", has_gpu=has_gpu)
    detail = caveat or "model.framework: fused runs its own kernels here"
    return Finding(name="kernels", ok=True, detail=detail, fix=INSTALL_GPU if caveat and has_gpu else "")


def _cpu_build() -> str | None:
    """Return torch's version if its build can use no GPU, whatever the driver says."""
    try:
        found = metadata.version("torch")
    except metadata.PackageNotFoundError:
        return None
    return found if found.endswith("+cpu") else None


def home(settings: Settings) -> Finding:
    """Write a small database into the home, as both servers do."""
    fix = f"make {settings.home} writable, or set FACTORY_HOME"
    try:
        settings.home.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=settings.home) as folder:
            _try_database(Path(folder) / "probe.db")
    except (OSError, sqlite3.Error) as error:
        return Finding(name="home", ok=False, detail=f"{settings.home}: {error}", fix=fix)
    return Finding(name="home", ok=True, detail=f"{settings.home} (SQLite {sqlite3.sqlite_version})")


def _try_database(path: Path) -> None:
    with closing(sqlite3.connect(path)) as probe:
        probe.execute("pragma journal_mode=wal")
        probe.execute("create table probe (value)")
        probe.commit()


def ports(settings: Settings, *, prefect: int = 4200, mlflow: int = 5000) -> list[Finding]:
    """Tell whether the servers' usual ports are free or already ours."""
    found = running(settings)
    urls = {server.url for _, server in found if server} if found else set()
    return [_port("Prefect", prefect, urls), _port("MLflow", mlflow, urls)]


def _port(name: str, port: int, ours: set[str]) -> Finding:
    if f"http://127.0.0.1:{port}" in ours:
        return Finding(name=f"port {port}", ok=True, detail=f"{name} runs here")
    listener = listen(port)
    if listener:
        listener.close()
        return Finding(name=f"port {port}", ok=True, detail=f"free for {name}")
    detail = f"taken by another program; `factory up` moves {name} to the next free one"
    return Finding(name=f"port {port}", ok=True, detail=detail)


def models(settings: Settings) -> Finding:
    """Count the models in the Hugging Face cache, which runs without a network rely on."""
    cache = settings.huggingface_home / "hub"
    names = sorted(p.name.removeprefix("models--").replace("--", "/") for p in cache.glob("models--*"))
    detail = (
        f"{len(names)} models in {cache}" if names else f"no models in {cache}; local folders work without it"
    )
    place = next(p for p in (cache, *cache.parents) if p.exists())
    ok = os.access(place, os.W_OK)
    fix = "" if ok else f"make {place} writable, or set HF_HOME"
    return Finding(name="model-cache", ok=ok, detail=detail, fix=fix)


LLAMA = "import llama_cpp; llama_cpp.llama_model_quantize; print(llama_cpp.__version__)"


def llama() -> Finding:
    """Load llama.cpp and its quantizer in a child, which may crash without harm."""
    code, text = _run([sys.executable, "-c", LLAMA], 120.0)
    last = text.splitlines()[-1] if text else ""
    fix = (
        "" if code == 0 else "pip install --force-reinstall --no-cache-dir --no-deps llama-cpp-python==0.3.36"
    )
    return Finding(name="llama.cpp", ok=code == 0, detail=last or f"ended with code {code}", fix=fix)


def _run(command: list[str], timeout: float) -> tuple[int, str]:
    try:
        done = subprocess.run(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=timeout, check=False
        )
    except subprocess.TimeoutExpired:
        return 1, f"no answer within {timeout:.0f} seconds"
    return done.returncode, done.stdout.strip()


def scheduling(settings: Settings, *, timeout: float = 60.0) -> Finding:
    """Start a Prefect server on an empty home and wait until it schedules a run."""
    with tempfile.TemporaryDirectory() as folder:
        probe = Settings(home=Path(folder), cache=settings.cache)
        began = time.monotonic()
        try:
            with start_private(probe, services=True) as api:
                api.wait()
                up = time.monotonic() - began
                count = _scheduled(api, timeout)
        except (ResourceError, urllib.error.URLError) as error:
            return Finding(name="prefect-server", ok=False, detail=str(error), fix=_reinstall())
    if not count:
        detail = f"starts, but scheduled nothing within {timeout:.0f} seconds"
        return Finding(name="prefect-server", ok=False, detail=detail, fix=_reinstall())
    return Finding(name="prefect-server", ok=True, detail=f"starts in {up:.1f} s and schedules runs")


def _reinstall() -> str:
    wanted = [
        line for line in _requirements() if Requirement(line).name in {"prefect", "fastapi", "sqlalchemy"}
    ]
    return "pip install " + " ".join(f'"{line}"' for line in wanted)


def _scheduled(api: PrefectApi, timeout: float) -> int:
    """Create a deployment with a schedule; return how many runs the scheduler has made of it."""
    flow = _post(f"{api.url}/flows/", {"name": "doctor"})["id"]
    hourly = {"active": True, "schedule": {"interval": 3600}}
    _post(f"{api.url}/deployments/", {"name": "probe", "flow_id": flow, "schedules": [hourly]})
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        runs = _post(
            f"{api.url}/flow_runs/filter", {"flow_runs": {"state": {"type": {"any_": ["SCHEDULED"]}}}}
        )
        if runs:
            return len(runs)
        time.sleep(0.2)
    return 0


def _post(url: str, body: dict[str, Any], *, attempts: int = 20) -> Any:
    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with direct.open(request, timeout=30) as answer:
            return json.load(answer)
    except urllib.error.HTTPError as error:
        # A server that has just started answers 503 while another writer holds SQLite.
        if error.code != 503 or attempts == 1:
            raise
    time.sleep(0.5)
    return _post(url, body, attempts=attempts - 1)
