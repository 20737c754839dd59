"""The layout of the folder in which a pipeline keeps its results."""

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

from imagepipe.base.errors import ConfigError, describe_error
from imagepipe.base.filesystem import is_plain


@dataclass(frozen=True)
class Workdir:
    """The folder with the artifacts, metadata, model versions and runs of one pipeline.

    Attributes:
        root: the folder, absolute.
    """

    root: Path

    @property
    def artifacts(self) -> Path:
        """TFX's pipeline root: one folder per output of each execution, ``NODE/KEY/EXECUTION``."""
        return self.root / "artifacts"

    @property
    def plain_artifacts(self) -> Path:
        """The same folder by a path that TFX takes for no pattern; a link if need be, see ``link_artifacts``."""
        if is_plain(self.artifacts):
            return self.artifacts
        states = Path(os.environ.get("XDG_STATE_HOME") or "~/.local/state").expanduser()
        return states / "imagepipe" / "artifacts" / hashlib.sha256(os.fsencode(self.artifacts)).hexdigest()[:16]

    @property
    def training(self) -> Path:
        """States of trainings that have not ended, from which the next run resumes."""
        return self.artifacts / ".training"

    @property
    def data(self) -> Path:
        """Copies of Examples on an object store that TensorFlow can't open."""
        return self.artifacts / ".data"

    @property
    def metadata(self) -> Path:
        """ML Metadata's SQLite file."""
        return self.root / "metadata.db"

    @property
    def runs(self) -> Path:
        """One folder per run: ``summary.json``, ``log.txt``, pictures."""
        return self.root / "runs"

    def serving(self, name: str) -> Path:
        """Returns the folder of the version folders of the pipeline ``name``, unless ``deploy.path`` is another."""
        return self.root / "serving" / name

    def link_artifacts(self) -> None:
        """Makes the folder of the artifacts and, if need be, the link by which TFX reaches it.

        Raises:
            ConfigError: if the link can't be made.
            OSError: if the folder can't be made.
        """
        link = self.plain_artifacts
        if link != self.artifacts and not (link.is_symlink() and link.readlink() == self.artifacts):
            try:
                link.parent.mkdir(parents=True, exist_ok=True)
                link.unlink(missing_ok=True)
                link.symlink_to(self.artifacts)
            except OSError as error:
                raise ConfigError(
                    f"--workdir: {self.root} has [, * or ? in its path, so that TFX needs a link to it, which can't be "
                    f"made: {describe_error(error)}. Set XDG_STATE_HOME to a folder that can be written, or give a "
                    "folder without these"
                ) from error
        self.artifacts.mkdir(parents=True, exist_ok=True)

    def name_artifacts(self, text: str) -> str:
        """Returns a text, such as a path or a message, that names the artifacts' folder and not the link to it."""
        return text.replace(str(self.plain_artifacts), str(self.artifacts))
