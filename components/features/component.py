"""Features: the images as the frozen, pretrained backbone sees them, a vector each.

Only where a training starts from pretrained weights. Colours and edges, which DataCheck looks at, say little of what an
image shows.
"""

import itertools
import json
import logging
from collections.abc import Iterator
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf
import tensorflow_transform as tft
from tfx.dsl.component.experimental.annotations import InputArtifact, OutputArtifact, Parameter
from tfx.dsl.component.experimental.decorators import component
from tfx.types import artifact_utils, standard_artifacts

from components.artifacts import local_outputs
from imagepipe.base.features import parse_features
from imagepipe.base.names import FEATURES
from trainer.config import TrainerConfig
from trainer.feature_file import MAX_IMAGES, write_features
from trainer.features import compute_features, load_backbone
from transform.examples import make_sampler, read_serialized

_log = logging.getLogger("trainer")


@component
def Features(  # noqa: N802 (makes a component)
    examples: InputArtifact[standard_artifacts.Examples],
    transform_graph: InputArtifact[standard_artifacts.TransformGraph],
    features: OutputArtifact[standard_artifacts.InferenceResult],
    names: Parameter[str],
    trainer: Parameter[str],
    image_size: Parameter[str],
) -> None:
    """Writes the features of the images of all splits to the file FEATURES, see ``trainer.feature_file``.

    Args:
        examples: channel of the Examples.
        transform_graph: channel of Transform's output.
        features: the output.
        names: names of an Example's features, as JSON.
        trainer: backbone and weights, a ``TrainerConfig`` as JSON.
        image_size: (height, width) in pixels, as JSON.

    Raises:
        WeightsError: if the weights are not available or don't fit.
    """
    height, width = json.loads(image_size)
    keras.utils.clear_session()
    backbone = load_backbone(TrainerConfig(**json.loads(trainer)), (height, width))
    transform_output = tft.TFTransformOutput(transform_graph.uri)
    splits = {
        name: read_serialized(artifact_utils.get_split_uri([examples], name))
        for name in artifact_utils.decode_split_names(examples.split_names)
    }

    def list_rows() -> Iterator[tuple[str, int, np.ndarray]]:
        for name, (indices, serialized) in sample_examples(splits, MAX_IMAGES).items():
            rows = compute_features(serialized, transform_output, parse_features(json.loads(names)), backbone)
            # The rows come first: zip must not take an index for which there is no row.
            yield from ((name, index, row) for row, index in zip(rows, indices, strict=False))

    with local_outputs({"features": [features]}):
        folder = Path(features.uri)
        folder.mkdir(parents=True, exist_ok=True)
        write_features(list_rows(), backbone.output_shape[-1], folder / FEATURES)


def sample_examples(
    splits: dict[str, tf.data.Dataset], maximum: int
) -> dict[str, tuple[Iterator[int], tf.data.Dataset]]:
    """Returns indices and Examples of each split: all, or of more than ``maximum`` a sample by their hash."""
    total = sum(1 for serialized in splits.values() for _ in serialized)
    if total <= maximum:
        return {name: (itertools.count(), serialized) for name, serialized in splits.items()}
    _log.info("%d images are more than %d: the data is looked at by a sample of them", total, maximum)
    is_sampled = make_sampler(maximum, total)
    kept = {
        name: serialized.enumerate().filter(lambda _, record: is_sampled(record)) for name, serialized in splits.items()
    }
    return {
        name: (map(int, chosen.map(lambda index, _: index).as_numpy_iterator()), chosen.map(lambda _, record: record))
        for name, chosen in kept.items()
    }
