"""The layout of the folder in which a pipeline keeps its results."""

import re
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Workdir:
    """The folder with the artifacts, metadata, model versions and runs of one pipeline.

    Attributes:
        root: the folder, absolute.
    """

    root: Path

    @property
    def artifacts(self) -> Path:
        """TFX's pipeline root."""
        return self.root / "artifacts"

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


def find_magic(path: str) -> str:
    """Returns the characters of a path that make it a pattern for TFX and TensorFlow, as text; "" if there are none."""
    return " and ".join(character for character in "[*?" if character in path)


def propose_root(path: str) -> str:
    """Returns the path of a folder like that, which TFX takes for no pattern."""
    return re.sub(r"[\[\]*?]", "_", path)
