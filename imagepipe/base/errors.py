"""Errors that a user can fix. The command line prints their message, without a traceback, and exits with 1 or 2.

Each message says what is wrong, where (file, key, row) and what to do.
"""

import errno

FULL_DISK = (errno.ENOSPC, errno.EDQUOT)
"""Error numbers of a full disk and of a used-up quota."""


class ConfigError(ValueError):
    """The configuration can't be used, or doesn't fit what it names."""


class IngestError(ValueError):
    """A source can't be ingested, or a dataset is missing, damaged or in use."""


class NothingIngestedError(IngestError):
    """A source was read, and none of it can be used; what was quarantined is listed."""


class DataError(ValueError):
    """A model can't be trained on the data as it stands."""


class WeightsError(ValueError):
    """The pretrained weights that the configuration names can't be loaded, or don't fit the backbone."""


class TrainingError(RuntimeError):
    """Training can't go on. Nothing was exported."""


class ModelError(ValueError):
    """There is no model, or it doesn't fit the request."""


class UnavailableError(ModelError):
    """The request is right, but can't be served now."""


class DeployError(UnavailableError):
    """A deploy target refused or failed; the message says which version is live now."""


USER_ERRORS = (ConfigError, IngestError, DataError, WeightsError, TrainingError, ModelError)
"""All of the above."""


def put_on_one_line(error: BaseException) -> str:
    """Returns an error's message on one line: some libraries write several, with blank ones between."""
    return " ".join(str(error).split())


def describe_error(error: BaseException) -> str:
    """Returns an error as one message: of those above and of the operating system's only the text, else also its type.

    An OSError may be a full disk, an unknown file system, a folder that can't be written.
    """
    if isinstance(error, USER_ERRORS):
        return str(error)
    if isinstance(error, OSError):
        path = f"{error.filename}: " if error.filename else ""
        remedy = ". Make room, then run it again" if error.errno in FULL_DISK else ""
        return f"{path}{error.strerror or error}{remedy}"
    if isinstance(error, KeyboardInterrupt):
        return str(error) or "interrupted by Ctrl-C or a signal"
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
