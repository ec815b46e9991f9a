"""How a user's grader is loaded, so that it can import the modules beside it, then and whenever it is called.

Neither ``sys.path`` nor ``builtins`` is touched, and no module of the program is hidden: what lies beside a grader
is imported by that grader's code alone, under a name that begins with a package of its own. So two graders may have
helpers of one name, a helper may be called like a library, and an import inside a function works in any thread.
"""

import builtins
import importlib
import sys
import uuid
from collections.abc import Mapping, Sequence
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

BESIDE = "__beside__"
"""Attribute of a grader's package that holds its ``_Beside``."""


def load_grader(file: Path) -> ModuleType:
    """Run a Python file that may import what lies beside it, by ``import`` statements at any time.

    As for a script, a module in its folder is preferred to one that is installed. Every call runs the file and its
    helpers anew. ``importlib.import_module`` and ``sys.path`` know nothing of the folder.

    Args:
        file: The Python file.

    Raises:
        BaseException: Whatever the file raises.
    """
    beside = _Beside(file.parent)
    # A helper may have been written since the folder was last looked into.
    importlib.invalidate_caches()
    if _Finder not in sys.meta_path:
        sys.meta_path.insert(0, _Finder)
    try:
        return beside.run(file)
    except BaseException:
        beside.forget()
        raise


class _Beside:
    """The modules of one folder, as a package of one grader."""

    def __init__(self, folder: Path) -> None:
        self.name = f"grader_{uuid.uuid4().hex}"
        self.folder = str(folder.absolute())
        self.scope = {**vars(builtins), "__import__": self.imported}
        package = sys.modules[self.name] = ModuleType(self.name)
        package.__path__ = [self.folder]
        # All other names in it are those of modules.
        vars(package)[BESIDE] = self

    def run(self, file: Path) -> ModuleType:
        """Run the grader's own file."""
        name = f"{self.name}.{file.stem.replace('.', '_')}"
        loader = _Loader(name, str(file.absolute()), self.scope)
        spec = spec_from_file_location(name, file.absolute(), loader=loader)
        assert spec is not None
        module = sys.modules[name] = module_from_spec(spec)
        loader.exec_module(module)
        return module

    def forget(self) -> None:
        """Leave nothing in the process."""
        for name in [name for name in sys.modules if name.partition(".")[0] == self.name]:
            del sys.modules[name]

    def imported(
        self,
        name: str,
        scope: Mapping[str, Any] | None = None,
        local: Mapping[str, Any] | None = None,
        fromlist: Sequence[str] | None = (),
        level: int = 0,
    ) -> ModuleType:
        """Do what ``builtins.__import__`` does, looking into the folder first."""
        top = name.partition(".")[0]
        if level or not self._holds(top):
            return builtins.__import__(name, scope, local, fromlist or (), level)
        found = builtins.__import__(f"{self.name}.{name}", scope, local, fromlist or ())
        # ``import a.b`` binds a, which is one level down here.
        return found if fromlist else sys.modules[f"{self.name}.{top}"]

    def _holds(self, top: str) -> bool:
        here = PathFinder.find_spec(top, [self.folder])
        if here is None:
            return False
        known = sys.modules.get(top)
        if here.origin is None:
            # A plain folder is a package only where no module has its name, as always in Python.
            other = getattr(known, "__spec__", None) if known else find_spec(top)
            return other is None or other.origin is None
        # What the program itself runs from that very file is no helper: its classes must stay the same.
        return getattr(known, "__file__", None) != here.origin


class _Loader(SourceFileLoader):
    """Runs a module whose import statements look into the grader's folder."""

    def __init__(self, name: str, path: str, scope: Mapping[str, Any]) -> None:
        super().__init__(name, path)
        self._scope = scope

    def exec_module(self, module: ModuleType) -> None:
        # Code takes its builtins, the import statement among them, from its globals (see exec).
        vars(module)["__builtins__"] = self._scope
        super().exec_module(module)


class _Finder:
    """Gives modules of graders their loader; of others it knows nothing, so that it can stay in ``sys.meta_path``."""

    @staticmethod
    def find_spec(
        name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        package = sys.modules.get(name.partition(".")[0])
        # Not by getattr: a module's own __getattr__ may import what it is asked for, as Prefect's does, and so ask again.
        beside = getattr(package, "__dict__", {}).get(BESIDE)
        if not isinstance(beside, _Beside):
            return None
        spec = PathFinder.find_spec(name, path, target)
        if spec and isinstance(spec.loader, SourceFileLoader):
            spec.loader = _Loader(name, spec.loader.path, beside.scope)
        return spec
