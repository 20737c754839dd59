"""Follows which version is in shadow: a new one is asked in place of the old one, one that went live not any more."""

import logging
import threading
from collections.abc import Callable

from imagepipe.serving.shadow import Keep, Question, Shadow
from imagepipe.serving.shadow_process import ShadowVersion

_FOLLOW_SECONDS = 1.0
_CLOSE_SECONDS = 10.0

FindShadow = Callable[[], ShadowVersion | None]
"""Returns the version that is in shadow now; None if none is."""

_log = logging.getLogger("imagepipe.shadow")


class ShadowFollower:
    """Asks the version that is in shadow. For many threads."""

    def __init__(self, find: FindShadow, keep: Keep):
        """Starts to load the version, in the background, and looks every second for another one.

        Args:
            find: finds the version.
            keep: called with its answers, in a thread of its own.
        """
        self._find, self._keep = find, keep
        self._version: ShadowVersion | None = None
        self._shadow: Shadow | None = None
        self._is_closing = threading.Event()
        self._refresh()
        self._thread = threading.Thread(target=self._follow, name="shadows", daemon=True)
        self._thread.start()

    def offer(self, question: Question, version: str) -> None:
        """Hands a question over to the version in shadow, if one is, see ``Shadow.offer``."""
        if shadow := self._shadow:
            shadow.offer(question, version)

    def close(self) -> None:
        """Asks nothing more."""
        self._is_closing.set()
        self._thread.join(_CLOSE_SECONDS)
        if self._shadow:
            self._shadow.close()

    def _refresh(self) -> None:
        version = self._find()
        if version == self._version:
            return
        old, self._shadow = self._shadow, None
        if old:
            old.close()  # first, as two copies of a model may not fit
        self._version = version
        self._shadow = Shadow(version, self._keep) if version else None

    def _follow(self) -> None:
        while not self._is_closing.wait(_FOLLOW_SECONDS):
            try:
                self._refresh()
            except Exception:
                _log.exception("the model's folder can't be followed; the version in shadow stays")
