"""Half an hour of requests, good and bad, while versions change every minute: answers stay right, memory stays flat.

Every second version has a form for OpenVINO, so that the engine changes with each.
"""

import itertools
import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np
import psutil
import pytest

from tests.serving.conftest import FORM_NOVELTY, add_form, save_brightness
from tests.serving.test_serve import BAD, serving
from tests.serving.test_server import PREDICT, b64, gray

MINUTES = float(os.environ.get("SOAK_MINUTES", "30"))
CALLERS = 8


def add_version(folder: Path, version: int) -> None:
    names = (f"dark{version}", f"light{version}")
    assets = folder.parent / "assets"
    saved = save_brightness(folder.parent / f"saved-{version}", assets, names)
    if version % 2 == 0:
        add_form(saved, assets, names)
    saved.rename(folder / str(version))


@pytest.mark.long
def test_memory_stays_flat_while_versions_change(tmp_path):
    folder = tmp_path / "brightness"
    folder.mkdir()
    add_version(folder, 1)
    memory: list[float] = []
    with serving(folder) as (process, url), httpx.Client(base_url=url, timeout=60) as http:
        server = psutil.Process(process.pid)
        end = time.monotonic() + 60 * MINUTES
        images = {"dark": b64(gray(10)), "light": b64(gray(250))}
        novelties: set[float] = set()

        def ask(caller: int) -> int:
            refusals, number = itertools.cycle(BAD.items()), 0
            while time.monotonic() < end:
                number += 1
                if number % 20 == caller:
                    reason, body = next(refusals)
                    response = http.post(PREDICT, **{"content" if isinstance(body, bytes) else "json": body})
                    assert (response.status_code, reason in response.json()["error"]) == (400, True), response.text
                    continue
                expected = ("dark", "light")[number % 2]
                response = http.post(PREDICT, json={"instances": [{"input": images[expected]}] * (1 + number % 9)})
                assert response.status_code == 200, response.text
                predictions = response.json()["predictions"]
                assert {row["label"].rstrip("0123456789") for row in predictions} == {expected}
                novelties.update(row["novelty"] for row in predictions)
            return number

        def change_versions() -> int:
            version, seconds = 1, min(60, 60 * MINUTES / 5)
            while time.monotonic() + seconds < end:
                for _ in range(int(seconds)):
                    memory.append(server.memory_info().rss / 2**20)
                    time.sleep(1)
                version += 1
                add_version(folder, version)
            return version

        with ThreadPoolExecutor(CALLERS + 1) as pool:
            changing = pool.submit(change_versions)
            requests = sum(pool.map(ask, range(CALLERS)))
        versions = changing.result()
        deadline = time.monotonic() + 60
        while http.get("/v1/models/brightness").json()["model_version_status"][0]["version"] != str(versions):
            assert time.monotonic() < deadline
            time.sleep(0.1)
    assert FORM_NOVELTY in novelties  # OpenVINO answered, and TensorFlow
    assert len(novelties) > 1
    third = len(memory) // 3
    early, late = (np.median(part) for part in (memory[third : 2 * third], memory[2 * third :]))
    print(f"\n{requests:,} requests, {versions} versions, {early:.0f} MiB in the second third, {late:.0f} in the last")
    assert late < early * 1.05
