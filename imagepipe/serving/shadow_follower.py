"""Follows which version is in shadow: a new one is asked in place of the old one, one that went live not any more."""

import logging
import threading
from collections.abc import Callable

from imagepipe.deploy.versions import describe_files
from imagepipe.serving.shadow import Keep, Question, Shadow
from imagepipe.serving.shadow_process import ShadowVersion
from imagepipe.serving.telemetry import SHADOW_SERIES, RecentVersions

_FOLLOW_SECONDS = 1.0
_CLOSE_SECONDS = 1.0

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
        self._seen: object = None  # version and state of its files at the last look
        self._state: object = None  # of the files of the version in shadow when it was loaded
        self._recent = RecentVersions(SHADOW_SERIES)
        self._is_closing = threading.Event()
        self._refresh(is_first=True)
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

    def _refresh(self, is_first: bool = False) -> None:
        """Looks for another version, or for one that failed and is another one by now, or whose form came later.

        But for the first look it waits until the files have stayed the same for one: they may be copied one by one.
        """
        version = self._find()
        shadow = self._shadow
        if version == self._version and not (shadow and (shadow.is_over or shadow.has_unused_form())):
            return
        state = version and describe_files(version.folder)
        last, self._seen = self._seen, (version, state)
        if version and last != self._seen and not is_first:
            return
        if (version, state) == (self._version, self._state):
            return
        old, self._shadow = self._shadow, None
        if old:
            old.close()  # first, as two copies of a model may not fit
        self._version, self._state = version, state
        if version:
            self._recent.add(version.version)
        self._shadow = Shadow(version, self._keep) if version else None

    def _follow(self) -> None:
        while not self._is_closing.wait(_FOLLOW_SECONDS):
            try:
                self._refresh()
            except Exception:
                _log.exception("the model's folder can't be followed; the version in shadow stays")
