"""Anomalies that TFX's ExampleValidator finds against the schema, as plain text."""

from collections.abc import Collection, Mapping, Sequence

from tensorflow_metadata.proto.v0 import anomalies_pb2
from tfx import types
from tfx.components.example_validator import executor as example_validator
from tfx.types import artifact_utils

from components.data_check.findings import Finding, choose_severity
from imagepipe.base import filesystem
from imagepipe.base.labels import list_names

_TYPES = anomalies_pb2.AnomalyInfo
_MISSING = (_TYPES.SCHEMA_MISSING_COLUMN, _TYPES.FEATURE_TYPE_NOT_PRESENT)


def read_anomalies(artifact: types.Artifact, splits: Sequence[str]) -> dict[str, anomalies_pb2.Anomalies]:
    """Reads an ExampleValidator's output, by split."""
    anomalies = {}
    for name in splits:
        folder = artifact_utils.get_split_uri([artifact], name)
        data = filesystem.read_bytes(f"{folder}/{example_validator.DEFAULT_FILE_NAME}")
        anomalies[name] = anomalies_pb2.Anomalies.FromString(data)
    return anomalies


def describe_anomalies(
    anomalies_by_split: Mapping[str, anomalies_pb2.Anomalies],
    label: str,
    stop_on: Collection[str],
    needed: Collection[str],
) -> list[Finding]:
    """Turns anomalies into findings.

    Args:
        anomalies_by_split: by name of the split.
        label: name of the label's feature, whose unknown values are errors.
        stop_on: kinds of findings that stop the run.
        needed: columns that the model needs; if they are missing, ``columns.find_missing_columns`` reports it already.
    """
    findings = []
    for name, anomalies in anomalies_by_split.items():
        new_columns = []
        for feature, info in sorted(anomalies.anomaly_info.items()):
            for reason in info.reason:
                if reason.type == _TYPES.SCHEMA_NEW_COLUMN:
                    new_columns.append(feature)
                elif reason.type not in _MISSING:
                    findings.append(_describe_reason(name, feature, reason, feature == label, stop_on))
                elif feature not in needed:
                    message = (
                        f"the split {name} lacks the column '{feature}', which the schema demands. Add it, or remove "
                        "it from the schema"
                    )
                    findings.append(Finding("error", "missing_column", name, feature, message))
        if new_columns:
            message = f"the split {name} has columns that the schema lacks: {list_names(new_columns)}"
            findings.append(Finding("warning", "anomaly", name, "", message))
    return findings


def _describe_reason(
    name: str, feature: str, reason: anomalies_pb2.AnomalyInfo.Reason, is_label: bool, stop_on: Collection[str]
) -> Finding:
    description = reason.description.strip().rstrip(".")
    message = f"'{feature}' in the split {name}: {description[:1].lower()}{description[1:]}"
    if is_label and reason.type == _TYPES.ENUM_TYPE_UNEXPECTED_STRING_VALUES:
        return Finding("error", "unseen_label", name, feature, f"{message}. Correct them, or add them to the schema")
    return Finding(choose_severity("anomaly", stop_on), "anomaly", name, feature, message)
