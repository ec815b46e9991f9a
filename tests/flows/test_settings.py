"""The environment is read in one place, and what the user set wins."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from flows.settings import LOGGING, SOURCE, apply, prefect_environment, read_settings, server_environment

READ = ["FACTORY_HOME", "FACTORY_CACHE", "PREFECT_API_URL", "MLFLOW_TRACKING_URI", "HF_HOME", "NO_PROXY"]
READ += ["NO_COLOR", "XDG_CACHE_HOME", "no_proxy", "CC", "PREFECT_API_DATABASE_CONNECTION_URL", "PYTHONPATH"]
READ += ["PREFECT_SERVER_DATABASE_CONNECTION_URL", "PREFECT_SERVER_LOGGING_LEVEL"]


@pytest.fixture(autouse=True)
def empty_environment(monkeypatch, tmp_path):
    for name in [*READ, *prefect_environment(read_settings(), "http://x/api")]:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "prefect", raising=False)


def test_everything_lies_under_the_current_folder_by_default(tmp_path):
    settings = read_settings()
    assert settings.home == tmp_path / ".factory"
    assert settings.prefect_home == tmp_path / ".factory" / "prefect"
    assert settings.mlflow_uri == f"sqlite:////{str(tmp_path)[1:]}/.factory/mlflow.db"
    assert settings.artifacts == tmp_path / ".factory" / "artifacts"
    assert settings.prefect_api_url is None and not settings.no_color


def test_the_environment_wins_over_defaults(monkeypatch):
    monkeypatch.setenv("FACTORY_HOME", "/srv/home")
    monkeypatch.setenv("PREFECT_API_URL", "http://there:4200/api")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://there:5000")
    monkeypatch.setenv("NO_COLOR", "1")
    settings = read_settings()
    assert settings.home == Path("/srv/home")
    assert settings.prefect_api_url == "http://there:4200/api"
    assert settings.mlflow_uri == "http://there:5000"
    assert settings.no_color


def test_an_empty_variable_counts_as_unset(monkeypatch, tmp_path):
    monkeypatch.setenv("FACTORY_HOME", "")
    monkeypatch.setenv("PREFECT_API_URL", "")
    assert read_settings().home == tmp_path / ".factory"
    assert read_settings().prefect_api_url is None


def test_the_block_keeps_everything_on_this_machine():
    env = prefect_environment(read_settings(), "http://127.0.0.1:1/api")
    assert env["PREFECT_API_URL"] == "http://127.0.0.1:1/api"
    assert env["DO_NOT_TRACK"] == "true", "MLflow accepts only this word"
    assert env["MLFLOW_DISABLE_TELEMETRY"] == "true"
    assert env["PREFECT_SERVER_ANALYTICS_ENABLED"] == "false"
    assert env["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] == "false"
    assert LOGGING.is_file() and env["PREFECT_LOGGING_SETTINGS_PATH"] == str(LOGGING)
    assert "PREFECT_API_URL" not in prefect_environment(read_settings(), None)


def test_loopback_bypasses_a_proxy_and_the_users_exemptions_stay(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "intranet,localhost")
    assert prefect_environment(read_settings(), None)["NO_PROXY"] == "intranet,localhost,127.0.0.1"


def test_what_the_user_set_wins_except_for_resolved_names(monkeypatch):
    monkeypatch.setenv("PREFECT_SERVER_UI_V2_ENABLED", "true")
    monkeypatch.setenv("PREFECT_HOME", "/elsewhere")
    settings = read_settings()
    apply(prefect_environment(settings, None))
    assert os.environ["PREFECT_SERVER_UI_V2_ENABLED"] == "true"
    assert os.environ["PREFECT_HOME"] == str(settings.prefect_home)
    assert os.environ["DO_NOT_TRACK"] == "true"


def test_it_is_too_late_once_prefect_is_imported(monkeypatch):
    monkeypatch.setitem(sys.modules, "prefect", sys)
    with pytest.raises(RuntimeError, match="before prefect"):
        apply({"PREFECT_HOME": "/x"})


def test_a_server_talks_to_nobody_and_finds_our_source(monkeypatch):
    monkeypatch.setenv("PREFECT_API_URL", "http://there:4200/api")
    monkeypatch.setenv("PYTHONPATH", "/mine")
    monkeypatch.setenv("PREFECT_SERVER_LOGGING_LEVEL", "INFO")
    env = server_environment(read_settings(), {"DO_NOT_TRACK": "extra wins"})
    assert "PREFECT_API_URL" not in env and "PREFECT_LOGGING_SETTINGS_PATH" not in env
    assert env["PYTHONPATH"] == f"{SOURCE}{os.pathsep}/mine"
    assert env["PREFECT_SERVER_LOGGING_LEVEL"] == "INFO"
    assert env["DO_NOT_TRACK"] == "extra wins"
    assert env["PREFECT_HOME"] == str(read_settings().prefect_home)


@pytest.mark.parametrize("module", ["flows.settings", "flows.servers", "flows.doctor"])
def test_importing_loads_neither_prefect_nor_mlflow_nor_torch(module):
    code = f"import sys, {module}; print([m for m in ('prefect', 'mlflow', 'torch') if m in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=SOURCE, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"
