"""Answers of an exported model: from the network's logits and embedding to classes, label, score and novelty.

By task:

- classification: ``classes`` are probabilities that add up to 1, ``label`` the best class, ``score`` its probability.
- multilabel: ``classes`` are independent probabilities, ``label`` the labels at or above their thresholds, joined by |
  in the order of ``classes`` ('' if there are none), ``score`` the highest probability.
- regression: ``classes`` [n, 1] and ``score`` are the value, ``label`` is its text.

``novelty``: see ``trainer.export.novelty``. Of images that are too novel, if a limit is set, ``label`` is ''.
"""

from collections.abc import Callable

import tensorflow as tf

from imagepipe.base.features import LABEL_SEPARATOR
from imagepipe.base.names import TaskName
from trainer.config import LabelThresholds, list_thresholds
from trainer.export.calibration import Calibration

Tensors = dict[str, tf.Tensor]

_DIGITS = 7  # precision of a float32
_ACTIVATIONS = {"classification": tf.nn.softmax, "multilabel": tf.sigmoid, "regression": tf.identity}


def compute_classes(task: TaskName, calibration: Calibration, logits: tf.Tensor) -> tf.Tensor:
    """Returns ``classes``, float32 ``[n, k]``, of logits float32 ``[n, k]``."""
    return _ACTIVATIONS[task](logits * calibration.factors + calibration.offsets)


def make_answers(
    task: TaskName,
    output_names: list[str],
    label_thresholds: LabelThresholds,
    calibration: Calibration,
    novelty: Callable[[Tensors], tf.Tensor],
    unknown_from: float | None,
) -> Callable[[Tensors], Tensors]:
    """Returns the function from a network's ``logits`` and ``embedding`` to the answers.

    Args:
        task: gives the meaning of the outputs.
        output_names: names of the outputs.
        label_thresholds: decision threshold per label of a multilabel task (default 0.5).
        calibration: of the logits.
        novelty: from the network's outputs to novelty, float32 ``[n]``.
        unknown_from: the novelty from which on an image gets no label; None for no limit.

    Raises:
        ValueError: if ``label_thresholds`` names a label that is not among ``output_names``.
    """
    choose_label = _make_label_function(task, output_names, label_thresholds)

    def answer(outputs: Tensors) -> Tensors:
        classes = compute_classes(task, calibration, outputs["logits"])
        label, how_novel = choose_label(classes), novelty(outputs)
        if unknown_from is not None:
            label = tf.where(how_novel >= unknown_from, "", label)
        return {"classes": classes, "label": label, "score": tf.reduce_max(classes, axis=-1), "novelty": how_novel}

    return answer


def _make_label_function(
    task: TaskName, output_names: list[str], label_thresholds: LabelThresholds
) -> Callable[[tf.Tensor], tf.Tensor]:
    """Returns the function from a model's outputs, float ``[n, k]``, to ``label``, string ``[n]``.

    Args:
        task: gives the meaning of the outputs.
        output_names: names of the outputs.
        label_thresholds: decision threshold per label of a multilabel task (default 0.5).

    Raises:
        ValueError: if ``label_thresholds`` names a label that is not among ``output_names``.
    """
    thresholds = list_thresholds(output_names, label_thresholds)

    def pick_best(probabilities: tf.Tensor) -> tf.Tensor:
        return tf.gather(tf.constant(output_names), tf.argmax(probabilities, axis=-1))

    def join_labels(probabilities: tf.Tensor) -> tf.Tensor:
        indices = tf.where(probabilities >= tf.constant(thresholds))  # [m, 2]: row and label, in order
        labels = tf.gather(tf.constant(output_names), indices[:, 1])
        return tf.strings.unsorted_segment_join(labels, indices[:, 0], tf.shape(probabilities)[0], LABEL_SEPARATOR)

    def format_value(values: tf.Tensor) -> tf.Tensor:
        return tf.strings.as_string(values[:, 0], precision=_DIGITS, shortest=True)

    return {"classification": pick_best, "multilabel": join_labels, "regression": format_value}[task]
