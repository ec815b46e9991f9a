"""``python -m core.training.benchmark CASE.json RESULT.json [--reference]``: one case in a process of its own.

The engine is imported before anything that imports Transformers: one of them edits what it finds.
"""

import argparse
from pathlib import Path

from core.artifacts import write_json
from core.errors import UserError
from core.models.frameworks import prepare_framework
from core.training.benchmark.case import Case
from core.training.benchmark.reports import Measured


def main() -> None:
    """Do what the command line says; whatever goes wrong is in the result file too."""
    parser = argparse.ArgumentParser(prog="python -m core.training.benchmark", description=__doc__)
    parser.add_argument("case", type=Path)
    parser.add_argument("result", type=Path)
    parser.add_argument("--reference", action="store_true", help="make the reference instead")
    options = parser.parse_args()
    case = Case.model_validate_json(options.case.read_text(encoding="utf-8"))
    try:
        measured = reference(case) if options.reference else measure(case)
    except UserError as error:
        measured = Measured(system=case.system, error=str(error))
    except BaseException as error:
        what = f"{type(error).__name__}: {error}"[:2000]
        write_json(options.result, Measured(system=case.system, error=what).model_dump(mode="json"))
        raise
    write_json(options.result, measured.model_dump(mode="json"))


def reference(case: Case) -> Measured:
    """Write the reference's file."""
    from core.training.benchmark.reference import make_reference

    assert case.reference is not None
    return Measured(system="reference", first_loss=make_reference(case, Path(case.reference)))


def measure(case: Case) -> Measured:
    """Compare a system with the reference and time it."""
    prepare_framework(case.model_block())
    from core.training.benchmark.one import measure_one

    return measure_one(case)


if __name__ == "__main__":
    main()
