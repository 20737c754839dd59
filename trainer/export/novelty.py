"""Novelty: how unlike the training images an image is to the network, as a share of images that it was not trained on.

Three scores, each in standard deviations of such images. The first two are distances between embeddings, of which the
square roots were taken, with their signs, before they were divided by their length (Perronnin, Sánchez, Mensink 2010:
Improving the Fisher kernel for large-scale image classification, section 3.2): else the few features that are large in
most images decide alone.

- What is left of an embedding outside the directions that make up half of the training images' variance (as in Wang,
  Li, Feng, Zhang 2022: ViM: out-of-distribution with virtual-logit matching, section 4). What is something else
  altogether differs in other ways. Fine-tuning leaves it: it only brings training images so close to each other that
  everything is far from them.
- The distance to the nearest training image (Sun, Ming, Zhu, Li 2022: Out-of-distribution detection with deep nearest
  neighbors, with k = 1), by the cosine between deviations from the mean, in directions that were made about equally
  wide: it shows what resembles the known images, and is none of them.
- The energy of the logits (Liu, Wang, Owens, Li 2020: Energy-based out-of-distribution detection, equation 4): high
  where the network finds reasons for no class. In classifications only.

The larger one of the two distances and the energy are added, of each the part above the mean (as a softplus): what is
usual by one does not make up for what is strange by another. Measured: ``benchmarks/answers.py``, on whose networks
this sum, the share of the variance and the floor of the widths were chosen; others near them change the areas that it
shows by some 0.01.

The nearest neighbour is looked for among at most 4,096 training images, drawn at random, and in the 256 directions in
which they differ most: 4 MB, and about as good as all of them. Where an embedding has more than some 11,000 numbers
there are fewer directions, so that all together have 16 MB at most.
"""

from dataclasses import asdict, dataclass, fields
from pathlib import Path

import numpy as np
import tensorflow as tf
from sklearn.utils.extmath import randomized_svd

from imagepipe.base.errors import TrainingError, describe_error
from imagepipe.base.labels import list_names
from imagepipe.base.names import TaskName
from trainer.export.calibration import Calibration

MAX_REFERENCES = 4096
"""Maximum number of training images among which the nearest neighbour is looked for."""

MIN_IMAGES = 20
"""Held-out images that novelty takes: one of fewer is more than the twentieth part that a limit of 0.95 is about."""

LAYER = "novelty"
"""Name of the layer that computes novelty in a network for other programs."""

_DIRECTIONS = 256
_MAX_NUMBERS = 4_000_000  # in 32 bits, of directions and of images in them
_INSIDE = 0.5
_FLOOR = 0.1  # of the widest direction's variance, added to each: the narrow ones are noise
# Up to this share of the images novelty is what they show; beyond, there are too few of them, and it follows an
# exponential law: what exceeds a high threshold tends to one (Pickands 1975), with the shape 0 for light tails.
_TAIL_FROM = 0.8
_STEPS = 16
_DISTANCES = 2  # among the scores
_MIN_SPREAD = 1e-3  # below, a spread is rounding
_MIN_VARIANCE = 1e-12  # the same, of a direction

Tensors = dict[str, tf.Tensor]


@dataclass(frozen=True, eq=False)  # TensorFlow hashes a function that it is given
class _Measure:
    """Computes the scores.

    Attributes:
        center: the mean of the training images' unit embeddings, see ``_make_unit``, float32 ``[d]``.
        directions: in which they differ most, each scaled so that they are about equally wide, float32 ``[d, r]``.
        inside: what a square along a scaled direction is without its scale, of the directions that make up half of the
            variance; 0 of the others; float32 ``[r]``.
        neighbours: the training images in the scaled directions, each of length 1, float32 ``[r, m]``.
        has_energy: whether the logits have one.
    """

    center: np.ndarray
    directions: np.ndarray
    inside: np.ndarray
    neighbours: np.ndarray
    has_energy: bool

    def compute_scores(self, outputs: Tensors) -> tf.Tensor:
        """Returns the scores of a network's outputs, float32 ``[n, scores]``; high ones are novel.

        In few operations: of one image each takes TensorFlow longer than what it computes.
        """
        deviation = _make_unit(outputs["embedding"]) - self.center
        along = deviation @ self.directions
        squares = tf.square(along)
        outside = tf.reduce_sum(tf.square(deviation), axis=-1) - tf.reduce_sum(squares * self.inside, axis=-1)
        length = tf.sqrt(tf.reduce_sum(squares, axis=-1) + _MIN_VARIANCE)
        farness = tf.reduce_min(along @ -self.neighbours, axis=-1) / length
        scores = [outside, farness]
        if self.has_energy:  # the same in each column
            scores.append(tf.reduce_mean(tf.nn.log_softmax(outputs["logits"]) - outputs["logits"], axis=-1))
        return tf.stack(scores, axis=-1)


@dataclass(frozen=True, eq=False)
class Novelty(_Measure):
    """The function from a network's ``logits`` and ``embedding`` to novelty, float32 ``[n]``, 0 to 1.

    Attributes:
        means: of the scores of images that the network was not trained on, ``[scores]``.
        spreads: their standard deviations.
        knots: quantiles of the sums of scores, ascending.
        widths: the distances between them.
        scale: of what exceeds the last.
    """

    means: np.ndarray
    spreads: np.ndarray
    knots: np.ndarray
    widths: np.ndarray
    scale: np.float32

    def __call__(self, outputs: Tensors) -> tf.Tensor:
        """Returns the novelty of images by what the network says of them."""
        total = _sum_scores((self.compute_scores(outputs) - self.means) / self.spreads)
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
    """Reads what ``save_novelty`` wrote.

    Raises:
        TrainingError: if an earlier version did, which computed it otherwise; or it is damaged.
    """
    try:
        with np.load(file, allow_pickle=False) as stored:
            arrays = dict(stored)
    except Exception as error:  # half a file, another program's, a damaged one: NumPy raises a dozen kinds
        raise TrainingError(
            f"{file} can't be loaded: {describe_error(error)}. If it is damaged, copy it again, or run the pipeline "
            "again"
        ) from error
    names = [field.name for field in fields(Novelty)]
    if missing := [name for name in (*names, *Calibration._fields) if name not in arrays]:
        raise TrainingError(
            f"{file} lacks {list_names(missing)}: an earlier version trained it. Run the pipeline again."
        )
    calibration = Calibration(*(tuple(arrays[name].tolist()) for name in Calibration._fields))
    return Novelty(*(arrays[name] for name in names)), calibration


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
    scores = measure_held_out.compute_scores({name: tf.constant(array) for name, array in held_out.items()}).numpy()
    means, spreads = scores.mean(axis=0), np.maximum(scores.std(axis=0), _MIN_SPREAD)
    sums = _sum_scores(tf.constant((scores - means) / spreads)).numpy()
    knots = np.quantile(sums, np.linspace(0, _TAIL_FROM, _STEPS + 1)).astype(np.float32)
    widths = np.maximum(np.diff(knots), _MIN_SPREAD)
    beyond = sums[sums > knots[-1]] - knots[-1]
    scale = max(float(beyond.mean()) if beyond.size else 0.0, _MIN_SPREAD)
    return Novelty(**vars(measure), means=means, spreads=spreads, knots=knots, widths=widths, scale=np.float32(scale))


def explain_few(images: int) -> str:
    """Returns what it means that novelty is fitted to so few held-out images; '' if they are enough."""
    if images >= MIN_IMAGES:
        return ""
    return (
        f"Novelty is fitted to {images} held-out images, and {MIN_IMAGES} are the minimum for it to be more than "
        "chance: many images of the kinds that were trained on may have a high one"
    )


def _make_measure(task: TaskName, references: np.ndarray) -> _Measure:
    unit = _make_unit(tf.constant(references)).numpy()
    center = unit.mean(axis=0)
    deviations = unit - center
    size, length = deviations.shape
    count = max(1, min(_DIRECTIONS, size, length, (_MAX_NUMBERS - length) // (size + length + 2)))
    _, lengths, rows = randomized_svd(deviations, count, n_iter=2, random_state=0)
    variances = (lengths**2 / size).astype(np.float32)
    widths = np.sqrt(np.maximum(variances + _FLOOR * variances[0], _MIN_VARIANCE))
    directions = rows.T.astype(np.float32) / widths
    is_inside = np.cumsum(variances) - variances < _INSIDE * deviations.var(axis=0).sum()
    neighbours = tf.math.l2_normalize(deviations @ directions, axis=-1).numpy().T
    return _Measure(center, directions, is_inside * widths**2, neighbours, task == "classification")


def _make_unit(embeddings: tf.Tensor) -> tf.Tensor:
    """Takes the square root of each number, with its sign, and divides each row by its length."""
    return tf.math.l2_normalize(tf.sign(embeddings) * tf.sqrt(tf.abs(embeddings)), axis=-1)


def _sum_scores(scores: tf.Tensor) -> tf.Tensor:
    """Returns float ``[n]``, of scores in standard deviations, ``[n, scores]``."""
    above = tf.math.softplus(scores)
    total = tf.reduce_max(above[:, :_DISTANCES], axis=-1)
    return total if above.shape[1] == _DISTANCES else total + above[:, _DISTANCES]
