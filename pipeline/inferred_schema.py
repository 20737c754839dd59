"""Infers the schema of a dataset from the statistics of all its splits, by TFDV."""

from apache_beam.options.pipeline_options import PipelineOptions
from tensorflow_metadata.proto.v0 import schema_pb2

from components.data_check.config import ValidationConfig
from components.data_check.curated_schema import freeze_ranges
from components.schema_gen.executor import complete_schema
from components.tfdv import tfdv
from imagepipe.base.features import Features
from imagepipe.ingest import dataset
from pipeline.config import BeamConfig
from pipeline.staging import open_splits

_NO_STATISTICS = {"input", "metadata", "sha256", "dhash", "group"}  # different in every image, or nearly


def infer_schema(path: str, description: dataset.Dataset) -> schema_pb2.Schema:
    """Returns the schema of a dataset that has images, with the observed values and ranges.

    Args:
        path: its folder, or the URI of one.
        description: its description.
    """
    names, beam_options = Features(), PipelineOptions(BeamConfig().make_arguments())
    options = tfdv.StatsOptions(feature_allowlist=sorted(set(description.features) - _NO_STATISTICS))
    # The training split first: the others add to its schema.
    splits = sorted((n for n, split in description.splits.items() if split.records), key=lambda n: (n != "train", n))
    with open_splits(path, splits) as folder:
        statistics_by_split = [
            tfdv.generate_statistics_from_tfrecord(
                str(folder / name / "*.tfrecord*"), stats_options=options, pipeline_options=beam_options
            )
            for name in splits
        ]
    schema = tfdv.infer_schema(statistics_by_split[0])
    for split_statistics in statistics_by_split[1:]:
        schema = tfdv.update_schema(schema, split_statistics)
    complete_schema(schema, names.input, names.label if description.options.task == "multilabel" else "")
    minima: dict[str, int] = {}
    if description.options.task != "regression":
        minima |= dict(ValidationConfig().min_images.items())
    return freeze_ranges(schema, statistics_by_split, names.label, minima)
