"""Where a pipeline keeps what it makes."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Workdir:
    """A folder with the artifacts, metadata, live versions and runs of one pipeline.

    Attributes:
        root: the folder, absolute.
    """

    root: Path

    @property
    def artifacts(self) -> Path:
        """TFX's pipeline root."""
        return self.root / "artifacts"

    @property
    def metadata(self) -> Path:
        """ML Metadata's SQLite file."""
        return self.root / "metadata.db"

    @property
    def runs(self) -> Path:
        """A folder a run: ``summary.json``, ``log.txt``, pictures."""
        return self.root / "runs"

    def serving(self, name: str) -> Path:
        """The version folders of the pipeline ``name``, unless the configuration puts them elsewhere."""
        return self.root / "serving" / name
