"""Looks at what a cluster's cache can't see, in tasks of a compiled pipeline.

``python -m pipeline.kubeflow.look data …`` looks at the dataset and at other files of the configuration,
``… target …`` at the deploy target. Each writes hashes, or paths with hashes, as the task's output parameters. They are
never taken from the cache; what takes their outputs is, as long as these are the same. See
``pipeline.kubeflow.lookups``.

Without TFX, whose import takes 20 s of 2 cores.
"""

import argparse
import hashlib
import json
import sys
from collections.abc import Callable
from typing import Any

from imagepipe.base import filesystem
from imagepipe.base.decisions import hash_given_labels
from imagepipe.base.errors import DataError, describe_error
from imagepipe.base.names import DECISIONS_HASH, LIVE_MODELS, LIVE_STATISTICS
from imagepipe.deploy.config import DeployConfig
from imagepipe.deploy.live import list_models, list_statistics
from pipeline.source import Source, compute_fingerprint, hash_schema, list_examples
from trainer.given import hash_given

DATA, SCHEMA, WEIGHTS = "data_hash", "schema_hash", "weights_hash"
"""Output parameters of the task that looks at files."""


def hash_data(source: Source) -> str:
    """Returns a hash of the Examples.

    Of a dataset of ``imagepipe ingest`` it covers the content and the names of the files, so that a copy has the same;
    of others names, sizes and times.

    Raises:
        DataError: if a split has no files.
    """
    patterns = source.patterns or {"": source.all}
    files: dict[str, list[str]] = {name: [] for name in patterns}
    for name, file, _ in list_examples(source):
        files[name].append(file.rpartition("/")[2])
    if empty := next((pattern for name, pattern in patterns.items() if not files[name]), None):
        raise DataError(f"data_path: no file matches {source.base}/{empty}")
    fingerprint = compute_fingerprint(filesystem.unescape(source.base), source).fingerprint
    return hashlib.sha256(json.dumps([fingerprint, files], sort_keys=True).encode()).hexdigest()


def _look_at_data(settings: dict[str, Any], data_path: str) -> dict[str, Callable[[], str]]:
    return {
        DATA: lambda: hash_data(Source(data_path, **settings["source"])),
        SCHEMA: lambda: hash_schema(settings["schema"]),
        WEIGHTS: lambda: hash_given("weights", settings["weights"]),
        DECISIONS_HASH: lambda: hash_given_labels(filesystem.unescape(data_path)),
    }


def _look_at_target(settings: dict[str, Any], data_path: str) -> dict[str, Callable[[], str]]:
    deploy = DeployConfig(**settings)
    return {
        LIVE_MODELS: lambda: json.dumps(list_models(deploy)),
        LIVE_STATISTICS: lambda: json.dumps(list_statistics(deploy)),
    }


_LOOKS = {"data": _look_at_data, "target": _look_at_target}


def main(arguments: list[str]) -> None:
    """Looks, and writes what is asked for.

    Args:
        arguments: the container's, see ``pipeline.kubeflow.lookups``.

    Raises:
        DataError: if there are no Examples.
        ModelError: if the target can't be asked.
        OSError: if a file can't be read.
    """
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("at", choices=_LOOKS)
    parser.add_argument("--settings", type=json.loads, required=True)
    parser.add_argument("--data_path", default="")
    parser.add_argument("--output", nargs=2, action="append", required=True, metavar=("NAME", "FILE"))
    options = parser.parse_args(arguments)
    looks = _LOOKS[options.at](options.settings, options.data_path)
    for name, file in options.output:
        value = looks[name]()
        print(f"{name}: {value}")  # in the task's log
        filesystem.write_whole(file, value.encode())


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except Exception as error:  # of the clouds' clients too
        sys.exit(f"imagepipe: {describe_error(error)}")
