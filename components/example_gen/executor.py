"""TFX's executor of ImportExampleGen, with a conversion of each Example.

An Example whose image can't be decoded is left out, and named in the folder LEFT_OUT of the Examples: for DataCheck.
"""

import functools
import json
import zlib
from collections.abc import Iterator
from typing import Any

import apache_beam as beam
import tensorflow as tf
from google.protobuf import wrappers_pb2
from tfx.components.example_gen.import_example_gen import executor
from tfx.proto import example_gen_pb2
from tfx.types import artifact_utils, standard_component_specs
from tfx.utils import proto_utils

from components.example_gen.convert import convert_example, find_split_key, read_metadata
from components.example_gen.left_out import describe_left_out, read_left_out
from imagepipe.base.errors import DataError
from imagepipe.base.images import BadImage
from imagepipe.base.names import LEFT_OUT
from transform.examples import read_serialized

SPLIT_KEY = "_split_key"
"""Feature of an Example while it is on the way to its split, see ``find_split_key``: TFX draws splits by a feature."""


def encode_conversion(names: dict[str, str], label_names: dict[int, str] | None) -> example_gen_pb2.CustomConfig:
    """Returns the arguments of ``convert_example`` and ``find_split_key`` as ImportExampleGen's ``custom_config``.

    Args:
        names: of the features: ``input``, ``label``, ``metadata`` and ``group``, "" if there is none.
        label_names: see ``convert_example``.
    """
    pairs = None if label_names is None else sorted(label_names.items())
    config = example_gen_pb2.CustomConfig()
    config.custom_config.Pack(wrappers_pb2.StringValue(value=json.dumps(names | {"label_names": pairs})))
    return config


def decode_conversion(config: str) -> dict[str, Any]:
    """Returns what ``encode_conversion`` was given, from the JSON that TFX keeps of its result."""
    value = wrappers_pb2.StringValue()
    proto_utils.json_to_proto(config, example_gen_pb2.CustomConfig()).custom_config.Unpack(value)
    arguments = json.loads(value.value)
    pairs = arguments["label_names"]
    return arguments | {"label_names": None if pairs is None else dict(pairs)}


def _convert(example: tf.train.Example, group: str, **conversion: Any) -> Iterator[Any]:
    """Yields the converted Example with its SPLIT_KEY, or for LEFT_OUT a line of JSON with its id and the reason."""
    key = find_split_key(example, conversion["input"], group)
    try:
        converted = convert_example(example, **conversion)
        converted.features.feature[SPLIT_KEY].CopyFrom(key)
        yield converted
    except BadImage as error:
        line = {"id": read_metadata(example, conversion["metadata"]), "reason": str(error)}
        yield beam.pvalue.TaggedOutput(LEFT_OUT, json.dumps(line))


def _drop_split_key(example: tf.train.Example) -> tf.train.Example:
    del example.features.feature[SPLIT_KEY]  # in place: nothing else takes the element, whose image may be large
    return example


class Executor(executor.Executor):
    """Reads TFRecords as TFX does, and converts each Example, see ``convert_example``."""

    def Do(self, input_dict: Any, output_dict: Any, exec_properties: dict[str, Any]) -> None:  # noqa: N802 (TFX's name)
        """Writes the Examples by split, and beside them what is left out.

        Raises:
            DataError: nothing is left of a split.
        """
        examples = output_dict[standard_component_specs.EXAMPLES_KEY]
        self._left_out = f"{artifact_utils.get_single_uri(examples)}/{LEFT_OUT}"
        super().Do(input_dict, output_dict, exec_properties)
        left_out = read_left_out(examples)
        for name in artifact_utils.decode_split_names(examples[0].split_names) if left_out else ():
            if not any(True for _ in read_serialized(artifact_utils.get_split_uri(examples, name)).take(1)):
                raise DataError(f"data.path: no image is left for the split {name}: {describe_left_out(left_out)}")

    def GenerateExamplesByBeam(  # noqa: N802 (TFX's name)
        self, pipeline: beam.Pipeline, exec_properties: dict[str, Any]
    ) -> dict[str, beam.PCollection]:
        """Returns the Examples by split."""
        splits = super().GenerateExamplesByBeam(pipeline, exec_properties)
        dropping = beam.Map(_drop_split_key).with_output_types(tf.train.Example)
        return {name: examples | f"Drop the key of {name}" >> dropping for name, examples in splits.items()}

    def GetInputSourceToExamplePTransform(self) -> beam.PTransform:  # noqa: N802 (TFX's name)
        """Returns the transform from a pattern of files to Examples."""
        folder = self._left_out
        read_records = super().GetInputSourceToExamplePTransform()

        @beam.ptransform_fn
        @beam.typehints.with_input_types(beam.Pipeline)
        @beam.typehints.with_output_types(tf.train.Example)
        def read_and_convert(
            pipeline: beam.Pipeline, exec_properties: dict[str, Any], split_pattern: str
        ) -> beam.PCollection:
            conversion = decode_conversion(exec_properties[standard_component_specs.CUSTOM_CONFIG_KEY])
            converting = beam.FlatMap(functools.partial(_convert, **conversion)).with_output_types(tf.train.Example)
            converted = (
                pipeline
                | read_records(exec_properties, split_pattern)
                | "Convert" >> converting.with_outputs(LEFT_OUT, main="examples")
            )
            # Each pattern is read by itself.
            prefix = f"{folder}/{zlib.crc32(split_pattern.encode()):08x}"
            converted[LEFT_OUT] | "Left out" >> beam.io.WriteToText(prefix, ".jsonl", skip_if_empty=True)
            return converted.examples

        return read_and_convert
