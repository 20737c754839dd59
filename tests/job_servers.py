"""Beam's job servers in tests: to start one, and to hold what comes of a job on it against what this process makes."""

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

from imagepipe.ingest.command import ingest
from imagepipe.serving.batch import predict_source
from tests.conftest import make_digit_images
from tests.stores import Store


def find_free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        return listening.getsockname()[1]


@contextmanager
def start_server(command: Sequence[str | Path], port: int, log: Path) -> Iterator[subprocess.Popen]:
    """Runs a server, in a folder of its own, until the end of the block, which begins when it listens.

    Args:
        command: of the server; Beam's start `python`, whichever comes first: this one.
        port: where it will listen.
        log: the file for what it prints, in a folder to be made.
    """
    log.parent.mkdir()
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
        yield process
    finally:
        started = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
        for one in [*started, process]:
            with suppress(psutil.NoSuchProcess):  # those that it started may end by themselves
                one.kill()
        process.wait(timeout=60)


def put_photos(store: Store, count: int) -> str:
    """Puts digits by class and one broken file into a store; returns their folder."""
    for number, (label, png) in enumerate(make_digit_images(count)):
        store.put(f"photos/{label}/{number:04}.png", png)
    store.put("photos/0/broken.png", b"no image")
    return f"{store.uri}/photos"


def check_ingest(store: Store, beam_args: Sequence[str], count: int = 60) -> None:
    """Ingests there and here, and compares the datasets byte for byte."""
    photos = put_photos(store, count)
    there = ingest(photos, f"{store.uri}/there", workers=2, beam_args=beam_args)
    assert (there.written, there.quarantined) == (count, 1)
    check_dataset(store, photos)


def check_dataset(store: Store, photos: str) -> None:
    """Compares the dataset ``there`` with the one that this process makes of the same photos, byte for byte."""
    ingest(photos, f"{store.uri}/here", workers=2)
    present, expected = store.content("there"), store.content("here")
    assert {name.partition("/")[0] for name in expected} >= {"train", "eval", "test", "index"}
    assert present == expected


def put_model(store: Store, model: Path) -> str:
    """Puts a model into a store as version 7; returns the folder of its versions."""
    for file in model.rglob("*"):
        if file.is_file():
            store.put(f"models/7/{file.relative_to(model)}", file.read_bytes())
    return f"{store.uri}/models"


def read_rows(store: Store, folder: str) -> list[dict]:
    """Returns what a batch prediction has written, quarantined images included, by their names."""
    files = [data for name, data in store.content(folder).items() if name.startswith(("predictions-", "quarantine-"))]
    return sorted((json.loads(line) for file in files for line in file.splitlines()), key=lambda row: row["metadata"])


def check_predictions(store: Store, beam_args: Sequence[str], model: Path) -> None:
    """Asks a model in the store there, and the same one here, and compares the answers."""
    for number, (_, png) in enumerate(make_digit_images(20)):
        store.put(f"images/{number:02}.png", png)
    store.put("images/broken.png", b"no image")
    models = put_model(store, model)
    there = predict_source(models, f"{store.uri}/images", f"{store.uri}/there", beam_args=beam_args)
    assert (there.predicted, there.quarantined, there.already) == (20, 1, 0)
    assert predict_source(model, f"{store.uri}/images", f"{store.uri}/here") == there
    assert read_rows(store, "there") == read_rows(store, "here")
    assert len(read_rows(store, "there")) == 21
