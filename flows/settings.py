"""The one place that reads the environment.

``read_settings`` turns it into a model once; ``prefect_environment`` says what Prefect and
MLflow must find in it before either is imported; ``apply`` puts it there.
"""

import os
import sys
from collections.abc import Mapping
from pathlib import Path

from pydantic import SecretStr

from core.config import Frozen
from core.errors import ConfigError

LOGGING = Path(__file__).with_name("logging.yaml")
SOURCE = Path(__file__).resolve().parents[1]

FORCED = frozenset(
    {"PREFECT_HOME", "PREFECT_API_URL", "PREFECT_UI_API_URL", "MLFLOW_TRACKING_URI", "NO_PROXY", "no_proxy"}
)
"""Variables that ``apply`` overwrites: each is already resolved from what the user set, or is ours alone."""


class Settings(Frozen):
    """What the environment says about places, servers and the terminal."""

    home: Path
    """Folder of histories, servers and logs (``FACTORY_HOME``)."""
    cache: Path
    """Folder of what can be rebuilt and serves every home (``FACTORY_CACHE``)."""
    prefect_api_url: str | None = None
    """A Prefect API that already runs somewhere (``PREFECT_API_URL``)."""
    prefect_database_url: str | None = None
    """A database for Prefect servers other than SQLite in the home."""
    mlflow_tracking_uri: str | None = None
    """Where MLflow records, if not in the home (``MLFLOW_TRACKING_URI``)."""
    huggingface_home: Path = Path.home() / ".cache" / "huggingface"
    """Folder of downloaded models (``HF_HOME``)."""
    no_proxy: str = ""
    """Hosts that the user already exempts from a proxy (``NO_PROXY``)."""
    compiler: str = ""
    """C compiler that the user prefers (``CC``)."""
    no_color: bool = False
    """Whether the user asked for plain text (``NO_COLOR``)."""

    @property
    def prefect_home(self) -> Path:
        """Prefect's database, results and client log."""
        return self.home / "prefect"

    @property
    def prefect_database(self) -> Path:
        """The SQLite file that holds the history of flow runs."""
        return self.prefect_home / "prefect.db"

    @property
    def mlflow_uri(self) -> str:
        """Where runs are recorded: the user's tracking server, or SQLite in the home."""
        return self.mlflow_tracking_uri or f"sqlite:///{self.home / 'mlflow.db'}"

    @property
    def artifacts(self) -> Path:
        """Folder under which MLflow experiments keep their artifacts."""
        return self.home / "artifacts"

    @property
    def logs(self) -> Path:
        """Folder of the servers' logs."""
        return self.home / "logs"


def read_settings() -> Settings:
    """Read the environment; empty variables count as unset."""
    environment = {name: value for name, value in os.environ.items() if value}
    caches = Path(environment.get("XDG_CACHE_HOME", Path.home() / ".cache"))
    return Settings(
        home=_absolute(environment.get("FACTORY_HOME", ".factory")),
        cache=_absolute(environment.get("FACTORY_CACHE", caches / "data-factory")),
        prefect_api_url=environment.get("PREFECT_API_URL"),
        prefect_database_url=environment.get(
            "PREFECT_SERVER_DATABASE_CONNECTION_URL", environment.get("PREFECT_API_DATABASE_CONNECTION_URL")
        ),
        mlflow_tracking_uri=environment.get("MLFLOW_TRACKING_URI"),
        huggingface_home=_absolute(environment.get("HF_HOME", caches / "huggingface")),
        no_proxy=environment.get("NO_PROXY", environment.get("no_proxy", "")),
        compiler=environment.get("CC", ""),
        no_color="NO_COLOR" in environment,
    )


def read_secret(variable: str, key: str) -> SecretStr:
    """Read a variable that holds a secret, for a setting that names it.

    Args:
        variable: The variable.
        key: The setting, for the message.

    Raises:
        ConfigError: If it is not set, or blank.
    """
    value = os.environ.get(variable, "").strip()
    if not value:
        raise ConfigError(
            f"the environment variable {variable} is not set",
            where=key,
            fix=f"export {variable}=... before the run, or set {key}: null if the endpoint asks for no key",
        )
    return SecretStr(value)


def _absolute(path: str | Path) -> Path:
    return Path(path).expanduser().absolute()


def prefect_environment(settings: Settings, api_url: str | None) -> dict[str, str]:
    """Return the variables that Prefect and MLflow must find when they are imported.

    They keep every look-up on this machine, the terminal free of log lines (warnings and
    tracebacks go to ``client.log`` in Prefect's home, all lines to the Prefect API), and
    loopback requests away from a proxy.

    Args:
        settings: What ``read_settings`` returned.
        api_url: Prefect API to talk to; ``None`` leaves Prefect to start its own.
    """
    hosts = [host for host in settings.no_proxy.split(",") if host]
    exempt = ",".join([*hosts, *(host for host in ("127.0.0.1", "localhost") if host not in hosts)])
    block = {
        "PREFECT_HOME": str(settings.prefect_home),
        "PREFECT_UI_API_URL": "/api",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "DO_NOT_TRACK": "true",
        "PREFECT_SERVER_UI_V2_ENABLED": "false",
        "PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT": "false",
        "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",
        "PREFECT_LOGGING_SETTINGS_PATH": str(LOGGING),
        "PREFECT_RESULTS_LOCAL_STORAGE_PATH": str(settings.prefect_home / "storage"),
        "PREFECT_RESULTS_PERSIST_BY_DEFAULT": "false",
        "MLFLOW_TRACKING_URI": settings.mlflow_uri,
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "RAY_USAGE_STATS_ENABLED": "0",
        "MLFLOW_LOGGING_LEVEL": "WARNING",
        "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
        # The run's own display replaces the libraries' bars and advice.
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "TRANSFORMERS_VERBOSITY": "error",
        "TOKENIZERS_PARALLELISM": "false",
        # Threads that wait should sleep: spinning ones steal the cores from each other.
        "OMP_WAIT_POLICY": "PASSIVE",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "NO_PROXY": exempt,
        "no_proxy": exempt,
    }
    return block | ({"PREFECT_API_URL": api_url} if api_url else {})


def apply(env: Mapping[str, str]) -> None:
    """Put variables into this process's environment, before Prefect is imported.

    What the user set wins, except for the names in ``FORCED``.

    Raises:
        RuntimeError: If Prefect is already imported and would not see them.
    """
    if "prefect" in sys.modules:
        raise RuntimeError("the environment must be set before prefect is imported")
    os.environ.update(_merged(env))


def _merged(env: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in env.items() if name in FORCED or not os.environ.get(name)}


def server_environment(settings: Settings, extra: Mapping[str, str]) -> dict[str, str]:
    """Return the whole environment of a server process.

    A server keeps Prefect's own log format, because its output goes to a log file, and
    needs no API to talk to. This program's source is importable in it from any folder.

    Args:
        settings: What ``read_settings`` returned.
        extra: Variables that only this server gets; they win over the user's.
    """
    block = prefect_environment(settings, None)
    del block["PREFECT_LOGGING_SETTINGS_PATH"]
    whole = dict(os.environ) | _merged(block | {"PREFECT_SERVER_LOGGING_LEVEL": "WARNING"})
    for name in ("PREFECT_API_URL", "MLFLOW_TRACKING_URI"):
        whole.pop(name, None)
    whole["PYTHONPATH"] = os.pathsep.join(filter(None, [str(SOURCE), os.environ.get("PYTHONPATH")]))
    return whole | dict(extra)


def measuring_environment(scratch: Path) -> dict[str, str]:
    """Return the whole environment of a measuring process: no network, and one allocator for every system.

    Args:
        scratch: Folder for what libraries compile; it goes away afterwards.
    """
    segments = "expandable_segments:True"
    return dict(os.environ) | {
        # The first name is that of PyTorch up to 2.9. Unsloth sets it by itself, so all get it.
        "PYTORCH_CUDA_ALLOC_CONF": segments,
        "PYTORCH_ALLOC_CONF": segments,
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "TRANSFORMERS_VERBOSITY": "error",
        "TOKENIZERS_PARALLELISM": "false",
        "OMP_WAIT_POLICY": "PASSIVE",
        "UNSLOTH_DISABLE_STATISTICS": "1",
        "UNSLOTH_AUTO_INSTALL": "0",
        "UNSLOTH_COMPILE_LOCATION": str(scratch / "unsloth_compiled"),
        "PYTHONPATH": os.pathsep.join(filter(None, [str(SOURCE), os.environ.get("PYTHONPATH")])),
    }
