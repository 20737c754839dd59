"""The schema of a dataset or of a run, for `imagepipe schema`: as a table, and as a file for a person to curate."""

from dataclasses import dataclass
from pathlib import Path

from apache_beam.options.pipeline_options import PipelineOptions
from google.protobuf import text_format
from tensorflow_metadata.proto.v0 import schema_pb2

from components.data_check.config import ValidationConfig
from components.data_check.curated_schema import freeze_ranges
from components.schema_gen.executor import complete_schema
from components.tfdv import tfdv
from imagepipe.base.errors import ConfigError
from imagepipe.base.features import Features
from imagepipe.base.names import SCHEMA, SUMMARY
from imagepipe.deploy.versions import read_run
from imagepipe.ingest import dataset
from pipeline.config import BeamConfig

_NO_STATISTICS = {"input", "metadata", "sha256", "dhash"}  # different in every image


@dataclass(frozen=True)
class Column:
    """A column of a schema, as text."""

    name: str
    type: str
    required: bool
    values: str


def find_schema(path: Path) -> schema_pb2.Schema:
    """Returns the schema of a dataset, inferred from all its splits, or the one that a run's data was checked against.

    Args:
        path: a folder that ``imagepipe ingest`` wrote, or the folder of a run.

    Raises:
        ConfigError: if it is neither, or a run that did not get as far as DataCheck.
        IngestError: if the dataset is damaged; ModelError: if the run's summary is.
    """
    if (path / SUMMARY).is_file():
        folder = read_run(path).get("data_dir")
        if not folder or not (Path(folder) / SCHEMA).is_file():
            raise ConfigError(
                f"{path}: this run did not get as far as DataCheck, or its artifacts are gone: "
                "`imagepipe clean` removes those of old runs"
            )
        try:
            return text_format.Parse((Path(folder) / SCHEMA).read_text(encoding="utf-8"), schema_pb2.Schema())
        except (ValueError, text_format.ParseError) as error:
            raise ConfigError(
                f"{Path(folder) / SCHEMA} is damaged ({error}): delete {folder}, and run again"
            ) from error
    if (path / dataset.DESCRIPTION).is_file():
        return _infer_schema(path)
    raise ConfigError(f"{path} is neither a dataset that `imagepipe ingest` made nor a run (runs/RUN)")


def _infer_schema(path: Path) -> schema_pb2.Schema:
    description = dataset.load(str(path))
    names, beam_options = Features(), PipelineOptions(BeamConfig().make_arguments())
    options = tfdv.StatsOptions(feature_allowlist=sorted(set(description.features) - _NO_STATISTICS))
    # The training split first: the others add to its schema.
    splits = sorted((n for n, split in description.splits.items() if split.records), key=lambda n: (n != "train", n))
    if not splits:
        raise ConfigError(f"{path} has no images")
    statistics_by_split = [
        tfdv.generate_statistics_from_tfrecord(
            str(path / name / "*.tfrecord*"), stats_options=options, pipeline_options=beam_options
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


def list_columns(schema: schema_pb2.Schema) -> list[Column]:
    """Returns what a schema demands of each column, as text."""
    domains = {domain.name: list(domain.value) for domain in schema.string_domain}
    return [
        Column(
            feature.name,
            schema_pb2.FeatureType.Name(feature.type).lower(),
            feature.presence.min_fraction == 1
            or (feature.presence.min_count > 0 and not feature.presence.min_fraction),
            "; ".join([*_describe_domain(feature, domains), *feature.annotation.tag]),
        )
        for feature in schema.feature
    ]


def _describe_domain(feature: schema_pb2.Feature, domains: dict[str, list[str]]) -> list[str]:
    match feature.WhichOneof("domain_info"):
        case "domain":
            return [", ".join(domains.get(feature.domain, []))]
        case "string_domain":
            return [", ".join(feature.string_domain.value)]
        case "int_domain" if feature.type == schema_pb2.INT:
            return [f"{feature.int_domain.min} to {feature.int_domain.max}"]
        case "float_domain":
            return [f"{feature.float_domain.min:g} to {feature.float_domain.max:g}"]
    return []


def freeze_schema(schema: schema_pb2.Schema, out: Path) -> None:
    """Writes a schema as text, for ``data.curated_schema``.

    Raises:
        ConfigError: if the file exists: somebody may have curated it.
    """
    if out.exists():
        raise ConfigError(f"{out} exists. Delete it, or give another name.")
    out.write_text(text_format.MessageToString(schema, as_utf8=True))
