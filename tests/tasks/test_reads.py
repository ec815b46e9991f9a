"""A phase's key covers the source of every module that decides its result, and of the models' room no other.

What a phase can call is not listed by hand: it is followed from import to import, also inside functions,
and into the modules that are started as processes of their own.
"""

import ast
import importlib
import inspect
from pathlib import Path

import grimp
import pytest

from core.artifacts import source_digest
from tasks.events import PHASES

ROOT = Path(__file__).parents[2]
MODULES = {phase: f"tasks.{phase}" for phase in PHASES} | {"format": "tasks.format_records"}
MODELS = ("baseline", "finetune", "evaluate", "quantize", "deploy")
"""Phases that load a model."""
SETTINGS = ("config", "reports", "learning_reports")
"""Settings and reports are inputs: their values are in the key."""
SHARED = {
    "core.artifacts",
    "core.config",
    "core.errors",
    "core.data.sources.places",
    "core.data.workers",
    "core.data.workers.ray_engine",
    "gates.thresholds",
    "gates.verdict",
}
"""They move, name, judge or show results but do not make them."""
AROUND = (
    "tasks.addresses",
    "tasks.context",
    "tasks.data_figures",
    "tasks.data_inputs",
    "tasks.events",
    "tasks.phase",
    "tasks.report",
    "tasks.score_figures",
    "tasks.test_uses",
    "tasks.tracking",
    "tasks.uses",
    "tasks.workspace",
)
"""What runs a phase, and what draws and tracks its numbers once they are there."""
ONLY_SHOWN = {
    ("tasks.scores", "gates.model_performance"),
    ("tasks.split", "tasks.ingest"),
    ("tasks.split", "tasks.format_records"),
}
"""Imports that decide nothing: which arm's file is shown first, and the names in another phase's READS."""


@pytest.fixture(scope="module")
def graph(tmp_path_factory: pytest.TempPathFactory):
    cache = tmp_path_factory.mktemp("grimp")
    graph = grimp.build_graph("core", "tasks", "gates", cache_dir=str(cache))
    for name in [name for name in graph.modules if within(name, AROUND)]:
        graph.remove_module(name)
    for importer, imported in ONLY_SHOWN:
        graph.remove_import(importer=importer, imported=imported)
    for importer, child in started(graph.modules):
        graph.add_import(importer=importer, imported=child)
    return graph


def started(modules: set[str]) -> list[tuple[str, str]]:
    """Find the modules that others start by name, as in ``python -m core.deployment.llama.worker``."""
    found = []
    for name in sorted(modules):
        for node in ast.walk(ast.parse(file_of(name).read_text(encoding="utf-8"))):
            if isinstance(node, ast.List | ast.Call):
                words = node.elts if isinstance(node, ast.List) else node.args
                texts = {word.value for word in words if isinstance(word, ast.Constant)}
                found += [(name, text) for text in texts & modules if text != name]
    return found


def file_of(name: str) -> Path:
    place = ROOT.joinpath(*name.split("."))
    return (
        place / "__init__.py"
        if place.is_dir() and (place / "__init__.py").is_file()
        else place.with_suffix(".py")
    )


def within(name: str, names: tuple[str, ...]) -> bool:
    return any(name == each or name.startswith(f"{each}.") for each in names)


def called(graph, module: str) -> set[str]:
    """Modules that a module's result depends on, directly or through others."""
    upstream = graph.find_upstream_modules(module)
    return {n for n in upstream if n.rsplit(".", 1)[1] not in SETTINGS and n not in SHARED and has_code(n)}


def has_code(name: str) -> bool:
    """Tell a module from a package that only holds parts."""
    tree = ast.parse(file_of(name).read_text(encoding="utf-8"))
    return not all(isinstance(node, ast.Expr) for node in tree.body)


def reads_of(module: str) -> tuple[str, ...]:
    """What the phase's decorator was given, found in the closure of its call."""
    for value in vars(importlib.import_module(module)).values():
        if inspect.isfunction(value) and value.__closure__ and value.__module__ == "tasks.phase":
            cells = inspect.getclosurevars(value).nonlocals
            carried = inspect.getclosurevars(cells["carried"].fn).nonlocals
            return carried["sources"]
    raise LookupError(module)


@pytest.mark.parametrize("phase", PHASES)
def test_reads_cover_what_the_phase_calls(graph, phase: str):
    module = MODULES[phase]
    missing = {name for name in called(graph, module) if not within(name, reads_of(module))}
    assert not missing


def test_the_look_whether_it_will_learn_covers_what_it_calls(graph):
    from tasks.learnable import READS

    assert not {name for name in called(graph, "tasks.learnable") if not within(name, READS)}


@pytest.mark.parametrize("phase", MODELS)
def test_a_key_holds_no_part_of_the_models_that_the_phase_cannot_reach(graph, phase: str):
    module = MODULES[phase]
    models = {name for name in graph.modules if name.startswith("core.models.")}
    held = {name for name in models if within(name, reads_of(module)) and has_code(name)}
    assert held - graph.find_upstream_modules(module) == set()


@pytest.mark.parametrize("phase", MODELS)
def test_estimates_and_advice_are_in_no_key_of_a_phase_that_loads_a_model(phase: str):
    reads = reads_of(MODULES[phase])
    estimates = sorted((ROOT / "core/models/resources").rglob("*.py"))
    assert len(estimates) > 3
    for file in estimates:
        name = ".".join(file.relative_to(ROOT).with_suffix("").parts)
        assert not within(name, reads) and not within("core.models.resources", reads)


@pytest.mark.parametrize("phase", MODELS)
def test_an_edit_of_the_estimates_leaves_the_key_and_one_of_loading_changes_it(phase: str, tmp_path: Path):
    reads = reads_of(MODULES[phase])
    copy_sources(tmp_path)
    before = source_digest(reads, tmp_path)
    edit(tmp_path / "core/models/resources/advice.py")
    edit(tmp_path / "core/models/resources/training.py")
    assert source_digest(reads, tmp_path) == before
    edit(tmp_path / "core/models/loading.py")
    assert source_digest(reads, tmp_path) != before


def test_an_edit_of_a_chat_template_changes_the_keys_of_all_that_speak_it(tmp_path: Path):
    copy_sources(tmp_path)
    before = {phase: source_digest(reads_of(MODULES[phase]), tmp_path) for phase in MODELS}
    template = tmp_path / "core/data/templates/qwen3.jinja"
    template.write_text(template.read_text() + "{# another #}")
    assert all(source_digest(reads_of(MODULES[phase]), tmp_path) != before[phase] for phase in MODELS)


def test_modules_started_as_processes_are_followed(graph):
    upstream = graph.find_upstream_modules("tasks.quantize")
    assert {
        "core.deployment.llama.worker",
        "core.deployment.onnx.worker",
        "core.quantization.gguf",
    } <= upstream


def test_training_does_not_depend_on_how_answers_are_graded():
    rounding = {f"core.quantization.{name}" for name in ("aware", "aware_limits", "grids")}
    assert not any(
        read.startswith(("core.evaluation", "core.quantization"))
        for read in reads_of("tasks.finetune")
        if read not in rounding
    )


def copy_sources(target: Path) -> None:
    for file in ROOT.joinpath("core").rglob("*"):
        if file.suffix in {".py", ".jinja"}:
            place = target / file.relative_to(ROOT)
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(file.read_bytes())


def edit(file: Path) -> None:
    file.write_text(file.read_text(encoding="utf-8") + "\nEDITED = True\n", encoding="utf-8")
