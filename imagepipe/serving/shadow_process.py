"""The process that answers in the shadow of a live version: another version, one request at a time, when a CPU is idle.

It gets requests through a pipe from the server's process, and its answers go back through it. It ends with the server.
"""

import logging
import os
import signal
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from imagepipe.base.errors import ModelError
from imagepipe.base.process import be_killed_first, end_with_parent
from imagepipe.deploy.versions import SHADOW, find_shadow_folder, list_servable_folders

if TYPE_CHECKING:
    from imagepipe.serving.types import Answers

_log = logging.getLogger("imagepipe.shadow")


@dataclass(frozen=True)
class ShadowVersion:
    """A version that answers in shadow.

    Attributes:
        folder: the SavedModel's folder.
        name: the model's name, for callers.
        version: the model's version.
        key: public key; a version that isn't signed with its private key is not loaded. None for any version.
    """

    folder: Path
    name: str
    version: str
    key: Path | None = None


def find_shadow_version(path: Path, wanted: str, name: str, key: Path | None) -> ShadowVersion | None:
    """Returns the version that is to answer in shadow; None if none is. One without a graph is passed over.

    Args:
        path: the folder of versions.
        wanted: see ``find_shadow_folder``.
        name: see ``ShadowVersion``.
        key: see ``ShadowVersion``.
    """
    list_servable_folders(path / SHADOW, _log)
    folder = find_shadow_folder(path, wanted)
    return ShadowVersion(folder, name, folder.name, key) if folder else None


class Ready(NamedTuple):
    """It is loaded and warm.

    Attributes:
        engine: that computes the network.
        note: the reason why it isn't another one; '' if there is none.
    """

    engine: str
    note: str


class Reply(NamedTuple):
    """The answers to one request.

    Attributes:
        answers: as the server would send them.
        seconds: time that they took.
    """

    answers: "Answers"
    seconds: float


class Failed(NamedTuple):
    """It can't be loaded, or can't answer a request.

    Attributes:
        reason: as text.
    """

    reason: str


def answer_forever(connection: Connection, shadow: ShadowVersion, environment: Mapping[str, str]) -> None:
    """Loads a version, then answers requests until the other end of the connection is closed.

    Sends ``Ready`` or ``Failed``, then for each list of requests that it gets ``Reply`` or ``Failed``.

    Args:
        connection: to the server's process.
        shadow: the version.
        environment: variables of this process, all others are removed: libraries read them when they are imported.
    """
    end_with_parent()
    be_killed_first()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl+C is the server's, which closes the connection
    _wait_for_idle_cpus()
    _hide_output()
    os.environ.clear()
    os.environ.update(environment)
    try:
        from imagepipe.serving.engine import Engine
        from imagepipe.serving.threads import limit_threads

        limit_threads(shadow.folder)
        engine = Engine(shadow.folder, shadow.name, shadow.version, lambda size: None, shadow.key)
    except Exception as error:  # whatever TensorFlow raises on a damaged model
        connection.send(Failed(str(error) if isinstance(error, ModelError) else repr(error)))
        return
    connection.send(Ready(engine.model.engine, engine.model.note))
    while True:
        try:
            requests: Sequence = connection.recv()
        except EOFError:
            return
        start = time.perf_counter()
        try:
            answers = engine.ask(requests)
        except Exception as error:  # it is asked what another version could answer
            connection.send(Failed(str(error)))
        else:
            connection.send(Reply(answers, time.perf_counter() - start))


def _wait_for_idle_cpus() -> None:
    """Makes this process run where no other wants the CPU; where that is not allowed, at the lowest common priority."""
    try:
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    except OSError:
        os.nice(19)


def _hide_output() -> None:
    """Discards what TensorFlow prints when it is imported: the server's log is of lines of JSON."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for descriptor in (1, 2):
        os.dup2(nowhere, descriptor)
