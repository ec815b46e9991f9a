"""The libraries' bars and advice, kept off the screen while a model is loaded."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def quiet() -> Iterator[None]:
    """Show errors of Transformers and bitsandbytes alone, and no progress bars; as it was before, afterwards.

    Enter it before the first import of PEFT: bitsandbytes says on import which kernels it lacks.
    """
    bits = logging.getLogger("bitsandbytes")
    before = bits.level
    bits.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            from transformers.utils import logging as libraries

            shown, level = libraries.is_progress_bar_enabled(), libraries.get_verbosity()
            libraries.disable_progress_bar()
            libraries.set_verbosity_error()
            try:
                yield
            finally:
                libraries.set_verbosity(level)
                if shown:
                    libraries.enable_progress_bar()
    finally:
        bits.setLevel(before)
