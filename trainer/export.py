"""Export: one SavedModel that takes raw images, with preprocessing inside and the signatures of the contract.

Signatures (n = batch, k = outputs):

- ``serving_default``: ``input`` string [n], encoded images; ``metadata`` string [n]; side features [n], if any
  → ``classes`` float [n, k], ``label`` string [n], ``score`` float [n], ``metadata`` string [n].
- ``tf_examples``: ``examples`` string [n], serialized Examples → the same.
- ``transform_features``: ``examples`` string [n] → what Transform makes, the target included (for the Evaluator).

Beside the signatures are the two halves of ``serving_default`` as functions, for a server that decodes each request by
itself and asks the network about many at once: ``preprocess``, from ``input`` and side features to what Transform makes
of them, and ``answer``, from that to ``classes``, ``label`` and ``score``.

By task:

- classification: ``classes`` are probabilities that add up to 1, ``label`` the best class, ``score`` its probability.
- multilabel: ``classes`` are probabilities of their own, ``label`` the labels at or above their thresholds, joined by |
  in the order of ``classes`` ('' if there are none), ``score`` the highest probability.
- regression: ``classes`` [n, 1] and ``score`` are the value, ``label`` is its text.

The names of the outputs in the order of ``classes`` are ``assets/labels``: the vocabulary of the transform graph; of a
regression the target's feature. ``assets/task`` names the task.
"""

import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

import tensorflow as tf
import tensorflow_transform as tft

from imagepipe.base.features import IMAGE, LABEL_SEPARATOR, LABELS_VOCABULARY, Features
from imagepipe.base.names import TaskName
from trainer.config import list_thresholds
from transform import graph

Raw = dict[str, tf.Tensor]
FeatureSpec = dict[str, tf.io.FixedLenFeature | tf.io.VarLenFeature]

_DIGITS = 7  # what a float32 holds


def example_parser(output: tft.TFTransformOutput, features: Features, with_label: bool) -> Callable[[tf.Tensor], Raw]:
    """Makes the function that parses serialized Examples, string ``[n]``, into the transform graph's raw features."""
    spec: FeatureSpec = output.raw_feature_spec()
    wanted = [features.input, *features.side, *([features.label] if with_label else [])]
    spec = {name: spec[name] for name in wanted}

    def parse(serialized: tf.Tensor) -> Raw:
        return tf.io.parse_example(serialized, spec)

    return parse


def labels(task: TaskName, output: tft.TFTransformOutput, features: Features) -> list[str]:
    """The names of the model's outputs, in their order: classes or labels; of a regression the target's feature."""
    if task == "regression":
        return [features.label]
    return [label.decode() for label in output.vocabulary_by_name(LABELS_VOCABULARY)]


class _Servable(tf.Module):
    """Owns all that the signatures use, so that it is saved with them."""

    def __init__(
        self,
        model: Callable[[Raw], tf.Tensor],
        output: tft.TFTransformOutput,
        features: Features,
        in_words: Callable[[tf.Tensor], tf.Tensor],
        assets: list[str],
    ):
        super().__init__()
        self._model = model
        self._in_words = in_words
        self._assets = [tf.saved_model.Asset(path) for path in assets]
        self._transform_owner, self._transform = graph.load(output)
        self._features = features
        self._raw_spec: FeatureSpec = output.raw_feature_spec()
        self._parse = example_parser(output, features, with_label=False)
        self._parse_with_label = example_parser(output, features, with_label=True)
        self.preprocess = tf.function(self._preprocess).get_concrete_function(**self._request_spec())
        transformed = self.preprocess.structured_outputs
        self.answer = tf.function(self._answer).get_concrete_function(
            **{name: tf.TensorSpec(x.shape, x.dtype, name=name) for name, x in transformed.items()}
        )

    def signatures(self) -> dict[str, Callable]:
        examples = tf.TensorSpec([None], tf.string, name="examples")
        metadata = tf.TensorSpec([None], tf.string, name="metadata")
        return {
            "serving_default": tf.function(self._serve).get_concrete_function(
                **self._request_spec(), metadata=metadata
            ),
            "tf_examples": tf.function(self._serve_examples).get_concrete_function(examples),
            "transform_features": tf.function(self._transform_examples).get_concrete_function(examples),
        }

    def _request_spec(self) -> dict[str, tf.TensorSpec]:
        dtypes = {"input": tf.string} | {name: self._raw_spec[name].dtype for name in self._features.side}
        return {name: tf.TensorSpec([None], dtype, name=name) for name, dtype in dtypes.items()}

    def _serve(self, metadata: tf.Tensor, **request: tf.Tensor) -> Raw:
        return self._answer(**self._preprocess(**request)) | {"metadata": tf.identity(metadata)}

    def _serve_examples(self, examples: tf.Tensor) -> Raw:
        metadata_spec = {self._features.metadata: tf.io.FixedLenFeature([], tf.string, default_value="")}
        metadata = tf.io.parse_example(examples, metadata_spec)[self._features.metadata]
        return self._answer(**self._inputs(self._parse(examples))) | {"metadata": tf.identity(metadata)}

    def _transform_examples(self, examples: tf.Tensor) -> Raw:
        return self._transform(self._parse_with_label(examples))

    def _preprocess(self, **request: tf.Tensor) -> Raw:
        raw = {self._features.input: request["input"]} | {name: request[name] for name in self._features.side}
        return self._inputs({name: _as_parsed(x, self._raw_spec[name]) for name, x in raw.items()})

    def _inputs(self, raw: Raw) -> Raw:
        transformed = self._transform(raw)
        return {name: transformed[name] for name in (IMAGE, *self._features.side)}

    def _answer(self, **inputs: tf.Tensor) -> Raw:
        classes = self._model(inputs)
        return {"classes": classes, "label": self._in_words(classes), "score": tf.reduce_max(classes, axis=-1)}


def _as_parsed(x: tf.Tensor, spec: tf.io.FixedLenFeature | tf.io.VarLenFeature) -> tf.Tensor | tf.SparseTensor:
    """Gives a request's tensor ``[n]`` the form that parsing an Example gives this feature."""
    if isinstance(spec, tf.io.VarLenFeature):
        rows = tf.range(tf.size(x, out_type=tf.int64))
        indices = tf.stack([rows, tf.zeros_like(rows)], axis=1)
        return tf.SparseTensor(indices, x, tf.stack([tf.size(x, out_type=tf.int64), 1]))
    return tf.reshape(x, [-1, *spec.shape])


def in_words(
    task: TaskName, names: list[str], label_thresholds: Mapping[str, float]
) -> Callable[[tf.Tensor], tf.Tensor]:
    """Makes the function from a model's outputs, float ``[n, k]``, to ``label``, string ``[n]``.

    Args:
        task: says what the outputs mean.
        names: of the outputs.
        label_thresholds: by label, where it isn't 0.5.

    Raises:
        ValueError: if ``label_thresholds`` names a label that is not among ``names``.
    """
    thresholds = list_thresholds(names, label_thresholds)

    def best(probabilities: tf.Tensor) -> tf.Tensor:
        return tf.gather(tf.constant(names), tf.argmax(probabilities, axis=-1))

    def all_at_threshold(probabilities: tf.Tensor) -> tf.Tensor:
        said = tf.where(probabilities >= tf.constant(thresholds))  # [m, 2]: row and label, in order
        found = tf.gather(tf.constant(names), said[:, 1])
        return tf.strings.unsorted_segment_join(found, said[:, 0], tf.shape(probabilities)[0], LABEL_SEPARATOR)

    def value(values: tf.Tensor) -> tf.Tensor:
        return tf.strings.as_string(values[:, 0], precision=_DIGITS, shortest=True)

    return {"classification": best, "multilabel": all_at_threshold, "regression": value}[task]


def save(
    model: Callable[[Raw], tf.Tensor],
    output: tft.TFTransformOutput,
    features: Features,
    task: TaskName,
    label_thresholds: Mapping[str, float],
    path: str,
) -> None:
    """Writes the SavedModel.

    Args:
        model: from a dict of ``image`` and side features to the task's outputs ``[n, k]``, see ``trainer.model`` and
            ``trainer.optimize``.
        output: what Transform wrote.
        features: which feature of an Example is what.
        task: what the outputs mean.
        label_thresholds: of a multilabel task: by label, from which probability on it is said, where not from 0.5.
        path: the folder to make.

    Raises:
        ValueError: if ``label_thresholds`` names a label that training has not seen.
    """
    names = labels(task, output, features)
    assets = {"task": task} | ({LABELS_VOCABULARY: "\n".join(names)} if task == "regression" else {})
    with tempfile.TemporaryDirectory() as folder:
        for name, text in assets.items():
            (Path(folder) / name).write_text(f"{text}\n")
        servable = _Servable(
            model, output, features, in_words(task, names, label_thresholds), [f"{folder}/{name}" for name in assets]
        )
        tf.saved_model.save(servable, path, signatures=servable.signatures())
