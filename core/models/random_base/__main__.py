"""``python -m core.models.random_base NAME FOLDER [--tiny]``: make one in a process of its own, whole or not at all."""

import argparse
from pathlib import Path

from core.artifacts import atomic_path
from core.models.random_base.shapes import SHAPES


def main() -> None:
    """Make the model that the command line names."""
    parser = argparse.ArgumentParser(prog="python -m core.models.random_base", description=__doc__)
    parser.add_argument("name", choices=sorted(SHAPES))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--tiny", action="store_true")
    options = parser.parse_args()
    from core.models.random_base.making import make_model

    with atomic_path(options.folder) as part:
        make_model(options.name, part, tiny=options.tiny)


if __name__ == "__main__":
    main()
