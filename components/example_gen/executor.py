"""TFX's executor of ImportExampleGen, with a conversion of each Example."""

import functools
import json
from typing import Any

import apache_beam as beam
import tensorflow as tf
from google.protobuf import wrappers_pb2
from tfx.components.example_gen.import_example_gen import executor
from tfx.proto import example_gen_pb2
from tfx.types import standard_component_specs
from tfx.utils import proto_utils

from components.example_gen.convert import convert_example


def encode_conversion(names: dict[str, str], label_names: dict[int, str] | None) -> example_gen_pb2.CustomConfig:
    """Returns the arguments of ``convert_example`` as ImportExampleGen's ``custom_config``.

    Args:
        names: of the features: ``input``, ``label`` and ``metadata``.
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


class Executor(executor.Executor):
    """Reads TFRecords as TFX does, and converts each Example, see ``convert_example``."""

    def GetInputSourceToExamplePTransform(self) -> beam.PTransform:  # noqa: N802 (TFX's name)
        """Returns the transform from a pattern of files to Examples."""
        read_records = super().GetInputSourceToExamplePTransform()

        @beam.ptransform_fn
        @beam.typehints.with_input_types(beam.Pipeline)
        @beam.typehints.with_output_types(tf.train.Example)
        def read_and_convert(
            pipeline: beam.Pipeline, exec_properties: dict[str, Any], split_pattern: str
        ) -> beam.PCollection:
            conversion = decode_conversion(exec_properties[standard_component_specs.CUSTOM_CONFIG_KEY])
            return (
                pipeline
                | read_records(exec_properties, split_pattern)
                | "Convert" >> beam.Map(functools.partial(convert_example, **conversion))
            )

        return read_and_convert
