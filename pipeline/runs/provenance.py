"""What a run is made from, written when it starts: ``run.json``, and its configuration as a file to run again.

Imports nothing heavy.
"""

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


class Commit(BaseModel):
    """Where in git the code was.

    Attributes:
        id: the commit's hash.
        changed: whether files of the repository differed from it.
    """

    id: str
    changed: bool


class Data(BaseModel):
    """The Examples.

    Attributes:
        path: where they were.
        fingerprint: SHA-256, hexadecimal.
        of: what it is made of. ``content`` is that of a dataset of ``imagepipe ingest``, whose files are named by
            their content: a copy elsewhere has the same. ``files`` are names, sizes and times of TFRecords made
            elsewhere.
        records: how many by split; empty where nobody has counted.
    """

    path: str
    fingerprint: str
    of: Literal["content", "files"]
    records: dict[str, int] = {}


class Origin(BaseModel):
    """What a run is made from.

    Attributes:
        run_id: the run.
        started: when, UTC, ISO 8601.
        config: the whole configuration as used, ``--set`` included, paths absolute.
        commit: of the code; null where it is not under git, as where imagepipe was installed as a package.
        packages: every installed package's version, ``python`` included.
        dataset: the Examples as they were found.
        dag: the nodes in order, each with those that it waits for.
    """

    run_id: str
    started: str
    config: dict[str, Any]
    commit: Commit | None
    packages: dict[str, str]
    dataset: Data
    dag: dict[str, list[str]]


def commit(folder: Path) -> Commit | None:
    """The commit of the repository that has ``folder`` under version control, if one has."""
    # What a hook sets for its own repository would lead astray; reading must not lock the index.
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
        # An environment that lies within somebody's repository is not in it.
        if not git("ls-files", "--", "."):
            return None
        return Commit(id=git("rev-parse", "HEAD"), changed=bool(git("status", "--porcelain", "--untracked-files=no")))
    except (OSError, subprocess.SubprocessError):
        return None


def packages() -> dict[str, str]:
    """Every installed package's version, by name."""
    found = {each.metadata["Name"]: each.version for each in metadata.distributions()}
    return {"python": platform.python_version()} | {name: found[name] for name in sorted(found, key=str.lower)}


def ingested(path: str) -> Data | None:
    """The fingerprint of a dataset of ``imagepipe ingest``, None if there is none at ``path``.

    Raises:
        IngestError: it can't be read.
    """
    found = dataset.read(filesystem.absolute(path))
    if found is None:
        return None
    # Files are named by a hash of their records, so this stands for every byte of every record.
    shards = {name: sorted((s.file, s.records, s.bytes) for s in split.shards) for name, split in found.splits.items()}
    said = json.dumps([found.options.task, shards], sort_keys=True)
    return Data(
        path=path,
        fingerprint=hashlib.sha256(said.encode()).hexdigest(),
        of="content",
        records={name: split.records for name, split in found.splits.items()},
    )


def write(
    folder: Path,
    config: dict[str, Any],
    code: Path,
    data: Data,
    dag: dict[str, list[str]],
) -> Origin:
    """Writes ``run.json`` and ``config.yaml`` of a run that starts now.

    Args:
        folder: the run's, named by its id.
        config: the configuration, as JSON would have it.
        code: the folder that the code comes from.
        data: the Examples.
        dag: see ``Origin``.
    """
    origin = Origin(
        run_id=folder.name,
        started=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        config=config,
        commit=commit(code),
        packages=packages(),
        dataset=data,
        dag=dag,
    )
    (folder / CONFIG).write_text(as_yaml(config), encoding="utf-8")
    partial = folder / f".{FILENAME}"
    partial.write_text(origin.model_dump_json(indent=1) + "\n", encoding="utf-8")
    partial.replace(folder / FILENAME)
    return origin


def as_yaml(config: dict[str, Any]) -> str:
    """A configuration as a file has it."""
    return yaml.safe_dump(config, sort_keys=False, allow_unicode=True)


def read(run_dir: Path) -> Origin | None:
    """What a run was made from; None if it has not said, as runs of earlier versions have not, or not legibly."""
    try:
        return Origin.model_validate_json((run_dir / FILENAME).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
