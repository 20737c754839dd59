"""What all targets have in common. Imports nothing heavy."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Version:
    """A version of a model at a target.

    Attributes:
        version: its name, digits: seconds since 1970 when it was made.
        uri: the SavedModel's folder, as this machine sees it.
        traffic: percent of the requests that it gets; 0 if it gets none.
        state: ``ready``, or in the target's words what it is doing or why it isn't.
    """

    version: str
    uri: str
    traffic: int
    state: str = "ready"
