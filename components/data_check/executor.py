"""Runs all checks of the data and writes what they find."""

import functools
import json
import math
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tensorflow_metadata.proto.v0 import schema_pb2
from tfx import types
from tfx.dsl.components.base import base_beam_executor
from tfx.types import artifact_utils
from tfx.utils import io_utils

from components.artifacts import read_statistics
from components.data_check.anomalies import describe_anomalies, read_anomalies
from components.data_check.columns import (
    check_slices,
    find_faulty_values,
    find_left_out,
    find_missing_columns,
    find_unknown_values,
    find_unreadable_images,
)
from components.data_check.config import ValidationConfig
from components.data_check.curated_schema import freeze_ranges, read_min_images
from components.data_check.decided import find_decided, list_undecided
from components.data_check.drift import check_drift, check_skew
from components.data_check.driver import Driver
from components.data_check.findings import MAX_EXAMPLES, Finding
from components.data_check.groups import find_torn_groups
from components.data_check.label_errors import describe_label_errors, find_label_errors, predict_out_of_sample
from components.data_check.labels import check_labels
from components.data_check.leaks import MAX_ROWS, find_leaks
from components.data_check.near_duplicates import describe_near_duplicates, find_near_duplicates
from components.data_check.row_writer import Reading
from components.data_check.split import Split, identify_images
from components.data_check.split_reader import read_splits, read_thumbnails
from components.data_check.steps import Place, is_local
from components.data_check.tfdv_statistics import Statistics, count_examples, summarize_columns
from imagepipe.base import filesystem
from imagepipe.base.decisions import read_given_labels
from imagepipe.base.errors import DataError
from imagepipe.base.features import parse_features
from imagepipe.base.names import FINDINGS, SCHEMA, STATISTICS


class Executor(base_beam_executor.BaseBeamExecutor):
    """Runs all checks."""

    def Do(self, input_dict: Any, output_dict: Any, exec_properties: dict[str, Any]) -> None:  # noqa: N802 (TFX's name)
        """Writes ``findings.json``, ``statistics.json`` and a schema for a person to curate."""
        self._log_startup(input_dict, output_dict, exec_properties)
        task, features = exec_properties["task"], parse_features(json.loads(exec_properties["features"]))
        config = ValidationConfig(**json.loads(exec_properties["validation"]))
        schema = _read_schema(input_dict["schema"])
        min_images = dict(config.min_images.items()) | _read_curated_minima(schema, features.label)
        statistics = _read_statistics(artifact_utils.get_single_instance(input_dict["statistics"]))
        anomalies = read_anomalies(artifact_utils.get_single_instance(input_dict["anomalies"]), list(statistics))
        baseline = exec_properties.get(Driver.PROPERTY)
        if baseline is None:  # the runner has no drivers
            baseline = Driver.look_up(exec_properties, input_dict)

        find_folder = functools.partial(artifact_utils.get_split_uri, input_dict["examples"])
        total = sum(map(count_examples, statistics.values()))
        judges_labels = task == "classification" and config.label_errors > 0
        describe_every = math.ceil(total / config.max_images) if judges_labels else 0
        slices = [tuple(columns) for columns in json.loads(exec_properties["slices"])]
        columns_every = math.ceil(count_examples(statistics["train"]) / MAX_ROWS) if config.leak else 0
        readings = {
            name: Reading(
                find_folder(name),
                features,
                describe_every,
                slices if name == "eval" else (),
                columns_every if name == "train" else 0,
            )
            for name in statistics
        }
        artifact = artifact_utils.get_single_instance(output_dict["findings"])
        needed = (features.label, *features.side)
        with tempfile.TemporaryDirectory() as folder:
            place = Place(
                Path(folder),
                f"{artifact.uri}/rows",
                None if is_local(self._beam_pipeline_args) else self._make_beam_pipeline,
            )
            splits = read_splits(readings, place)
            findings = [
                *check_labels(task, splits, features.label, min_images),
                *find_missing_columns(statistics, needed),
                *find_faulty_values(splits),
                *(finding for name, split in splits.items() for finding in check_slices(name, split.slices)),
                *find_unknown_values(splits, json.loads(exec_properties["demands"]), features.label),
                *find_unreadable_images(splits),
                *find_left_out(input_dict["examples"]),
                *find_torn_groups(splits, features.group, config.stop_on),
                *describe_anomalies(anomalies, features.label, config.stop_on, needed),
                *check_drift(statistics["train"], baseline, schema, config),
                *check_skew(statistics, schema, config),
            ]
            if config.leak and columns_every:
                train = splits["train"]
                findings += find_leaks(
                    train.columns, train.column_labels, task, features.label, config.leak, config.stop_on
                )
            near_duplicates, bits = find_near_duplicates(
                splits, lambda wanted: read_thumbnails(splits, features.input, wanted, place)
            )
            decided = find_decided(splits, read_given_labels(filesystem.unescape(exec_properties["dataset"])))
            undecided = list_undecided(near_duplicates, decided)
            not_listed = {"near_duplicates": len(near_duplicates) - len(undecided), "label_errors": 0}
            findings += describe_near_duplicates(splits, undecided, config.stop_on, bits, not_listed["near_duplicates"])
            label_errors: list[dict[str, Any]] = []
            if judges_labels:
                errors = find_label_errors(splits, near_duplicates, config.label_errors, predict_out_of_sample, decided)
                findings += describe_label_errors(errors, total)
                label_errors, not_listed["label_errors"] = errors.listed, errors.left_out
            listed = undecided[:MAX_EXAMPLES]
            identified = identify_images(splits, (image for group in listed for image in group))
            summary = {name: _summarize_split(statistics[name], splits[name], task) for name in statistics}

        _set_properties(artifact, findings)
        content = {
            "findings": [asdict(finding) for finding in sorted(findings, key=lambda finding: finding.severity)],
            "near_duplicates": [[identified[image] for image in group] for group in listed],
            "label_errors": label_errors,
            "not_listed": not_listed,
            "decided": sorted(decided),
        }
        _write_json(f"{artifact.uri}/{FINDINGS}", content)
        _write_json(f"{artifact.uri}/{STATISTICS}", summary)
        demanded = {} if task == "regression" else min_images
        curatable = freeze_ranges(schema, statistics.values(), features.label, demanded)
        io_utils.write_pbtxt_file(f"{artifact.uri}/{SCHEMA}", curatable)


def _read_schema(artifacts: list[types.Artifact]) -> schema_pb2.Schema:
    return io_utils.SchemaReader().read(io_utils.get_only_uri_in_dir(artifact_utils.get_single_uri(artifacts)))


def _read_curated_minima(schema: schema_pb2.Schema, label: str) -> dict[str, int]:
    try:
        return read_min_images(schema, label)
    except ValueError as error:
        raise DataError(f"data.curated_schema: in a tag of '{label}', such as min_images.train=10: {error}") from error


def _read_statistics(artifact: types.Artifact) -> dict[str, Statistics]:
    """Reads the statistics by split, the training split first."""
    names = artifact_utils.decode_split_names(artifact.split_names)
    return {
        name: Statistics.FromString(read_statistics(artifact, name))
        for name in sorted(names, key=lambda name: (name != "train", name))
    }


def _set_properties(artifact: types.Artifact, findings: Sequence[Finding]) -> None:
    counts = Counter(finding.severity for finding in findings)
    artifact.split_names = artifact_utils.encode_split_names([])
    artifact.set_int_custom_property("errors", counts["error"])
    artifact.set_int_custom_property("warnings", counts["warning"])


def _summarize_split(statistics: Statistics, split: Split, task: str) -> dict[str, Any]:
    labels = split.label_counts if task != "regression" else {}
    return {"count": len(split.ids), "labels": dict(sorted(labels.items())), "columns": summarize_columns(statistics)}


def _write_json(path: str, content: Mapping[str, Any]) -> None:
    filesystem.write_whole(path, json.dumps(content, indent=1, allow_nan=False).encode())
