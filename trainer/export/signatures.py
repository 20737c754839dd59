"""Export: one SavedModel that takes raw images, with preprocessing inside and the signatures of the contract.

Signatures (n = batch, k = outputs):

- ``serving_default``: ``input`` string [n], encoded images; ``metadata`` string [n]; side features [n], if any (a
  number that was missing in some training Examples is float, and NaN where it is missing)
  → ``classes`` float [n, k], ``label`` string [n], ``score`` and ``novelty`` float [n], ``metadata`` string [n].
- ``tf_examples``: ``examples`` string [n], serialized Examples → the same.
- ``embed``: ``input`` and ``metadata`` as above → ``embedding`` float [n, d], the backbone's averaged features, and
  ``metadata``.
- ``transform_features``: ``examples`` string [n] → the transformed features, target included (for the Evaluator).

Beside the signatures are the two halves of ``serving_default`` as functions, for a server that decodes each request by
itself and runs the network on many at once: ``preprocess``, from ``input`` and side features to transformed features,
and ``answer``, from these to ``classes``, ``label``, ``score``, ``novelty`` and ``embedding`` (which captured traffic
has, and no caller gets).

The answers by task: ``trainer.export.answers``.

``assets/labels`` has the names of the outputs in the order of ``classes``: the vocabulary of the transform graph; for
regression the label feature. ``assets/task`` names the task.
"""

import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import tensorflow as tf
import tensorflow_transform as tft

from imagepipe.base.features import IMAGE, LABELS_VOCABULARY, MISSING_FLAG, TRANSFORMED, Features
from imagepipe.base.labels import encode_names
from imagepipe.base.names import TASK_ASSET, TaskName
from trainer.export.answers import Tensors
from transform.examples import FeatureSpec, Raw, load_graph, make_parser

_EXAMPLES = tf.TensorSpec([None], tf.string, name="examples")


class _Preprocessing(tf.Module):
    """Owns the Transform graph and the assets, so that they are saved with it."""

    def __init__(self, transform_output: tft.TFTransformOutput, features: Features, assets: list[str]):
        super().__init__()
        self._assets = [tf.saved_model.Asset(path) for path in assets]
        self._transform_owner, self._transform = load_graph(transform_output)
        self._features = features
        self._raw_spec: FeatureSpec = transform_output.raw_feature_spec()
        self._parse = make_parser(transform_output, features, with_label=False)
        self._parse_with_label = make_parser(transform_output, features, with_label=True)
        self.preprocess = tf.function(self._preprocess).get_concrete_function(**self._make_request_spec())

    def make_transform_signature(self) -> Callable:
        return tf.function(self._transform_examples).get_concrete_function(_EXAMPLES)

    def _make_request_spec(self) -> dict[str, tf.TensorSpec]:
        dtypes = {"input": tf.string} | {name: self._raw_spec[name].dtype for name in self._features.side}
        for name in self._features.numeric:
            if isinstance(self._raw_spec[name], tf.io.VarLenFeature):
                dtypes[name] = tf.float32  # whole numbers have no NaN, for those that are missing
        return {name: tf.TensorSpec([None], dtype, name=name) for name, dtype in dtypes.items()}

    def _preprocess(self, **request: tf.Tensor) -> Tensors:
        raw = {self._features.input: request["input"]} | {name: request[name] for name in self._features.side}
        return self._transform_inputs({name: _imitate_parsing(x, self._raw_spec[name]) for name, x in raw.items()})

    def _transform_examples(self, examples: tf.Tensor) -> Tensors:
        return self._transform(self._parse_with_label(examples))

    def _transform_inputs(self, raw: Raw) -> Tensors:
        transformed = self._transform(raw)
        flags = [MISSING_FLAG + name for name in self._features.numeric if MISSING_FLAG + name in transformed]
        return {name: transformed[name] for name in (IMAGE, *(TRANSFORMED + x for x in self._features.side), *flags)}


class _Servable(_Preprocessing):
    """Owns everything that the signatures use, so that it is saved with them."""

    def __init__(
        self,
        network: Callable[[Tensors], Tensors],
        answers: Callable[[Tensors], Tensors],
        transform_output: tft.TFTransformOutput,
        features: Features,
        assets: list[str],
    ):
        super().__init__(transform_output, features, assets)
        self._network = network
        transformed = self.preprocess.structured_outputs
        inputs = {name: tf.TensorSpec(x.shape, x.dtype) for name, x in transformed.items()}
        outputs = tf.function(network).get_concrete_function(inputs).structured_outputs
        # One function for all signatures: each that traced it anew would have its own copy of the embeddings in it.
        self._answers = tf.function(answers).get_concrete_function(
            {name: tf.TensorSpec(x.shape, x.dtype) for name, x in outputs.items()}
        )
        self.answer = tf.function(self._answer_and_embed).get_concrete_function(
            **{name: tf.TensorSpec(x.shape, x.dtype, name=name) for name, x in transformed.items()}
        )

    def make_signatures(self) -> dict[str, Callable]:
        metadata = tf.TensorSpec([None], tf.string, name="metadata")
        return {
            "serving_default": tf.function(self._serve).get_concrete_function(
                **self._make_request_spec(), metadata=metadata
            ),
            "tf_examples": tf.function(self._serve_examples).get_concrete_function(_EXAMPLES),
            "embed": tf.function(self._embed).get_concrete_function(
                input=tf.TensorSpec([None], tf.string, name="input"), metadata=metadata
            ),
            "transform_features": self.make_transform_signature(),
        }

    def _serve(self, metadata: tf.Tensor, **request: tf.Tensor) -> Tensors:
        return self._answer(**self._preprocess(**request)) | {"metadata": tf.identity(metadata)}

    def _serve_examples(self, examples: tf.Tensor) -> Tensors:
        metadata_spec = {self._features.metadata: tf.io.FixedLenFeature([], tf.string, default_value="")}
        metadata = tf.io.parse_example(examples, metadata_spec)[self._features.metadata]
        return self._answer(**self._transform_inputs(self._parse(examples))) | {"metadata": tf.identity(metadata)}

    def _embed(self, input: tf.Tensor, metadata: tf.Tensor) -> Tensors:
        name = self._features.input
        image = self._transform({name: _imitate_parsing(input, self._raw_spec[name])})[IMAGE]
        # The embedding depends on the image alone; the network's graph has its side features all the same.
        blank = {
            name: tf.zeros(tf.shape(metadata), x.dtype)
            for name, x in self.preprocess.structured_outputs.items()
            if name != IMAGE
        }
        return {"embedding": self._network({IMAGE: image, **blank})["embedding"], "metadata": tf.identity(metadata)}

    def _answer(self, **inputs: tf.Tensor) -> Tensors:
        return self._answers(self._network(inputs))

    def _answer_and_embed(self, **inputs: tf.Tensor) -> Tensors:
        outputs = self._network(inputs)
        return self._answers(outputs) | {"embedding": outputs["embedding"]}


class _ServableAround(_Preprocessing):
    """The graph around a network that another engine computes."""

    def __init__(
        self,
        answers: Callable[[Tensors], Tensors],
        outputs: Mapping[str, tf.TensorSpec],
        transform_output: tft.TFTransformOutput,
        features: Features,
        assets: list[str],
    ):
        super().__init__(transform_output, features, assets)
        self.preprocess_examples = tf.function(
            lambda examples: self._transform_inputs(self._parse(examples))
        ).get_concrete_function(_EXAMPLES)
        self.answers = tf.function(lambda **outputs: answers(outputs)).get_concrete_function(**outputs)


def _imitate_parsing(x: tf.Tensor, spec: tf.io.FixedLenFeature | tf.io.VarLenFeature) -> tf.Tensor | tf.SparseTensor:
    """Converts a request's tensor ``[n]`` to the form in which this feature is parsed from an Example.

    A number that is NaN or infinite is missing there, if it may be.
    """
    if isinstance(spec, tf.io.VarLenFeature):
        rows = tf.where(tf.math.is_finite(x)) if x.dtype == tf.float32 else tf.where(tf.ones_like(x, tf.bool))
        values = tf.cast(tf.gather(x, rows[:, 0]), spec.dtype)
        return tf.SparseTensor(tf.pad(rows, [[0, 0], [0, 1]]), values, tf.stack([tf.size(x, out_type=tf.int64), 1]))
    return tf.reshape(x, [-1, *spec.shape])


def save_model(
    network: Callable[[Tensors], Tensors],
    answers: Callable[[Tensors], Tensors],
    transform_output: tft.TFTransformOutput,
    features: Features,
    task: TaskName,
    path: str,
) -> None:
    """Writes the SavedModel.

    Args:
        network: from a dict of ``image`` and side features to ``logits`` and ``embedding``, see ``trainer.network`` and
            ``trainer.export.optimize``.
        answers: from these to the answers, see ``trainer.export.answers``.
        transform_output: output of the Transform component.
        features: names of the features in an Example.
        task: gives the meaning of the outputs.
        path: the folder to create.
    """
    with _write_assets(task, features) as assets:
        servable = _Servable(network, answers, transform_output, features, assets)
        tf.saved_model.save(servable, path, signatures=servable.make_signatures())


def save_model_around(
    answers: Callable[[Tensors], Tensors],
    outputs: Mapping[str, tf.TensorSpec],
    transform_output: tft.TFTransformOutput,
    features: Features,
    task: TaskName,
    path: str,
) -> None:
    """Writes the SavedModel without its network, for a server in which another engine computes that.

    Of the signatures it has ``transform_features``. Its functions are ``preprocess``, as in the whole SavedModel;
    ``preprocess_examples``, the same of ``examples``, serialized ones, string ``[n]``; and ``answers``, from ``logits``
    float ``[n, k]`` and ``embedding`` float ``[n, d]`` to ``classes``, ``label``, ``score`` and ``novelty``.

    Args:
        answers: see ``trainer.export.answers``.
        outputs: of the network, which ``answers`` takes.
        transform_output: output of the Transform component.
        features: names of the features in an Example.
        task: gives the meaning of the outputs.
        path: the folder to create.
    """
    with _write_assets(task, features) as assets:
        servable = _ServableAround(answers, outputs, transform_output, features, assets)
        signatures = {"transform_features": servable.make_transform_signature()}
        tf.saved_model.save(servable, path, signatures=signatures)


@contextmanager
def _write_assets(task: TaskName, features: Features) -> Iterator[list[str]]:
    """Writes the files that stand beside the graph's own in ``assets``, for as long as it takes to save them."""
    assets = {TASK_ASSET: f"{task}\n".encode()}
    if task == "regression":
        assets[LABELS_VOCABULARY] = encode_names([features.label])
    with tempfile.TemporaryDirectory() as folder:
        for name, content in assets.items():
            (Path(folder) / name).write_bytes(content)
        yield [f"{folder}/{name}" for name in assets]
