"""Tells of the Examples that ImportExampleGen has left out, as their images can't be decoded."""

import json
from collections.abc import Sequence

from tfx import types
from tfx.types import artifact_utils

from imagepipe.base import filesystem
from imagepipe.base.labels import list_names
from imagepipe.base.names import LEFT_OUT


def read_left_out(examples: list[types.Artifact]) -> list[dict[str, str]]:
    """Returns ``id`` and ``reason`` of each Example that was left out, sorted by these.

    Args:
        examples: one artifact, of any ExampleGen. An Example without an id has "".
    """
    folder = f"{artifact_utils.get_single_uri(examples)}/{LEFT_OUT}"
    lines = (line for path, _ in filesystem.walk(folder) for line in filesystem.read_bytes(path).splitlines())
    return sorted(map(json.loads, lines), key=lambda line: (line["id"], line["reason"]))


def describe_left_out(left_out: Sequence[dict[str, str]]) -> str:
    """Returns how many Examples were left out, which, and why, as text.

    Args:
        left_out: one or more, as ``read_left_out`` returns them.
    """
    named = [f"{line['id'] or 'one without a name'} ({line['reason']})" for line in left_out]
    return f"{len(left_out):,} records were left out, as their images can't be decoded: {list_names(named)}"
