"""A job server of Beam's, whose workers share nothing with who submits the job but a bucket in S3, on loopback."""

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from imagepipe.base.beam_options import make_arguments
from imagepipe.ingest.command import ingest
from imagepipe.serving.batch import predict_source
from tests.conftest import make_digit_images
from tests.serving.conftest import model  # noqa: F401 (a fixture)
from tests.stores import s3, s3_server  # noqa: F401 (fixtures)

pytestmark = pytest.mark.slow


@contextmanager
def start(log: Path, module: str, option: str) -> Iterator[str]:
    """Runs a server of Beam's, in a folder of its own, until the end of the block; yields its address once it listens.

    Args:
        log: the file for what it prints.
        module: the server.
        option: its option for the port.
    """
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
    log.parent.mkdir()
    command = [sys.executable, "-m", f"apache_beam.runners.{module}", f"--{option}={port}"]
    # Pools start `python`, whichever comes first.
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    with log.open("w") as output:
        process = subprocess.Popen(command, cwd=log.parent, env=environment, stdout=output, stderr=output)  # noqa: S603
    try:
        deadline = time.monotonic() + 120
        while True:
            with socket.socket() as client:
                if client.connect_ex(("127.0.0.1", port)) == 0:
                    break
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.1)
        yield f"localhost:{port}"
    finally:
        process.terminate()  # of a pool, its workers too
        process.wait(timeout=30)


@pytest.fixture
def job_server(s3, tmp_path):  # noqa: F811
    """Beam's arguments for a job server, with a pool of workers, which know of S3 by their environment."""
    with (
        start(tmp_path / "jobs/log", "portability.local_job_service_main", "port") as jobs,
        start(tmp_path / "workers/log", "worker.worker_pool_main", "service_port") as workers,
    ):
        yield make_arguments("portable", {"job_endpoint": jobs, "environment_config": workers})


def test_a_job_server_makes_from_s3_to_s3_the_dataset_that_this_process_makes(job_server, s3):  # noqa: F811
    for number, (label, png) in enumerate(make_digit_images(60)):
        s3.put(f"photos/{label}/{number:04}.png", png)
    s3.put("photos/0/broken.png", b"no image")
    there = ingest(f"{s3.uri}/photos", f"{s3.uri}/there", workers=2, beam_args=job_server)
    assert (there.written, there.quarantined) == (60, 1)
    ingest(f"{s3.uri}/photos", f"{s3.uri}/here", workers=2)
    present, expected = s3.content("there"), s3.content("here")
    assert {name.partition("/")[0] for name in expected} >= {"train", "eval", "test", "index"}
    assert present == expected


def test_a_job_server_predicts_from_s3_to_s3_what_this_process_predicts(job_server, s3, model):  # noqa: F811
    for number, (_, png) in enumerate(make_digit_images(20)):
        s3.put(f"images/{number:02}.png", png)
    s3.put("images/broken.png", b"no image")
    for file in model.rglob("*"):
        if file.is_file():
            s3.put(f"models/7/{file.relative_to(model)}", file.read_bytes())

    def read_rows(folder: str) -> list[dict]:
        files = [data for name, data in s3.content(folder).items() if name.startswith(("predictions-", "quarantine-"))]
        return sorted(
            (json.loads(line) for data in files for line in data.splitlines()), key=lambda row: row["metadata"]
        )

    there = predict_source(f"{s3.uri}/models", f"{s3.uri}/images", f"{s3.uri}/there", beam_args=job_server)
    assert (there.predicted, there.quarantined, there.already) == (20, 1, 0)
    assert predict_source(model, f"{s3.uri}/images", f"{s3.uri}/here") == there
    assert read_rows("there") == read_rows("here")
    assert len(read_rows("there")) == 21
