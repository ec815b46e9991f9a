"""Collect the wheels a GPU machine without a network lacks, cut down to what training needs.

    python -m tests.bench.h200.wheels TARGET [--python 3.12]

TARGET then holds one wheel each of our dependencies that a plain PyTorch machine does not have. Install them
there with ``pip install --no-index --no-deps --target SITE TARGET/*.whl``.
"""

import argparse
import subprocess
import sys
import tempfile
import zipfile
from importlib.metadata import version
from pathlib import Path

OURS = """
prefect mlflow pydantic pydantic-core annotated-types typing-inspection typing-extensions pydantic-settings
pydantic-extra-types fastapi starlette uvicorn sqlalchemy greenlet alembic mako aiosqlite orjson rapidfuzz rensa
py3langid jsonschema jsonschema-specifications referencing rpds-py apprise asgi-lifespan cachetools cloudpickle
coolname cronsim dateparser docker exceptiongroup griffe griffelib griffecli graphviz
httpcore2 httpx2 h2 hpack hyperframe humanize jinja2-humanize-extension jsonpatch jsonpointer opentelemetry-api
opentelemetry-sdk opentelemetry-semantic-conventions opentelemetry-proto pathspec pendulum prometheus-client
py-key-value-aio beartype pydocket python-slugify text-unidecode pytz tzlocal tzdata readchar rfc3339-validator
ruamel.yaml semver sniffio toml typer uncalled-for websockets burner-redis redis sqlparse google-auth
importlib-metadata gitpython gitdb smmap flask flask-cors graphene graphql-core graphql-relay blinker itsdangerous
python-json-logger cyclopts docstring-parser rich-rst amplitude-analytics python-dotenv pyasn1 pyasn1-modules anyio
dill multiprocess asyncpg databricks-sdk cryptography cffi pycparser truststore skops prettytable huey
"""

ENGINES = {
    "unsloth": "2026.10.9",
    "unsloth-zoo": "2026.10.9",
    "trl": "1.15.0",
    "datasets": "4.8.5",
    "bitsandbytes": "0.50.2",
    "peft": "0.21.2",
    "liger-kernel": "0.8.5",
}
"""Versions the peers were measured with; datasets below 5 is Unsloth's bound."""

UNUSED = {
    "unsloth": ("studio/", "unsloth_cli/"),
    "mlflow": ("mlflow/server/js/",),
    "prefect": ("prefect/server/ui/", "prefect/server/ui-v2/"),
    "bitsandbytes": ("bitsandbytes/libbitsandbytes_",),
    # Compiled twins of modules that are there in Python as well.
    "sqlalchemy": ("sqlalchemy/cyextension/",),
}
STRIPPED = ("asyncpg", "greenlet", "rapidfuzz", "burner_redis", "cryptography", "rensa", "orjson", "rpds_py",
            "pydantic_core", "pendulum", "cffi")  # fmt: skip
"""Wheels whose libraries carry symbols that only a debugger reads."""
KEPT = ("libbitsandbytes_cuda130.so", "libbitsandbytes_cpu.so", "cyextension/__init__.py")
PLATFORMS = ("manylinux_2_34", "manylinux_2_31", "manylinux_2_28", "manylinux_2_27", "manylinux_2_24",
             "manylinux_2_17", "manylinux2014", "manylinux1")  # fmt: skip


def download(target: Path, python: str) -> None:
    """Fetch one wheel of every package, for another interpreter than this one."""
    wanted = [f"{name}=={version(name)}" for name in OURS.split() if name not in ENGINES]
    wanted += [f"{name}=={fixed}" for name, fixed in ENGINES.items()]
    platforms = [part for name in PLATFORMS for part in ("--platform", f"{name}_x86_64")]
    subprocess.run(
        [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary=:all:", "--implementation",
         "cp", "--python-version", python, *platforms, "-d", str(target), *wanted],
        check=True,
    )  # fmt: skip


def slim(wheel: Path) -> None:
    """Take out what training never opens, and its lines in RECORD; the file keeps its name."""
    name = wheel.name.split("-")[0]
    prefixes = UNUSED.get(name, ())
    if not prefixes and name not in STRIPPED:
        return
    part = wheel.with_suffix(".part")
    with (
        zipfile.ZipFile(wheel) as old,
        zipfile.ZipFile(part, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as new,
    ):
        dropped = {n for n in old.namelist() if prefixes and n.startswith(prefixes) and not n.endswith(KEPT)}
        for each in old.namelist():
            if each in dropped:
                continue
            content = old.read(each)
            if each.endswith(".dist-info/RECORD"):
                lines = content.decode().splitlines(keepends=True)
                content = "".join(x for x in lines if x.split(",")[0] not in dropped).encode()
            if name in STRIPPED and ".so" in each:
                content = stripped(content)
            new.writestr(each, content)
    part.replace(wheel)


def stripped(library: bytes) -> bytes:
    """Return a shared library without its debug symbols."""
    with tempfile.NamedTemporaryFile(suffix=".so") as file:
        file.write(library)
        file.flush()
        subprocess.run(["strip", "--strip-unneeded", file.name], check=True)
        return Path(file.name).read_bytes()


def main() -> None:
    """Fill the folder and print its size."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("target", type=Path)
    parser.add_argument("--python", default="3.12")
    options = parser.parse_args()
    options.target.mkdir(parents=True, exist_ok=True)
    download(options.target, options.python)
    for wheel in sorted(options.target.glob("*.whl")):
        slim(wheel)
    total = sum(wheel.stat().st_size for wheel in options.target.glob("*.whl"))
    print(f"{len(list(options.target.glob('*.whl')))} wheels, {total / 2**20:.1f} MiB")


if __name__ == "__main__":
    main()
