"""Makes an Example that another program wrote into one that the rest of the pipeline takes."""

import hashlib

import tensorflow as tf

from imagepipe.base import tfrecord
from imagepipe.base.errors import DataError
from imagepipe.base.features import read_group
from imagepipe.base.images import BadImage, prepare_for_decoder
from imagepipe.base.kinds import find_format


def convert_example(
    example: tf.train.Example, input: str, label: str, metadata: str, label_names: dict[int, str] | None
) -> tf.train.Example:
    """Names the labels of an Example, and makes its image one that the Transform graph decodes.

    Args:
        example: changed in place.
        input: name of the feature with the image.
        label: name of the feature with the labels.
        metadata: name of the feature that identifies the image in messages.
        label_names: of labels that are whole numbers; None leaves labels unchanged.

    Returns:
        The same Example. What it lacks, it still lacks: that is DataCheck's to find.

    Raises:
        DataError: if a label has no name.
        BadImage: if the image can't be decoded; the message is the reason.
    """
    feature = example.features.feature
    if label_names is not None and label in feature:
        name = read_metadata(example, metadata)
        record = f"the record '{name}'" if name else "a record"
        numbers = list(feature[label].int64_list.value)
        if others := [*feature[label].bytes_list.value, *feature[label].float_list.value]:
            raise DataError(
                f"data.features.label_map: {record} has the label {tfrecord.to_text(others[0])!r}, and a map names "
                "whole numbers only; if labels are names already, leave it out"
            )
        if unnamed := [number for number in numbers if number not in label_names]:
            raise DataError(
                f"data.features.label_map: {record} has the label {unnamed[0]}, which has no name; the map has "
                f"{len(label_names)}, from {min(label_names)} to {max(label_names)}"
            )
        feature[label].bytes_list.value[:] = [label_names[number].encode() for number in numbers]
    images = feature[input].bytes_list.value if input in feature else []
    for place, image in enumerate(images):
        images[place] = _make_decodable(image)
    return example


def _make_decodable(image: bytes) -> bytes:
    """Returns an image as the server hands it to the graph, which decodes it: later a broken one ends the training.

    Raises:
        BadImage: if the graph can't.
    """
    decodable, *_ = prepare_for_decoder(image, decoder_turns=True)
    try:
        if find_format(decodable) == "jpeg":
            tf.io.decode_jpeg(decodable, ratio=8)  # what can be wrong with one is met at any size
        else:
            tf.io.decode_image(decodable, expand_animations=False)
    except tf.errors.InvalidArgumentError as error:
        raise BadImage("broken image: TensorFlow can't decode it") from error
    return decodable


def find_split_key(example: tf.train.Example, input: str, group: str) -> tf.train.Feature:
    """Returns by what an Example's split is drawn: its group or, where it has none, its image as it was written.

    Of the Example as a whole, a label's new name or another version of what encodes images would draw it anew: into the
    eval split, for one, with images that the live model was trained on.

    Args:
        example: that isn't converted yet.
        input: name of the feature with the image.
        group: name of the feature with the group, "" if there is none.
    """
    feature = example.features.feature
    if group in feature and read_group([*feature[group].bytes_list.value, *feature[group].int64_list.value]):
        return feature[group]
    digest = hashlib.sha256(b"".join(feature[input].bytes_list.value) if input in feature else b"").digest()
    return tf.train.Feature(bytes_list=tf.train.BytesList(value=[digest]))


def read_metadata(example: tf.train.Example, metadata: str) -> str:
    """Returns the text that identifies an Example's image; "" if there is none."""
    feature = example.features.feature
    return " ".join(map(tfrecord.to_text, feature[metadata].bytes_list.value)) if metadata in feature else ""
