"""A process's imports, its memory, and its end."""

import contextlib
import ctypes
import gc
import multiprocessing
import os
import re
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

UNUSED_BY_KERAS = ("IPython", "matplotlib", "pandas", "sklearn")
"""Optional modules that Keras, and so TensorFlow, imports if it can: 1.7 of the 3.7 s and 160 of the 720 MiB of its
import. None of our models needs them."""

_PR_SET_PDEATHSIG = 1  # prctl(2)
_FIRST_TO_KILL = "500"  # of -1000 to 1000, see proc(5)


@contextlib.contextmanager
def hide_modules(*modules: str) -> Iterator[None]:
    """Makes imports of optional modules fail inside the block, except of those that are loaded already.

    Libraries try to import others that are installed here, for features that this project doesn't use.
    """
    hidden = [name for name in modules if name not in sys.modules]
    sys.modules.update(dict.fromkeys(hidden))  # type: ignore[arg-type]  # None makes `import` raise ImportError
    try:
        yield
    finally:
        for name in hidden:
            del sys.modules[name]


def release_memory() -> None:
    """Returns freed memory to the operating system, which glibc doesn't do by itself.

    Loading a model takes about ten times its size, in pieces that lie between those that stay. Measured: a server of an
    InceptionV3 in bfloat16 keeps 2.2 of 3.2 GB, a run at 96 px 2.3 of 4.4 GB after the Trainer. Takes 0.1 to 0.6 s.
    """
    gc.collect()  # TensorFlow's objects reference each other: without it a run of 500 photos peaks at 9.3 GB, not 7.2
    libc = ctypes.CDLL(None)
    if hasattr(libc, "malloc_trim"):  # glibc's; other C libraries keep less
        libc.malloc_trim(0)


def read_private_memory(pid: int) -> int | None:
    """Returns the bytes of a process's memory that it shares with no other; None if this system doesn't tell."""
    folder = Path(f"/proc/{pid}")
    with contextlib.suppress(OSError):
        kilobytes = re.findall(rb"^Private_\w+: +(\d+) kB", (folder / "smaps_rollup").read_bytes(), re.MULTILINE)
        return 1024 * sum(map(int, kilobytes))
    with contextlib.suppress(OSError):  # sandboxes such as gVisor have this only: resident, and what of it are files
        _, resident, shared, *_ = map(int, (folder / "statm").read_bytes().split())
        return (resident - shared) * os.sysconf("SC_PAGE_SIZE")
    return None


def be_killed_first() -> None:
    """Lets the kernel kill this process before others where memory runs out."""
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text(_FIRST_TO_KILL, encoding="utf-8")


def end_with_parent() -> None:
    """Makes the operating system kill this process when the thread that started it ends, however that comes about."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    parent = multiprocessing.parent_process()
    if parent and parent.pid != os.getppid():  # it has ended already
        signal.raise_signal(signal.SIGKILL)
