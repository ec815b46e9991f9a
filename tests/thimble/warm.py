"""Run commands of the factory, each in a process of its own that finds the large libraries imported.

python tests/thimble/warm.py

One request a line, answered by a line with the exit code. Libraries are imported once and each command
runs in a fork; nothing of this project and nothing of Prefect is imported before, so a command sets its
environment and imports all that is ours as always. What a fork does not show (another seed of hashes,
an import that only works because of one before) is left to the runs that start cold.
"""

import atexit
import gc
import importlib
import json
import os
import runpy
import sys
import threading
import traceback
from typing import NoReturn

import sqlalchemy.orm

LIBRARIES = (
    "torch",
    "transformers.models.llama.modeling_llama",
    "transformers.trainer_utils",
    "peft.tuners.lora.bnb",
    "scipy.stats",
    "scipy.sparse.csgraph",
    "pyarrow.dataset",
    "pyarrow.parquet",
    "mlflow.store.model_registry.sqlalchemy_store",
    "mlflow.store.tracking.sqlalchemy_store",
    "sqlalchemy.dialects.sqlite",
    "jsonschema",
    "typer",
    "rich.live",
    "rich.progress",
    "rich.syntax",
    "gguf",
    # What Prefect imports.
    "anyio._backends._asyncio",
    "asgi_lifespan",
    "coolname",
    "cryptography.fernet",
    "cryptography.x509",
    "graphviz",
    "griffe",
    "httpx",
    "humanize",
    "pathspec",
    "pendulum",
    "prometheus_client",
    "pydantic_settings",
    "slugify",
    "websockets.asyncio.client",
)


def serve() -> dict | None:
    """Fork for every request; return it in the child, and ``None`` in the parent when there are no more."""
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            return json.loads(line)
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)
    return None


def become(request: dict) -> None:
    """Take over the streams, the environment and the arguments, and run the module or the script."""
    for name, number, flags in (
        (os.devnull, 0, os.O_RDONLY),
        (request["out"], 1, os.O_WRONLY | os.O_CREAT),
        (request["err"], 2, os.O_WRONLY | os.O_CREAT),
    ):
        opened = os.open(name, flags)
        os.dup2(opened, number)
        os.close(opened)
    sys.stdin = open(0, closefd=False)  # noqa: SIM115
    os.environ.clear()
    os.environ.update(request["environment"])
    kind, *arguments = request["command"]
    if kind == "-m":
        sys.path[0] = ""
        sys.argv = arguments
        runpy.run_module(arguments[0], run_name="__main__", alter_sys=True)
    else:
        sys.argv = [kind, *arguments]
        runpy.run_path(kind, run_name="__main__")


def leave(request: dict) -> NoReturn:
    """Do what was asked and end as Python does, but for taking every library to pieces, which takes half a second."""
    code: object = 0
    try:
        become(request)
    except SystemExit as end:
        code = end.code
    except BaseException:  # noqa: BLE001 - as the interpreter does
        code = 1
        traceback.print_exc()
    if not isinstance(code, int | None):
        print(code, file=sys.stderr)
        code = 1
    threading._shutdown()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code or 0)


# Worker processes of a command import this file too.
if __name__ == "__main__":
    for library in LIBRARIES:
        importlib.import_module(library)
    sqlalchemy.orm.configure_mappers()
    # What is here stays: a command need not look through it again and again, nor copy its pages.
    gc.freeze()
    asked = serve()
    if asked is not None:
        leave(asked)
