"""Flowers that the test has spoiled, by the commands that a user types: DataCheck finds it all, and the run stops."""

import hashlib
import io
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from imagepipe.ingest.command import DEFAULT_SPLITS
from imagepipe.ingest.policy import choose_split
from pipeline.cli import app
from tests.conftest import list_summaries

pytestmark = pytest.mark.slow

FLOWERS = Path(__file__).parents[2].parent / "shared" / "flowers"
CUT, LEFT, FLIPPED, COPIES = "tulips", 5, 12, 30
KEYS = ("trainer.weights=none", "trainer.epochs=1", "image.size=[96, 96]")


def command(*arguments: str):
    return CliRunner().invoke(app, list(arguments), catch_exceptions=False)


def split(data: bytes) -> str:
    return choose_split(hashlib.sha256(data).hexdigest(), DEFAULT_SPLITS)


def copy_in_another_split(original: Path) -> bytes:
    """The same photo, a little smaller and in the first quality that ingest puts into another split."""
    with Image.open(original) as photo:
        smaller = photo.convert("RGB").resize((photo.width * 9 // 10, photo.height * 9 // 10))
    for quality in range(90, 30, -1):
        buffer = io.BytesIO()
        smaller.save(buffer, "JPEG", quality=quality)
        if split(buffer.getvalue()) != split(original.read_bytes()):
            return buffer.getvalue()
    raise AssertionError(original)


@pytest.fixture(scope="module")
def spoiled(tmp_path_factory) -> dict:
    """A run on 700 flowers, five tulips left, 12 others in a wrong folder, 30 copied into another split."""
    if not FLOWERS.is_dir():
        pytest.skip(f"there is no {FLOWERS}")
    root = tmp_path_factory.mktemp("flowers") / "flowers"
    images = root.parent / "images"
    random = np.random.default_rng(6)
    for folder in sorted(FLOWERS.glob("*/*")):
        shutil.copytree(folder, images / folder.name, dirs_exist_ok=True)
    for photo in sorted((images / CUT).iterdir())[LEFT:]:
        photo.unlink()
    names = sorted(folder.name for folder in images.iterdir() if folder.name != CUT)
    photos = sorted(photo for photo in images.glob("*/*.jpg") if photo.parent.name != CUT)
    chosen = [photos[i] for i in random.permutation(len(photos))[: FLIPPED + COPIES]]
    flipped, copies = set(), set()
    for photo in chosen[FLIPPED:]:
        (photo.parent / f"copy-{photo.name}").write_bytes(copy_in_another_split(photo))
        copies.add(frozenset({f"{photo.parent.name}/{photo.name}", f"{photo.parent.name}/copy-{photo.name}"}))
    for photo in chosen[:FLIPPED]:
        wrong = str(random.choice([name for name in names if name != photo.parent.name]))
        shutil.move(photo, images / wrong / photo.name)
        flipped.add(f"{wrong}/{photo.name}")
    assert command("ingest", str(images), "--out", str(root / "dataset")).exit_code == 0
    assert command("init", str(root / "dataset")).exit_code == 0
    sets = [argument for key in KEYS for argument in ("--set", key)]
    result = command("run", str(root / "pipeline.yaml"), *sets)
    (summary,) = list_summaries(root / "runs")
    findings = json.loads((Path(str(summary.data_dir)) / "findings.json").read_text())
    return {"result": result, "summary": summary, "findings": findings, "flipped": flipped, "copies": copies}


def test_a_class_with_too_few_images_stops_the_run_before_training(spoiled):
    result, summary = spoiled["result"], spoiled["summary"]
    assert (result.exit_code, summary.status) == (1, "failed")
    assert [node.id for node in summary.nodes][-1] == "DataCheck"
    assert "Traceback" not in result.stderr
    assert summary.error.startswith("DataGate failed: the data can't be used for training.\n- 'tulips' has ")
    assert "at least 10 are needed" in summary.error
    assert summary.error.splitlines()[1] in result.stderr


def test_near_duplicates_across_splits_are_listed_by_their_ids(spoiled):
    listed = [{image["id"] for image in group} for group in spoiled["findings"]["near_duplicates"]]
    assert all(len({image["split"] for image in group}) > 1 for group in spoiled["findings"]["near_duplicates"])
    assert sum(any(pair <= group for group in listed) for pair in spoiled["copies"]) >= COPIES - 1
    assert len(listed) <= COPIES + 5  # the flowers themselves have two pairs, which may or may not lie across
    (finding,) = [f for f in spoiled["findings"]["findings"] if f["kind"] == "near_duplicates"]
    assert finding["severity"] == "warning"
    assert set(finding["examples"]) == set().union(*listed)


def test_most_wrong_labels_are_among_the_first_forty_candidates(spoiled):
    first = [error["id"] for error in spoiled["findings"]["label_errors"][:40]]
    assert len(first) == 40
    assert len(spoiled["flipped"] & set(first)) >= 8
