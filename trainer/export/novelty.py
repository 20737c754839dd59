"""Novelty: how unlike the training images an image is to the network, as a share of images that it was not trained on.

Two scores, each in standard deviations of such images, of which the parts above the mean are added (as a softplus):

- the energy of the logits (Liu, Wang, Owens, Li 2020: Energy-based out-of-distribution detection, equation 4): high
  where the network finds reasons for no class. In classifications only;
- the distance to the nearest training image by the cosine between embeddings (Sun, Ming, Zhu, Li 2022:
  Out-of-distribution detection with deep nearest neighbors, with k = 1), of which the square roots were taken, with
  their signs (Perronnin, Sánchez, Mensink 2010: Improving the Fisher kernel for large-scale image classification,
  section 3.2): else the few features that are large in most images decide alone.

Each sees what the other misses: a kind of image that resembles a known one, and one that resembles nothing. What is
usual by one does not make up for what is strange by the other. Measured: ``benchmarks/answers.py``.

The nearest neighbour is looked for among at most 4,096 training images, drawn at random, and in the 256 directions in
which they have the largest products: 4 MB, and about as good as all of them. Where an embedding has more than some
11,000 numbers there are fewer directions, so that both together have 16 MB at most.
"""

from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import NamedTuple

import numpy as np
import tensorflow as tf
from sklearn.utils.extmath import randomized_svd

from imagepipe.base.names import TaskName
from trainer.export.calibration import Calibration

MAX_REFERENCES = 4096
"""Maximum number of training images among which the nearest neighbour is looked for."""

LAYER = "novelty"
"""Name of the layer that computes novelty in a network for other programs."""

_DIRECTIONS = 256
_MAX_NUMBERS = 4_000_000  # in 32 bits, of directions and of images in them
# Up to this share of the images novelty is what they show; beyond, there are too few of them, and it follows an
# exponential law: what exceeds a high threshold tends to one (Pickands 1975), with the shape 0 for light tails.
_TAIL_FROM = 0.8
_STEPS = 16
_MIN_SPREAD = 1e-3  # below, a spread is rounding

Tensors = dict[str, tf.Tensor]


class _Measure(NamedTuple):
    """Computes the scores.

    Attributes:
        directions: of unit embeddings, float32 ``[d, r]``.
        neighbours: the training images in them, float32 ``[r, m]``.
        has_energy: whether the logits have one.
    """

    directions: np.ndarray
    neighbours: np.ndarray
    has_energy: bool

    def __call__(self, outputs: Tensors) -> tf.Tensor:
        """Returns the scores of a network's outputs, float32 ``[n, scores]``; high ones are novel."""
        embedding = _make_unit(outputs["embedding"]) @ self.directions
        scores = [-tf.reduce_max(embedding @ self.neighbours, axis=-1)]
        if self.has_energy:
            scores.append(-tf.reduce_logsumexp(outputs["logits"], axis=-1))
        return tf.stack(scores, axis=-1)


@dataclass(frozen=True, eq=False)  # TensorFlow hashes a function that it is given
class Novelty:
    """The function from a network's ``logits`` and ``embedding`` to novelty, float32 ``[n]``, 0 to 1.

    Attributes:
        directions: see ``_Measure``.
        neighbours: the same.
        means: of the scores of images that the network was not trained on, ``[scores]``.
        spreads: their standard deviations.
        knots: quantiles of the sums of scores, ascending.
        widths: the distances between them.
        scale: of what exceeds the last.
    """

    directions: np.ndarray
    neighbours: np.ndarray
    means: np.ndarray
    spreads: np.ndarray
    knots: np.ndarray
    widths: np.ndarray
    scale: np.ndarray

    def __call__(self, outputs: Tensors) -> tf.Tensor:
        """Returns the novelty of images by what the network says of them."""
        measure = _Measure(self.directions, self.neighbours, has_energy=len(self.means) > 1)
        total = tf.reduce_sum(tf.math.softplus((measure(outputs) - self.means) / self.spreads), axis=-1)
        steps = tf.clip_by_value((total[:, None] - self.knots[:-1]) / self.widths, 0.0, 1.0)
        tail = 1 - tf.exp(-tf.nn.relu(total - self.knots[-1]) / self.scale)  # ONNX has no expm1
        return _TAIL_FROM * tf.reduce_mean(steps, axis=-1) + (1 - _TAIL_FROM) * tail


def is_of_novelty(operation: str) -> bool:
    """Returns whether an operation or tensor is one of ``LAYER``, by its name in a graph.

    These stay in float where a network is quantized: in int8 the few distances that decide would be one step.
    """
    return f"/{LAYER}" in operation


def save_novelty(novelty: Novelty, calibration: Calibration, file: Path) -> None:
    """Writes it beside a network.

    Args:
        novelty: of the network's logits without a calibration.
        calibration: that its logits have in the file beside it.
        file: the file to write, ``.npz``.
    """
    np.savez(file, allow_pickle=False, **asdict(novelty), **calibration._asdict())


def load_novelty(file: Path) -> tuple[Novelty, Calibration]:
    """Reads what ``save_novelty`` wrote."""
    with np.load(file, allow_pickle=False) as arrays:
        calibration = Calibration(*(tuple(arrays[name].tolist()) for name in Calibration._fields))
        return Novelty(*(arrays[field.name] for field in fields(Novelty))), calibration


def fit_novelty(
    task: TaskName,
    references: np.ndarray,
    held_out: dict[str, np.ndarray],
    held_out_references: np.ndarray | None = None,
) -> Novelty:
    """Fits novelty: the share of the held-out images that are less novel.

    Beyond the highest fifth of them it goes on rising towards 1.

    Args:
        task: with logits that have an energy, or not.
        references: embeddings of training images, float32 ``[m, d]``, at most ``MAX_REFERENCES``.
        held_out: ``logits`` ``[n, k]`` and ``embedding`` ``[n, d]`` of images that the network was not trained on.
        held_out_references: embeddings of training images by the network that ``held_out`` is of, if it is another one:
            after ``trainer.refit`` no image is left that the network was not trained on.
    """
    measure = _make_measure(task, references)
    measure_held_out = measure if held_out_references is None else _make_measure(task, held_out_references)
    scores = measure_held_out({name: tf.constant(array) for name, array in held_out.items()}).numpy()
    means, spreads = scores.mean(axis=0), np.maximum(scores.std(axis=0), _MIN_SPREAD)
    sums = np.logaddexp(0, (scores - means) / spreads).sum(axis=1)
    knots = np.quantile(sums, np.linspace(0, _TAIL_FROM, _STEPS + 1)).astype(np.float32)
    widths = np.maximum(np.diff(knots), _MIN_SPREAD)
    beyond = sums[sums > knots[-1]] - knots[-1]
    scale = max(float(beyond.mean()) if beyond.size else 0.0, _MIN_SPREAD)
    return Novelty(measure.directions, measure.neighbours, means, spreads, knots, widths, np.array(scale, np.float32))


def _make_measure(task: TaskName, references: np.ndarray) -> _Measure:
    unit = _make_unit(tf.constant(references)).numpy()
    count = min(_DIRECTIONS, max(1, _MAX_NUMBERS // sum(unit.shape)), *unit.shape)
    _, _, rows = randomized_svd(unit, count, n_iter=2, random_state=0)
    directions = rows.T.astype(np.float32)
    return _Measure(directions, (unit @ directions).T.astype(np.float32), task == "classification")


def _make_unit(embeddings: tf.Tensor) -> tf.Tensor:
    """Takes the square root of each number, with its sign, and divides each row by its length."""
    return tf.math.l2_normalize(tf.sign(embeddings) * tf.sqrt(tf.abs(embeddings)), axis=-1)
