"""Export: one SavedModel that takes raw images, with preprocessing inside and the signatures of the contract.

Signatures (n = batch, k = classes):

- ``serving_default``: ``input`` string [n], encoded images; ``metadata`` string [n]; side features [n], if any
  → ``classes`` float [n, k], ``label`` string [n], ``score`` float [n], ``metadata`` string [n].
- ``tf_examples``: ``examples`` string [n], serialized Examples → the same.
- ``transform_features``: ``examples`` string [n] → what Transform makes, the target included (for the Evaluator).

The class names in the order of ``classes`` are ``assets/labels``: the vocabulary of the transform graph.
"""

from collections.abc import Callable

import keras
import tensorflow as tf
import tensorflow_transform as tft

from transform import graph
from transform.features import IMAGE, LABELS_VOCABULARY, Features

Raw = dict[str, tf.Tensor]
FeatureSpec = dict[str, tf.io.FixedLenFeature | tf.io.VarLenFeature]


def example_parser(output: tft.TFTransformOutput, features: Features, with_label: bool) -> Callable[[tf.Tensor], Raw]:
    """Makes the function that parses serialized Examples, string ``[n]``, into the transform graph's raw features."""
    spec: FeatureSpec = output.raw_feature_spec()
    wanted = [features.input, *features.side, *([features.label] if with_label else [])]
    spec = {name: spec[name] for name in wanted}

    def parse(serialized: tf.Tensor) -> Raw:
        return tf.io.parse_example(serialized, spec)

    return parse


def labels(output: tft.TFTransformOutput) -> list[str]:
    """The class names, in the order of their indices."""
    return [label.decode() for label in output.vocabulary_by_name(LABELS_VOCABULARY)]


class _Servable(tf.Module):
    """Owns all that the signatures use, so that it is saved with them."""

    def __init__(self, model: keras.Model, output: tft.TFTransformOutput, features: Features):
        super().__init__()
        self._model = model
        self._transform_owner, self._transform = graph.load(output)
        self._features = features
        self._labels = tf.constant(labels(output))
        self._raw_spec: FeatureSpec = output.raw_feature_spec()
        self._parse = example_parser(output, features, with_label=False)
        self._parse_with_label = example_parser(output, features, with_label=True)

    def signatures(self) -> dict[str, Callable]:
        examples = tf.TensorSpec([None], tf.string, name="examples")
        serving = {key: tf.TensorSpec([None], tf.string, name=key) for key in ("input", "metadata")}
        for name in self._features.side:
            serving[name] = tf.TensorSpec([None], self._raw_spec[name].dtype, name=name)
        return {
            "serving_default": tf.function(self._serve).get_concrete_function(**serving),
            "tf_examples": tf.function(self._serve_examples).get_concrete_function(examples),
            "transform_features": tf.function(self._transform_examples).get_concrete_function(examples),
        }

    def _serve(self, **request: tf.Tensor) -> Raw:
        raw = {self._features.input: request["input"]} | {name: request[name] for name in self._features.side}
        return self._predict(
            {name: _as_parsed(x, self._raw_spec[name]) for name, x in raw.items()}, request["metadata"]
        )

    def _serve_examples(self, examples: tf.Tensor) -> Raw:
        metadata_spec = {self._features.metadata: tf.io.FixedLenFeature([], tf.string, default_value="")}
        metadata = tf.io.parse_example(examples, metadata_spec)[self._features.metadata]
        return self._predict(self._parse(examples), metadata)

    def _transform_examples(self, examples: tf.Tensor) -> Raw:
        return self._transform(self._parse_with_label(examples))

    def _predict(self, raw: Raw, metadata: tf.Tensor) -> Raw:
        transformed = self._transform(raw)
        probabilities = self._model({name: transformed[name] for name in (IMAGE, *self._features.side)}, training=False)
        return {
            "classes": probabilities,
            "label": tf.gather(self._labels, tf.argmax(probabilities, axis=-1)),
            "score": tf.reduce_max(probabilities, axis=-1),
            "metadata": tf.identity(metadata),
        }


def _as_parsed(x: tf.Tensor, spec: tf.io.FixedLenFeature | tf.io.VarLenFeature) -> tf.Tensor | tf.SparseTensor:
    """Gives a request's tensor ``[n]`` the form that parsing an Example gives this feature."""
    if isinstance(spec, tf.io.VarLenFeature):
        rows = tf.range(tf.size(x, out_type=tf.int64))
        indices = tf.stack([rows, tf.zeros_like(rows)], axis=1)
        return tf.SparseTensor(indices, x, tf.stack([tf.size(x, out_type=tf.int64), 1]))
    return tf.reshape(x, [-1, *spec.shape])


def save(model: keras.Model, output: tft.TFTransformOutput, features: Features, path: str) -> None:
    """Writes the SavedModel.

    Args:
        model: from a dict of ``image`` and side features to probabilities ``[n, k]``, see ``trainer.model``.
        output: what Transform wrote.
        features: which feature of an Example is what.
        path: the folder to make.
    """
    servable = _Servable(model, output, features)
    tf.saved_model.save(servable, path, signatures=servable.signatures())
