"""How far an ingest is."""

from dataclasses import dataclass


@dataclass
class Counts:
    """Images read and hashed, and images decoded and written or set aside, so far."""

    read: int = 0
    done: int = 0

    def by_name(self) -> dict[str, int]:
        """The same, as a person is told."""
        return {"read": self.read, "checked and written": self.done}


local = Counts()
"""What this process has done since the ingest began: a Beam runner inside the process adds to it."""
