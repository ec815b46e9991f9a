"""What the examination finds on this machine, and on machines that lack something."""

import socket
import sqlite3
import sys

import pytest
from packaging.requirements import Requirement

from flows import doctor
from flows.server_process import listen
from flows.settings import Settings


@pytest.fixture
def settings(tmp_path):
    return Settings(home=tmp_path / "home", cache=tmp_path / "cache", huggingface_home=tmp_path / "hf")


def test_the_fast_examination_names_every_subject_once(settings):
    names = [finding.name for finding in doctor.examine(settings, fast=True)]
    assert len(names) == len(set(names))
    expected = {"python", "prefect", "mlflow", "fastapi", "sqlalchemy", "torch", "c-compiler", "memory"}
    expected |= {"disk", "gpu", "kernels", "home", "port 4200", "port 5000", "model-cache"}
    assert expected <= set(names)
    assert not {"llama.cpp", "prefect-server"} & set(names)


def test_whatever_fails_comes_with_a_fix(settings):
    assert all(finding.fix for finding in doctor.examine(settings, fast=True) if not finding.ok)


def test_an_old_interpreter_is_refused():
    assert not doctor.python((3, 10, 9)).ok
    assert doctor.python((3, 11, 0)).ok


@pytest.mark.parametrize("text", ["pydantic<2", "no-such-package-anywhere>=1"])
def test_a_package_outside_its_range_is_found_with_the_pip_line(text):
    finding = doctor.installed(Requirement(text))
    assert not finding.ok and finding.fix == f'pip install "{Requirement(text)}"'


def test_a_build_tag_is_within_a_pin():
    assert Requirement("torch==2.13.0").specifier.contains("2.13.0+cpu", prereleases=True)
    assert doctor.installed(Requirement("pydantic>=2")).ok


def test_a_missing_compiler_is_found(settings):
    finding = doctor.compiler(settings.model_copy(update={"compiler": "no-such-compiler -O2"}))
    assert not finding.ok and "gcc" in finding.fix


@pytest.mark.parametrize(
    ("tool", "triton", "words", "fix"),
    [
        (None, object(), "no NVIDIA GPU here: fused trains with the plain definitions", ""),
        ("/bin/nvidia-smi", None, "Triton is not installed", doctor.INSTALL_GPU),
        ("/bin/nvidia-smi", object(), "fused runs its own kernels here", ""),
    ],
)
def test_the_fused_kernels_need_a_gpu_and_triton_and_training_does_not(monkeypatch, tool, triton, words, fix):
    monkeypatch.setattr("shutil.which", lambda name: tool)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: triton)
    monkeypatch.setattr("importlib.metadata.version", lambda name: "2.13.0")
    found = doctor.kernels()
    assert found.ok
    assert words in found.detail
    assert found.fix == fix


def test_a_driver_is_no_gpu_for_a_build_of_torch_without_cuda(monkeypatch):
    monkeypatch.setattr("shutil.which", lambda name: "/bin/nvidia-smi")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    monkeypatch.setattr("importlib.metadata.version", lambda name: "2.13.0+cpu")
    found = doctor.kernels()
    assert found.ok and "torch 2.13.0+cpu leaves the GPU idle" in found.detail
    assert "CUDA" in found.fix and "pip install 'data-factory[gpu]'" in found.fix


def test_a_home_that_cannot_be_made_is_found(settings, tmp_path):
    (tmp_path / "file").write_text("")
    finding = doctor.home(settings.model_copy(update={"home": tmp_path / "file" / "home"}))
    assert not finding.ok and "FACTORY_HOME" in finding.fix


def test_a_good_home_is_left_clean(settings):
    assert doctor.home(settings).ok
    assert list(settings.home.iterdir()) == []
    assert sqlite3.sqlite_version in doctor.home(settings).detail


def test_a_taken_port_is_told_from_a_free_one(settings):
    with listen(0) as busy, socket.socket() as kept:
        # Nobody listens there, nor is it given to another test meanwhile.
        kept.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        kept.bind(("127.0.0.1", 0))
        taken, free = busy.getsockname()[1], kept.getsockname()[1]
        findings = doctor.ports(settings, prefect=taken, mlflow=free)
    assert "taken" in findings[0].detail and "free" in findings[1].detail


def test_cached_models_are_counted(settings):
    (settings.huggingface_home / "hub" / "models--org--tiny").mkdir(parents=True)
    assert doctor.models(settings).detail.startswith("1 models")


def test_the_quantizer_loads_in_a_child(monkeypatch):
    # Another test may have loaded it into this process.
    monkeypatch.delitem(sys.modules, "llama_cpp", raising=False)
    finding = doctor.llama()
    assert finding.ok, finding.detail
    assert "llama_cpp" not in sys.modules


def test_a_scheduled_run_appears(settings, cache):
    finding = doctor.scheduling(settings.model_copy(update={"cache": cache}))
    assert finding.ok, finding.detail


def test_a_server_that_schedules_nothing_is_found(settings, cache, monkeypatch):
    monkeypatch.setenv("PREFECT_SERVER_SERVICES_SCHEDULER_ENABLED", "false")
    finding = doctor.scheduling(settings.model_copy(update={"cache": cache}), timeout=2.0)
    assert not finding.ok and "scheduled nothing" in finding.detail
    assert '"sqlalchemy<2.1,>=2.0"' in finding.fix or '"sqlalchemy>=2.0,<2.1"' in finding.fix
