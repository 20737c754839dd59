"""A linear model on the features of a frozen network: what they tell about the targets, in seconds.

Multinomial logistic regression, one logistic regression per label, or ridge regression, with a penalty on the squared
weights; the loss is minimized by L-BFGS (Liu, Nocedal 1989). The penalty is the one with the smallest loss in a 3-fold
cross-validation. That choice is what matters: on 500 photos of flowers the log loss on others was 0.39 with the best
and 0.54 with a hundredth of it. Radford et al. 2021 (CLIP, appendix A.3) choose it likewise, on a logarithmic grid.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from scipy.optimize import minimize
from scipy.special import expit, log_softmax, softmax
from sklearn.model_selection import GroupKFold, StratifiedGroupKFold
from threadpoolctl import threadpool_limits

from imagepipe.base.names import TaskName

MAX_ROWS = 50_000
"""Maximum number of rows that are learned from; of more, a random sample."""

FOLDS = 5
"""Number of parts of which each is predicted from the others."""

_MAX_WORK = 2**34  # multiplications in one pass over the rows; with many classes fewer rows are learned from
_MIN_ROWS = 5000  # that are learned from whatever the work
# Of L-BFGS's many small products, several threads wait for each other longer than they work: on 2 busy cores 500 x 1280
# took 0.7 s with one and 14 s with two, 50,000 x 2048 23 s and 224 s.
_THREADS = 1
_CHOICE_ROWS = 3000  # that the penalty is chosen on, at most
_CHOICE_FOLDS = 3
# By the square root of 10, from strong to weak. Rows have a mean squared length of 1: a penalty p expects a linear
# output with a standard deviation of 1 / sqrt(p).
_PENALTIES = 10.0 ** np.arange(1, -4.5, -0.5)
_MAX_STEPS, _MAX_CHOICE_STEPS = 300, 60
_TOLERANCE = 1e-6  # relative change of the loss at which L-BFGS stops


class LinearProbe(NamedTuple):
    """A linear model in the units of the features that it was given, to start a dense layer from.

    Attributes:
        task: what the outputs are.
        weights: float32 ``[d, k]``.
        bias: float32 ``[k]``.
    """

    task: TaskName
    weights: np.ndarray
    bias: np.ndarray

    def predict(self, features: np.ndarray) -> np.ndarray:
        """Returns probabilities of the classes, or of each label, or the number: float32 ``[n, k]``.

        Args:
            features: floats ``[n, d]``.
        """
        linear = features.astype(np.float32, copy=False) @ self.weights + self.bias
        match self.task:
            case "classification":
                return softmax(linear, axis=1)
            case "multilabel":
                return expit(linear)
            case "regression":
                return linear


class _Rows(NamedTuple):
    """Rows to fit a model to.

    Attributes:
        inputs: float32 ``[n, d]``.
        targets: float32 ``[n, k]``.
        importance: float32 ``[n]``.
        groups: int ``[n]``.
    """

    inputs: np.ndarray
    targets: np.ndarray
    importance: np.ndarray
    groups: np.ndarray

    def take(self, indices: np.ndarray) -> "_Rows":
        return _Rows(*(array[indices] for array in self))


def fit_probe(
    features: np.ndarray,
    targets: np.ndarray,
    task: TaskName,
    outputs: int,
    groups: np.ndarray | None = None,
    importance: np.ndarray | None = None,
) -> LinearProbe:
    """Fits a linear model.

    Args:
        features: floats ``[n, d]``, of one example or more.
        targets: as ``trainer.tasks.Task.compact`` returns them: indices of classes, int ``[n]``; a bit for each label,
            uint8 ``[n, ceil(k / 8)]``; or numbers, ``[n, 1]``.
        task: what is learned.
        outputs: number of classes or labels; 1 for regression.
        groups: number of each example's group, int ``[n]``: the penalty is chosen by how well those of other groups are
            predicted. By default each example is its own.
        importance: weight of each example's loss, float ``[n]``, 0 or more; by default all count the same.
    """
    chosen = _sample(len(targets), _count_rows(features.shape[1], outputs))
    groups, importance = _fill_in(len(targets), groups, importance)
    with threadpool_limits(_THREADS):
        rows, scaler = _prepare(features[chosen], targets[chosen], task, outputs, groups[chosen], importance[chosen])
        return scaler.restore(_fit(rows, task, _choose_penalty(rows, task), _MAX_STEPS), task)


def predict_out_of_fold(
    features: np.ndarray,
    targets: np.ndarray,
    task: TaskName,
    outputs: int,
    groups: np.ndarray | None = None,
    importance: np.ndarray | None = None,
) -> np.ndarray:
    """Predicts each example by a model that was fitted to others.

    Args:
        features: see ``fit_probe``.
        targets: likewise, of at least FOLDS examples.
        task: likewise.
        outputs: likewise.
        groups: number of each example's group, int ``[n]``, at least FOLDS different ones: those of one group are
            predicted by the same model, which has seen none of them. By default each example is its own.
        importance: see ``fit_probe``.

    Returns:
        float32 ``[n, outputs]``, see ``LinearProbe.predict``. The penalty alone, one number, was chosen on all.
    """
    groups, importance = _fill_in(len(targets), groups, importance)
    predicted = np.empty((len(targets), outputs), np.float32)
    with threadpool_limits(_THREADS):
        rows, scaler = _prepare(features, targets, task, outputs, groups, importance)
        penalty = _choose_penalty(rows, task)
        for learned, judged in _split(groups, FOLDS, targets if task == "classification" else None):
            some = learned[_sample(len(learned), _count_rows(features.shape[1], outputs))]
            probe = scaler.restore(_fit(rows.take(some), task, penalty, _MAX_STEPS), task)
            predicted[judged] = probe.predict(features[judged])
    return predicted


def _fill_in(count: int, groups: np.ndarray | None, importance: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """Returns groups and importance; by default each example is its own group, and all count the same."""
    return np.arange(count) if groups is None else groups, np.ones(count) if importance is None else importance


def _split(
    groups: np.ndarray, folds: int, classes: np.ndarray | None = None
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields the indices of what is learned from and of what is judged, with as much of each class in every fold."""
    if classes is not None and np.bincount(classes).max() >= folds:
        return StratifiedGroupKFold(folds, shuffle=True, random_state=0).split(classes, classes, groups)
    names, numbers = np.unique(groups, return_inverse=True)
    # Of groups of one size it takes those with the lowest numbers first; not all versions can shuffle by themselves.
    shuffled = np.random.default_rng(0).permutation(len(names))[numbers]
    return GroupKFold(folds).split(shuffled, groups=shuffled)


def _count_rows(width: int, outputs: int) -> int:
    return min(MAX_ROWS, max(_MIN_ROWS, _MAX_WORK // (width * outputs)))


def _sample(count: int, maximum: int) -> np.ndarray:
    """Returns the indices of at most so many of ``count`` rows, drawn at random, always the same ones."""
    if count <= maximum:
        return np.arange(count)
    return np.sort(np.random.default_rng(0).choice(count, maximum, replace=False))


class _Scaler(NamedTuple):
    """The way back from the rows to the units of the features.

    Attributes:
        mean: of the features, ``[d]``.
        length: the root of the mean squared length of the centred rows.
        basis: ``[d, r]``, an orthonormal basis of fewer rows than features; the penalty is the same in it. Else None.
        target_mean: of the numbers; 0 for other tasks.
        target_deviation: their standard deviation; 1 for other tasks.
    """

    mean: np.ndarray
    length: float
    basis: np.ndarray | None
    target_mean: float
    target_deviation: float

    def restore(self, parameters: np.ndarray, task: TaskName) -> LinearProbe:
        """Returns the model in the units of the features."""
        weights = parameters[:-1] if self.basis is None else self.basis @ parameters[:-1]
        weights = weights * (self.target_deviation / self.length)
        bias = parameters[-1] * self.target_deviation + self.target_mean - self.mean @ weights
        return LinearProbe(task, weights.astype(np.float32), bias.astype(np.float32))


def _prepare(
    features: np.ndarray,
    targets: np.ndarray,
    task: TaskName,
    outputs: int,
    groups: np.ndarray,
    importance: np.ndarray,
) -> tuple[_Rows, _Scaler]:
    # All features are divided by the same number. Divided by a deviation each, those that hardly vary would count as
    # much as the others; the log loss on the flowers was 0.41 instead of 0.39.
    mean = features.mean(axis=0, dtype=np.float64)
    inputs = features.astype(np.float32)
    inputs -= mean.astype(np.float32)
    length = float(np.sqrt(np.square(inputs).sum(axis=1, dtype=np.float64).mean())) or 1.0
    inputs /= length
    basis = None
    if len(inputs) < inputs.shape[1]:
        basis = np.linalg.qr(inputs.T)[0]
        inputs = inputs @ basis
    target_mean, target_deviation = 0.0, 1.0
    if task == "classification":
        encoded = np.eye(outputs, dtype=np.float32)[targets]
    elif task == "multilabel":
        encoded = np.unpackbits(targets, axis=1, count=outputs).astype(np.float32)
    else:
        numbers = targets.reshape(-1, outputs).astype(np.float64)  # in which equal ones have a deviation of exactly 0
        target_mean, target_deviation = float(numbers.mean()), float(numbers.std()) or 1.0
        encoded = ((numbers - target_mean) / target_deviation).astype(np.float32)
    rows = _Rows(inputs, encoded, (importance / importance.mean()).astype(np.float32), groups)
    return rows, _Scaler(mean, length, basis, target_mean, target_deviation)


def _choose_penalty(rows: _Rows, task: TaskName) -> float:
    """Goes from strong penalties to weak ones until the loss in the cross-validation rises."""
    rows = rows.take(_sample(len(rows.inputs), _CHOICE_ROWS))
    count = min(_CHOICE_FOLDS, len(np.unique(rows.groups)))
    if count < 2:  # nothing tells how well others would be predicted
        return float(_PENALTIES[0])
    folds = list(_split(rows.groups, count))
    learned, judged = ([rows.take(fold[side]) for fold in folds] for side in (0, 1))
    width, outputs = rows.inputs.shape[1], rows.targets.shape[1]
    fitted = [np.zeros((width + 1, outputs))] * len(folds)
    best, minimum = _PENALTIES[0], np.inf
    for penalty in _PENALTIES:
        # The model of one penalty is near that of the next.
        fitted = [_fit(some, task, penalty, _MAX_CHOICE_STEPS, at) for some, at in zip(learned, fitted, strict=True)]
        loss = sum(_compute_loss(parameters, some, task)[0] for parameters, some in zip(fitted, judged, strict=True))
        if loss > minimum:
            break
        best, minimum = penalty, loss
    return float(best)


def _fit(rows: _Rows, task: TaskName, penalty: float, steps: int, start: np.ndarray | None = None) -> np.ndarray:
    """Returns weights and, as the last row, the bias that minimize the loss and the penalty: float64 ``[d + 1, k]``."""
    shape = rows.inputs.shape[1] + 1, rows.targets.shape[1]
    count = len(rows.inputs)

    def evaluate(flat: np.ndarray) -> tuple[float, np.ndarray]:
        parameters = flat.reshape(shape)
        loss, gradient = _compute_loss(parameters, rows, task)
        penalized = parameters * penalty
        penalized[-1] = 0  # the bias is free
        loss += float((penalized * parameters).sum()) / 2
        return loss / count, ((gradient + penalized) / count).ravel()

    initial = np.zeros(shape) if start is None else start
    options = {"maxiter": steps, "maxfun": 2 * steps, "ftol": _TOLERANCE, "gtol": 1e-6}
    return minimize(evaluate, initial.ravel(), jac=True, method="L-BFGS-B", options=options).x.reshape(shape)


def _compute_loss(parameters: np.ndarray, rows: _Rows, task: TaskName) -> tuple[float, np.ndarray]:
    """Returns the loss, summed over the rows, and its gradient."""
    weights, bias = parameters[:-1].astype(np.float32), parameters[-1].astype(np.float32)
    linear = rows.inputs @ weights + bias
    match task:
        case "classification":
            log_probabilities = log_softmax(linear, axis=1)
            losses, errors = -rows.targets * log_probabilities, np.exp(log_probabilities) - rows.targets
        case "multilabel":
            losses, errors = np.logaddexp(0, linear) - rows.targets * linear, expit(linear) - rows.targets
        case "regression":
            errors = linear - rows.targets
            losses = errors**2 / 2
    errors *= rows.importance[:, None]
    gradient = np.concatenate([rows.inputs.T @ errors, errors.sum(axis=0, keepdims=True)])
    return float(rows.importance @ losses.sum(axis=1)), gradient.astype(np.float64)
