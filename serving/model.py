"""Asks a SavedModel in this process."""

import itertools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tensorflow as tf

from ingest import files
from ingest.images import MAX_BYTES, BadImage, normalize
from serving.versions import ModelError, labels, model_task
from transform.features import LABEL_SEPARATOR

_BATCH_SIZE = 32


@dataclass(frozen=True)
class Prediction:
    """What a model says of an image.

    Attributes:
        id: the caller's name of the image.
        label: the most probable class; or the labels at their thresholds, joined by |; or the value as text.
        score: the highest probability, or the value.
        classes: probabilities of all classes or labels by name, the most probable first; or the value by the target's
            name.
        said: the names in ``label``, in the order of ``classes``; of a regression the target's name.
    """

    id: str
    label: str
    score: float
    classes: dict[str, float]
    said: tuple[str, ...]


@dataclass(frozen=True)
class Failure:
    """An image that could not be asked about.

    Attributes:
        id: the caller's name of the image.
        error: why.
    """

    id: str
    error: str


def load(model: Path) -> Callable[[list[bytes], list[str]], list[Prediction]]:
    """Loads a SavedModel.

    Args:
        model: its folder.

    Returns:
        A function from encoded images (JPEG, PNG, BMP or GIF) and their ids to predictions, for one batch.

    Raises:
        ModelError: if it can't be loaded, or needs more than an image.
    """
    try:
        loaded = tf.saved_model.load(str(model))
        serve = loaded.signatures["serving_default"]
        names, task = labels(model), model_task(model)
    except (OSError, KeyError, ValueError) as error:
        raise ModelError(f"{model} can't be loaded as a model of this pipeline: {error}") from error
    side = sorted(set(serve.structured_input_signature[1]) - {"input", "metadata"})
    if side:
        raise ModelError(f"{model} needs side features next to an image: {', '.join(side)}")

    def predict(images: list[bytes], ids: list[str]) -> list[Prediction]:
        answer = serve(input=tf.constant(images, tf.string), metadata=tf.constant(ids, tf.string))
        return [
            _prediction(*row, names=names, task=task)
            for row in zip(answer["metadata"].numpy(), answer["label"].numpy(), answer["classes"].numpy(), strict=True)
        ]

    # The folder's variables belong to `loaded`; TensorFlow frees them with it.
    predict.model = loaded  # type: ignore[attr-defined]
    return predict


def _prediction(metadata: bytes, label: bytes, classes: np.ndarray, names: list[str], task: str) -> Prediction:
    order = np.argsort(-classes, kind="stable")
    scores = {names[i]: float(classes[i]) for i in order}
    text = label.decode()
    said = {"classification": [text], "multilabel": text.split(LABEL_SEPARATOR), "regression": names}[task]
    return Prediction(
        metadata.decode(), text, float(classes.max()), scores, tuple(name for name in scores if name in said)
    )


def predict_files(
    predict: Callable[[list[bytes], list[str]], list[Prediction]], paths: Iterable[Path]
) -> Iterator[Prediction | Failure]:
    """Asks about files of any format that ``imagepipe ingest`` takes, treated as it treats them (orientation too).

    Returns:
        One result a path, in their order; its id is the path.
    """
    remaining = iter(paths)
    while batch := list(itertools.islice(remaining, _BATCH_SIZE)):
        images: list[bytes] = []
        failures: list[Failure | None] = []  # one a path; None where there is an image
        for path in batch:
            try:
                images.append(normalize(files.read(str(path), MAX_BYTES)).data)
                failures.append(None)
            except (OSError, BadImage) as error:
                failures.append(Failure(str(path), getattr(error, "strerror", None) or str(error)))
        ids = [str(path) for path, failure in zip(batch, failures, strict=True) if failure is None]
        answers = iter(predict(images, ids) if images else ())
        for failure in failures:
            yield failure or next(answers)
