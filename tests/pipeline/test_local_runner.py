"""Reasons of nodes that fail."""

import errno
import os

import pytest
from tfx.dsl.component.experimental.annotations import Parameter
from tfx.dsl.component.experimental.decorators import component
from tfx.orchestration import metadata
from tfx.orchestration.pipeline import Pipeline

from imagepipe.base.errors import DataError
from pipeline.local_runner import NodeError, run_nodes


def _wrap(code: int) -> None:
    try:
        raise OSError(code, os.strerror(code), "/data/images.h5")
    except OSError as error:
        raise ValueError("it can't be written") from error


@component
def broken(kind: Parameter[str]):
    """Fails in some way."""
    match kind:
        case "memory":
            raise MemoryError
        case "assertion":
            raise AssertionError
        case "data":
            raise DataError("the label is missing")
        case "permission":
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), "/data/images.h5")
        case "disk":
            _wrap(errno.ENOSPC)
        case "quota":
            _wrap(errno.EDQUOT)
        case _:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("memory", "MemoryError"),
        ("assertion", "AssertionError"),
        ("data", "the label is missing"),
        ("permission", "/data/images.h5: Permission denied"),
        ("disk", "/data/images.h5: No space left on device. Make room, then run it again"),
        ("quota", "/data/images.h5: Disk quota exceeded. Make room, then run it again"),
        ("nameless", "No space left on device. Make room for {}, or for temporary files in "),
    ],
)
def test_a_node_that_fails_always_says_why_and_of_a_full_disk_where(tmp_path, kind, message):
    pipeline = Pipeline(
        pipeline_name="x",
        pipeline_root=str(tmp_path),
        metadata_connection_config=metadata.sqlite_metadata_connection_config(str(tmp_path / "metadata.db")),
        components=[broken(kind=kind)],
    )
    with pytest.raises(NodeError) as error:
        run_nodes(pipeline, "x.1", (), lambda node: None, lambda result: None)
    assert str(error.value).startswith(f"broken failed: {message.format(tmp_path)}")
