"""The provenance of a run, written when it starts: ``run.json``, and its configuration as a file to run again."""

import dataclasses
import datetime
import hashlib
import json
import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel

from imagepipe.base import filesystem
from imagepipe.ingest import dataset

FILENAME = "run.json"
CONFIG = "config.yaml"
_GIT_SECONDS = 10
_MAX_INGESTS = 10


class Commit(BaseModel):
    """The git commit of the code.

    Attributes:
        id: the commit's hash.
        changed: whether tracked files differed from it.
    """

    id: str
    changed: bool


class DatasetOrigin(BaseModel):
    """The Examples of a run.

    Attributes:
        path: their location.
        fingerprint: SHA-256, hexadecimal.
        of: what the fingerprint covers: the ``content`` of a dataset of ``imagepipe ingest``, whose files are named by
            their content, so that a copy elsewhere has the same; or names, sizes and times of the ``files`` of
            TFRecords made elsewhere.
        records: number of records by split; empty if unknown.
        ingests: the last ingests that changed something, a sentence each: what they added, relabelled and removed.
    """

    path: str
    fingerprint: str
    of: Literal["content", "files"]
    records: dict[str, int] = {}
    ingests: list[str] = []


class Origin(BaseModel):
    """Data, code, configuration and packages of a run.

    Attributes:
        run_id: the run.
        started: time of its start, UTC, ISO 8601.
        config: the whole configuration as used, ``--set`` included, paths absolute.
        commit: the code's commit; null if it is not under git, such as an installed package.
        packages: version of every installed package, and of ``python``.
        dataset: the Examples at the start.
        dag: the nodes in order, each with the nodes that it waits for.
    """

    run_id: str
    started: str
    config: dict[str, Any]
    commit: Commit | None
    packages: dict[str, str]
    dataset: DatasetOrigin
    dag: dict[str, list[str]]


def find_commit(folder: Path) -> Commit | None:
    """Returns the commit of the repository that has ``folder`` under version control; None if there is none."""
    # A git hook's variables point to its own repository; and reading must not lock the index.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}

    def git(*arguments: str) -> str:
        return subprocess.run(  # noqa: S603 (arguments of our own)
            ["git", "-C", str(folder), *arguments],  # noqa: S607 (the user's git)
            capture_output=True,
            text=True,
            timeout=_GIT_SECONDS,
            check=True,
            env=environment | {"GIT_OPTIONAL_LOCKS": "0"},
        ).stdout.strip()

    try:
        # A virtual environment may lie inside a repository without being part of it.
        if not git("ls-files", "--", "."):
            return None
        return Commit(id=git("rev-parse", "HEAD"), changed=bool(git("status", "--porcelain", "--untracked-files=no")))
    except (OSError, subprocess.SubprocessError):
        return None


def list_packages() -> dict[str, str]:
    """Returns the version of every installed package by name, and of ``python``."""
    versions = {package.metadata["Name"]: package.version for package in metadata.distributions()}
    return {"python": platform.python_version()} | {name: versions[name] for name in sorted(versions, key=str.lower)}


def fingerprint_dataset(path: str) -> DatasetOrigin | None:
    """Returns the fingerprint of a dataset of ``imagepipe ingest``; None if there is none at ``path``.

    Raises:
        IngestError: if it can't be read.
    """
    description = dataset.read_unchecked(filesystem.absolute(path))
    if description is None:
        return None
    # Files are named by a hash of their records, so this covers every byte of every record.
    shards = {
        name: sorted((s.file, s.records, s.bytes) for s in split.shards) for name, split in description.splits.items()
    }
    content = json.dumps([description.options.task, shards], sort_keys=True)
    return DatasetOrigin(
        path=path,
        fingerprint=hashlib.sha256(content.encode()).hexdigest(),
        of="content",
        records={name: split.records for name, split in description.splits.items()},
        ingests=[_describe_change(change) for change in description.history[-_MAX_INGESTS:]],
    )


def _describe_change(change: dataset.Change) -> str:
    counts = dataclasses.asdict(change)
    source, labels = counts.pop("source"), counts.pop("labels")
    counted = ", ".join(f"{count:,} {kind}" for kind, count in counts.items() if count)
    return f"{counted} from {source}" + (f", labels overridden by {labels}" if labels else "")


def write_origin(
    folder: Path,
    config: dict[str, Any],
    code: Path,
    data: DatasetOrigin,
    dag: dict[str, list[str]],
) -> Origin:
    """Writes ``run.json`` and ``config.yaml`` of a run that starts now, and returns the content of the former.

    Args:
        folder: the run's folder, named by its id.
        config: the configuration as plain JSON values.
        code: folder of the code.
        data: the Examples.
        dag: see ``Origin``.
    """
    origin = Origin(
        run_id=folder.name,
        started=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        config=config,
        commit=find_commit(code),
        packages=list_packages(),
        dataset=data,
        dag=dag,
    )
    filesystem.write_whole(str(folder / CONFIG), to_yaml(config).encode())
    filesystem.write_whole(str(folder / FILENAME), f"{origin.model_dump_json(indent=1)}\n".encode())
    return origin


def to_yaml(config: dict[str, Any]) -> str:
    """Returns a configuration as the text of its file."""
    return yaml.safe_dump(config, sort_keys=False, allow_unicode=True)


def read_origin(run_dir: Path) -> Origin | None:
    """Returns what a run was made from; None if it left no such file (earlier versions), or a damaged one."""
    try:
        return Origin.model_validate_json((run_dir / FILENAME).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
