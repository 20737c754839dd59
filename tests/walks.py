"""Lists the files of ours that a piece of work walks through: how far a reader has to go to follow it."""

import inspect
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

_ROOT = Path(__file__).resolve().parents[1]
_OURS = ("imagepipe", "transform", "trainer", "components", "pipeline")


def walk(work: Callable[[], Any]) -> list[str]:
    """Runs some work, and lists the files in which a function of ours ran, in the order in which they came first.

    Threads that Python starts count, other processes don't. Left out is ``imagepipe/base``, which everything stands on.
    """
    seen: dict[CodeType, None] = {}

    def note(frame: FrameType, event: str, _: Any) -> None:
        if event == "call":
            seen.setdefault(frame.f_code)

    threading.setprofile(note)
    sys.setprofile(note)
    try:
        work()
    finally:
        sys.setprofile(None)
        threading.setprofile(None)  # type: ignore[arg-type]  # None ends it, as for sys.setprofile

    files: dict[str, None] = {}
    for code in list(seen):  # a thread may still be at work
        path = Path(code.co_filename)
        # Neither modules that are imported nor classes that are defined: only functions have locals of their own.
        is_function = code.co_flags & inspect.CO_NEWLOCALS and not code.co_name.startswith("<")
        if not is_function or not path.is_relative_to(_ROOT):
            continue
        name = path.relative_to(_ROOT)
        if name.parts[0] in _OURS and name.parts[:2] != ("imagepipe", "base"):
            files.setdefault(str(name))
    return list(files)
