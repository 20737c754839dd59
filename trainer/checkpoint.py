"""The state of a training on disk, from which a killed training resumes where it was."""

import hashlib
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
from pydantic import BaseModel, ConfigDict, NonNegativeFloat, NonNegativeInt

from imagepipe.base import filesystem
from imagepipe.base.code_closure import hash_code
from imagepipe.base.full_disk import measure_full_disk
from trainer.config import EXPORT_SETTINGS, FnArgs, list_given
from trainer.given import hash_given

STATE = "state.npz"
"""File of a state in its folder."""

Arrays = dict[str, list[np.ndarray]]
"""Groups of arrays by name."""


class StateError(Exception):
    """A state on disk can't be used; the message says why. Nothing has been assigned."""


class Progress(BaseModel):
    """How far a training is.

    Attributes:
        phase: index of the current phase.
        epoch: finished epochs of the phase.
        step: finished steps of the epoch after those; all of them if only the evaluation is missing.
        seconds: duration of these steps.
        waiting: seconds of it in which no batch was ready.
        improved: number of the phase's epoch, from 1, that was last better than by chance; 0 before the first.
        history: one row per finished epoch of all phases, see ``trainer.schedule``.
    """

    model_config = ConfigDict(extra="forbid", strict=True)

    phase: NonNegativeInt = 0
    epoch: NonNegativeInt = 0
    step: NonNegativeInt = 0
    seconds: NonNegativeFloat = 0.0
    waiting: NonNegativeFloat = 0.0
    improved: NonNegativeInt = 0
    history: list[dict[str, Any]] = []


@dataclass(frozen=True)
class State:
    """The state of a training.

    Attributes:
        identity: everything, as JSON values, that has to be the same when the training is resumed.
        progress: how far it is.
        arrays: the values of its variables, see ``check_shapes``.
    """

    identity: dict[str, Any]
    progress: Progress
    arrays: Arrays


def make_state_folder(fn_args: FnArgs, module: str) -> Path:
    """Returns the state folder of this very training or search, and removes those that nothing continues.

    It is ``<state_dir>/<data>/<training>``. The first is named by data and preprocessing, and has the pixels: trainings
    with other settings use them again. The second is named by everything that the weights depend on, and has the state:
    after an export that was refused, the training need not be done again. There is at most one of each: folders of
    other data, and of other trainings on this data, are removed. Nobody else may use ``state_dir`` meanwhile. The names
    change with the code and the packages that read the data or train, too.

    Args:
        fn_args: the data and the configuration.
        module: dotted name of the module that trains or searches.
    """
    custom = fn_args.custom_config
    files = [path for pattern in (*fn_args.train_files, *fn_args.eval_files) for path in filesystem.glob(pattern)]
    graph = [path for path, _ in filesystem.walk(fn_args.transform_graph_path)]
    described = [(path, filesystem.size(path), filesystem.modified(path)) for path in (*files, *graph)]
    data = _hash([hash_code(["trainer.data"]), described, custom["task"], custom["features"], custom["image_size"]])
    given = [hash_given(key, name) for key, name in list_given(custom["trainer"])]
    trainer = {key: value for key, value in custom["trainer"].items() if key not in EXPORT_SETTINGS}
    settings = {key: value for key, value in custom.items() if key != "serving"} | {"trainer": trainer}
    training = _hash([data, hash_code([module]), given, fn_args.hyperparameters, settings])
    folder = Path(custom["state_dir"]) / data / training
    folder.mkdir(parents=True, exist_ok=True)
    for kept in (folder, folder.parent):
        for other in kept.parent.iterdir():
            if other.is_dir() and other != kept:
                shutil.rmtree(other)
    return folder


def _hash(identity: Any) -> str:
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]


def copy_values(variables: Sequence[keras.Variable]) -> list[np.ndarray]:
    """Returns copies of variables' values."""
    return [np.array(variable.numpy()) for variable in variables]


def assign_values(variables: Sequence[keras.Variable], arrays: Sequence[np.ndarray]) -> None:
    """Assigns copied values to variables."""
    for variable, array in zip(variables, arrays, strict=True):
        variable.assign(array)


def save_state(folder: Path, state: State) -> None:
    """Writes a state in place of the previous one; a reader sees one of them complete.

    Args:
        folder: an existing folder.
        state: the state.

    Raises:
        OSError: if the disk is full; the previous state is still there.
    """
    texts = {"identity": state.identity, "progress": state.progress.model_dump()}
    flat = {f"{name}/{number}": array for name, group in state.arrays.items() for number, array in enumerate(group)}
    partial = folder / f"{STATE}.partial"
    size = sum(array.nbytes for array in flat.values())
    with measure_full_disk(partial, "the state of the training", lambda: size), partial.open("wb") as file:
        np.savez(file, allow_pickle=False, **{key: np.array(json.dumps(texts[key])) for key in texts}, **flat)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(folder / STATE)


def load_state(folder: Path, identity: Mapping[str, Any]) -> State | None:
    """Reads what ``save_state`` wrote; returns None if there is nothing.

    Args:
        folder: an existing folder.
        identity: the one that a state must have to be usable.

    Raises:
        StateError: if it is damaged, or of another identity.
    """
    if not (folder / STATE).exists():
        return None
    arrays: Arrays = {}
    try:
        with np.load(folder / STATE, allow_pickle=False) as stored:
            stored_identity = json.loads(str(stored["identity"]))
            different = [key for key in identity if stored_identity.get(key) != identity[key]]
            if not different:
                progress = Progress(**json.loads(str(stored["progress"])))
                for key in stored.files:
                    name, slash, _ = key.partition("/")
                    if slash:
                        arrays.setdefault(name, []).append(stored[key])
    except Exception as error:  # half a file, another program's, a damaged one: NumPy raises a dozen kinds
        raise StateError(f"it is damaged, or not a state: {type(error).__name__}: {error}") from error
    if different:
        changes = (f"{key} was {stored_identity.get(key)} and is {identity[key]}" for key in different)
        raise StateError(f"it is of another training: {', '.join(changes)}")
    return State(stored_identity, progress, arrays)


def read_kept(folder: Path, identity: Mapping[str, Any]) -> list[str] | None:
    """Returns the names of the outputs that a state's training keeps, see ``trainer.frozen``; None without a state.

    A damaged state, or one of another training, counts as none here; ``load_state`` reports it.

    Args:
        folder: see ``load_state``.
        identity: likewise, but for these names.
    """
    try:
        with np.load(folder / STATE, allow_pickle=False) as stored:
            stored_identity = json.loads(str(stored["identity"]))
            kept = stored_identity.pop("kept")
            return list(kept) if stored_identity == identity else None
    except Exception:  # as many kinds as in load_state
        return None


def check_shapes(arrays: Arrays, variables: Mapping[str, Sequence[keras.Variable | np.ndarray]]) -> None:
    """Checks that all groups of arrays can be assigned to the variables of the same names, before any of them is.

    Raises:
        StateError: if the groups, or the numbers, shapes or types of the arrays in them, are others.
    """
    if set(arrays) != set(variables):
        raise StateError(f"it has the groups {', '.join(sorted(arrays))} in place of {', '.join(sorted(variables))}")
    for name, group in variables.items():
        expected = [(tuple(variable.shape), keras.backend.standardize_dtype(variable.dtype)) for variable in group]
        actual = [(array.shape, str(array.dtype)) for array in arrays[name]]
        if actual != expected:
            raise StateError(
                f"its {len(actual)} arrays of {name} don't fit the {len(expected)} variables of the network"
            )
