"""Reads a split as DataCheck does."""

from pathlib import Path

from components.data_check.row_writer import Reading
from components.data_check.split import Split
from components.data_check.split_reader import read_splits
from components.data_check.steps import Place
from imagepipe.base.features import Features


def read_split(folder: Path, name: str, features: Features, **options) -> Split:
    """Returns the split whose Examples lie in the folder; its rows are written beside them."""
    return read_splits({name: Reading(str(folder), features, **options)}, Place(folder))[name]
