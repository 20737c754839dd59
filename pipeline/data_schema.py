"""The schema of a dataset or of a run, for `imagepipe schema`: as a table, and as a file for a person to curate."""

from dataclasses import dataclass
from pathlib import Path

from google.protobuf import text_format
from tensorflow_metadata.proto.v0 import schema_pb2

from imagepipe.base import filesystem
from imagepipe.base.errors import ConfigError
from imagepipe.base.names import SCHEMA, SUMMARY
from imagepipe.deploy.versions import read_run
from imagepipe.ingest import dataset


@dataclass(frozen=True)
class Column:
    """A column of a schema, as text."""

    name: str
    type: str
    required: bool
    values: str


def find_schema(source: str) -> schema_pb2.Schema:
    """Returns the schema of a dataset, inferred from all its splits, or the one that a run's data was checked against.

    Args:
        source: a folder that ``imagepipe ingest`` wrote, by path or URI, or the folder of a run.

    Raises:
        ConfigError: if it is neither, or a run that did not get as far as DataCheck.
        IngestError: if the dataset is damaged; ModelError: if the run's summary is.
    """
    source = filesystem.absolute(source)
    path = Path(source)
    if not filesystem.is_uri(source) and (path / SUMMARY).is_file():
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
    if filesystem.size(f"{source}/{dataset.DESCRIPTION}") is not None:
        description = dataset.load(source)
        if not description.records:
            raise ConfigError(f"{source} has no images")
        from pipeline.inferred_schema import infer_schema  # TFDV: only now, as it takes many seconds

        return infer_schema(source, description)
    raise ConfigError(f"{source} is neither a dataset that `imagepipe ingest` made nor a run (runs/RUN)")


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
    refuse_existing(out)
    out.write_text(text_format.MessageToString(schema, as_utf8=True), encoding="utf-8")


def refuse_existing(out: Path) -> None:
    """Refuses to overwrite a file.

    Raises:
        ConfigError: if it exists.
    """
    if out.exists():
        raise ConfigError(f"{out} exists. Delete it, or give another name.")
