"""What can go wrong in training that the user can mend."""


class TrainingError(RuntimeError):
    """Training can't go on; the message says why and what to do. Nothing was exported."""
