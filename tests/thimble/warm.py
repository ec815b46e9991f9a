"""Run commands of the factory, each in a process of its own that finds the large libraries imported.

python tests/thimble/warm.py

One request a line, answered by a line with the exit code. Libraries are imported once and each command
runs in a fork; nothing of this project and nothing of Prefect is imported before, so a command sets its
environment and imports all that is ours as always. What a fork does not show (another seed of hashes,
an import that only works because of one before) is left to the runs that start cold.
"""

import gc
import importlib
import json
import os
import runpy
import sys

LIBRARIES = (
    "torch",
    "transformers.models.llama.modeling_llama",
    "transformers.trainer_utils",
    "peft",
    "scipy.stats",
    "scipy.sparse.csgraph",
    "pyarrow.parquet",
    "mlflow",
    "jsonschema",
    "websockets",
    "cryptography.x509",
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


# Worker processes of a command import this file too.
if __name__ == "__main__":
    for library in LIBRARIES:
        importlib.import_module(library)
    # What is here stays: a command need not look through it again and again, nor copy its pages.
    gc.freeze()
    asked = serve()
    if asked is not None:
        become(asked)
