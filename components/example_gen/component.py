"""TFX's ImportExampleGen, with an executor that converts Examples made elsewhere."""

from tfx.components.example_gen.component import FileBasedExampleGen
from tfx.dsl.components.base import executor_spec
from tfx.orchestration.data_types import RuntimeParameter
from tfx.proto import example_gen_pb2

from components.example_gen.executor import Executor, encode_conversion


class ImportExampleGen(FileBasedExampleGen):
    """Imports TFRecords of Examples made elsewhere.

    Args:
        input_base: the folder that the patterns are relative to.
        names: of the features, see ``components.example_gen.executor.encode_conversion``.
        label_names: of labels that are whole numbers, see ``components.example_gen.convert``.
        input_config: the splits and their patterns.
        output_config: the splits to make by SPLIT_KEY, if the records aren't split.
    """

    EXECUTOR_SPEC = executor_spec.BeamExecutorSpec(Executor)

    def __init__(
        self,
        input_base: str | RuntimeParameter,
        names: dict[str, str],
        label_names: dict[int, str] | None,
        input_config: example_gen_pb2.Input,
        output_config: example_gen_pb2.Output | None = None,
    ):
        super().__init__(
            input_base=input_base,
            input_config=input_config,
            output_config=output_config,
            custom_config=encode_conversion(names, label_names),
        )
