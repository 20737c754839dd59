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

from collections.abc import Callable

import numpy as np
import tensorflow as tf
from sklearn.utils.extmath import randomized_svd

from imagepipe.base.names import TaskName

MAX_REFERENCES = 4096
"""Maximum number of training images among which the nearest neighbour is looked for."""

_DIRECTIONS = 256
_MAX_NUMBERS = 4_000_000  # in 32 bits, of directions and of images in them
# Up to this share of the images novelty is what they show; beyond, there are too few of them, and it follows an
# exponential law: what exceeds a high threshold tends to one (Pickands 1975), with the shape 0 for light tails.
_TAIL_FROM = 0.8
_STEPS = 16
_MIN_SPREAD = 1e-3  # below, a spread is rounding

Tensors = dict[str, tf.Tensor]


def fit_novelty(
    task: TaskName,
    references: np.ndarray,
    held_out: dict[str, np.ndarray],
    held_out_references: np.ndarray | None = None,
) -> Callable[[Tensors], tf.Tensor]:
    """Returns the function from a network's ``logits`` and ``embedding`` to novelty, float32 ``[n]``, 0 to 1.

    Novelty is the share of the held-out images that are less novel; beyond the highest fifth of them it goes on rising
    towards 1.

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

    def compute_novelty(outputs: Tensors) -> tf.Tensor:
        total = tf.reduce_sum(tf.math.softplus((measure(outputs) - means) / spreads), axis=-1)
        steps = tf.clip_by_value((total[:, None] - knots[:-1]) / widths, 0.0, 1.0)
        tail = -tf.math.expm1(-tf.nn.relu(total - knots[-1]) / scale)
        return _TAIL_FROM * tf.reduce_mean(steps, axis=-1) + (1 - _TAIL_FROM) * tail

    return compute_novelty


def _make_measure(task: TaskName, references: np.ndarray) -> Callable[[Tensors], tf.Tensor]:
    """Returns the function from a network's outputs to its scores, float32 ``[n, scores]``; high ones are novel."""
    unit = _make_unit(tf.constant(references)).numpy()
    count = min(_DIRECTIONS, max(1, _MAX_NUMBERS // sum(unit.shape)), *unit.shape)
    _, _, rows = randomized_svd(unit, count, n_iter=2, random_state=0)
    directions = rows.T.astype(np.float32)
    neighbours = (unit @ directions).T.astype(np.float32)

    def measure(outputs: Tensors) -> tf.Tensor:
        embedding = _make_unit(outputs["embedding"]) @ directions
        scores = [-tf.reduce_max(embedding @ neighbours, axis=-1)]
        if task == "classification":
            scores.append(-tf.reduce_logsumexp(outputs["logits"], axis=-1))
        return tf.stack(scores, axis=-1)

    return measure


def _make_unit(embeddings: tf.Tensor) -> tf.Tensor:
    """Takes the square root of each number, with its sign, and divides each row by its length."""
    return tf.math.l2_normalize(tf.sign(embeddings) * tf.sqrt(tf.abs(embeddings)), axis=-1)
