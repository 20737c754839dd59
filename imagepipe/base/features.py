"""Names of the features in an Example, and of the outputs of the transform graph."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

IMAGE = "image"
"""Transformed image: uint8 ``[n, height, width, 3]``, RGB."""

TARGET = "target"
"""Transformed label, by task. Classification: int64 ``[n]``, the index into the sorted class names, -1 for a class that
training did not see. Multilabel: from the Transform graph sparse int64 ``[n, ?]``, one index per label; from
``transform.examples`` multi-hot float32 ``[n, k]``, labels that training did not see left out. Regression: float32
``[n]``, NaN if there is none."""

TRANSFORMED = "transformed_"
"""Prefix of a side feature's name in the transform graph's outputs and the network's inputs.

So a column may be called like a layer of the network, and TFMA, which looks for a slice's column among the transformed
features first, doesn't find it there."""

MISSING_FLAG = "missing_value_of_"
"""Prefix of the flag of a numeric side feature in the transform graph's outputs and the network's inputs.

Float32 ``[n]``, 1 where the value is missing. Only those features have a flag of which values may be missing in
training: the network would not learn from another."""

SIZE = "image_size"
"""Slice of the evaluation: range of an image's longer side, ``128-255 px``; of Examples with ``width``, ``height``."""

MAX_SIDE_FEATURES = 512
"""Side features of a model: a server checks each value by itself, in the one thread that parses common requests."""

MISSING_NUMBERS = frozenset(
    [
        *("#N/A", "#N/A N/A", "#NA", "-1.#IND", "-1.#QNAN", "-NaN", "-nan", "1.#IND", "1.#QNAN", "<NA>"),
        *("N/A", "NA", "NULL", "NaN", "None", "n/a", "nan", "null"),
    ]
)
"""Text that stands for a missing value in a column of numbers: what ``pandas.read_csv`` takes for one by default (its
parameter ``na_values``), R's NA among it."""

LABEL_SEPARATOR = "|"
"""Separates several labels in one text, in a manifest as in a model's answer."""

LABELS_VOCABULARY = "labels"
"""Name of the asset with the names of the model's outputs, one per line, in their order: the sorted classes or labels;
in a regression the target's feature."""


@dataclass(frozen=True)
class Features:
    """Names of the features of a ``tf.train.Example`` by their role.

    Attributes:
        input: the encoded image (bytes).
        label: the target; absent at serving. In a classification the class (bytes or int64), in a multilabel task any
            number of labels (bytes or int64), in a regression a number (float or int64).
        metadata: the caller's identifier of the image (bytes), passed through to every prediction.
        group: what the image shows or comes from (bytes or int64), such as a patient, of whom there may be more images;
            no input of the model. Records need not have it.
        numeric: side features (float or int64) that enter the model's head, scaled to zero mean and unit variance.
        categorical: side features (bytes or int64) that enter the head one-hot, one place for unseen values.
    """

    input: str = "input"
    label: str = "label"
    metadata: str = "metadata"
    group: str = "group"
    numeric: tuple[str, ...] = ()
    categorical: tuple[str, ...] = ()

    @property
    def side(self) -> tuple[str, ...]:
        """All side features, numeric first; the order in which the head concatenates them."""
        return (*self.numeric, *self.categorical)

    def vocabulary(self, name: str) -> str:
        """Returns the file name of a categorical feature's vocabulary: its own name need not be a safe file name."""
        return f"categorical_{self.categorical.index(name)}"


def parse_features(values: dict[str, Any]) -> Features:
    """Rebuilds ``Features`` from ``dataclasses.asdict`` after a trip through JSON (lists become tuples)."""
    fields: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
    return Features(**fields)


def read_group(values: Iterable[Any] | None) -> list[Any]:
    """Returns what names an Example's group, given the values of its feature; nothing if it has none, or empty text."""
    return [value for value in values or () if value != b""]


def restore_whole(value: Any) -> Any:
    """Returns the whole number that a float is, and other values as they are: pandas writes 3.0 if some are missing."""
    return int(value) if isinstance(value, float) and value.is_integer() else value
