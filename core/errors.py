"""Every error the program raises on purpose.

    FactoryError
    |- UserError            exit code 2: wrong usage, settings or data; never a traceback
    |  |- ConfigError       a key, a value, a combination of settings
    |  |- DataError         a file, a line, a row, a split
    |  |- ModelError        an unknown, unsafe or unusable base model
    |  `- ResourceError     not enough memory, disk, or a missing tool
    |- ArtifactChanged      bytes on disk no longer match their digest
    |- TrainingFailed       the loss stopped being a number, an engine died
    `- EngineFailed         an engine in a child process crashed

A closed gate is not an error of the program; see ``gates.verdict.GateClosed``.
"""

import errno

DISK_FULL = (errno.ENOSPC, errno.EDQUOT)
"""Numbers of an ``OSError`` that says there is no room for what was to be written."""


class FactoryError(Exception):
    """Base of every deliberate error."""


class UserError(FactoryError):
    """Something the user can fix.

    Args:
        what: What is wrong, in one sentence.
        where: File, line, key or row it concerns.
        fix: What to do about it.
    """

    def __init__(self, what: str, *, where: str = "", fix: str = "") -> None:
        """Join the three parts into the one message the user sees."""
        self.what, self.where, self.fix = what, where, fix
        parts = [f"{where}: {what}" if where else what]
        if fix:
            parts.append(f"Fix: {fix}")
        super().__init__("\n  ".join(parts))


class ConfigError(UserError):
    """A setting is unknown, of the wrong type, or contradicts another."""


class DataError(UserError):
    """The data cannot be read, understood, or judged."""


class ModelError(UserError):
    """The base model does not exist or cannot be used safely."""


class ResourceError(UserError):
    """This machine lacks what the run needs."""


class ArtifactChanged(FactoryError):
    """An artifact's bytes no longer match the digest recorded when it was made."""


class TrainingFailed(FactoryError):
    """Training stopped for a reason of its own: a non-finite loss, a lost checkpoint."""


class EngineFailed(FactoryError):
    """An engine that runs in a child process ended unexpectedly."""
