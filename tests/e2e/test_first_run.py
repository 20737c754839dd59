"""The README's commands on somebody's first images, for each task, with no key set: minutes each on 2 cores.

``tests.e2e.test_tasks`` does the same in the gate with a small network.
"""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from pipeline.cli import app
from pipeline.runs.summary import Summary

pytestmark = pytest.mark.long

IMAGES = 160
_SIDE = 64


def command(*arguments: str):
    return CliRunner().invoke(app, list(arguments), catch_exceptions=False)


def write_images(root: Path) -> list[float]:
    """Writes noise, dark and light in turn; returns the images' mean brightness."""
    generator = np.random.default_rng(0)
    means = []
    for number in range(IMAGES):
        pixels = generator.normal(40 if number % 2 else 215, 20, (_SIDE, _SIDE, 3)).clip(0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(root / f"{number:03}.png")
        means.append(float(pixels.mean()))
    return means


@pytest.mark.parametrize("task", ["classification", "multilabel", "regression"])
def test_the_first_model_goes_live_and_predicts(tmp_path, task):
    means = write_images(tmp_path)
    light, dark = {
        "classification": ("light", "dark"),
        "multilabel": ("light|bright", "dark"),
        "regression": (None, None),
    }[task]
    labels = [(dark if number % 2 else light) or f"{mean:.2f}" for number, mean in enumerate(means)]
    lines = ["path,label", *(f"{number:03}.png,{label}" for number, label in enumerate(labels))]
    (tmp_path / "all.csv").write_text("\n".join(lines) + "\n")
    root = tmp_path / "first"

    option = [] if task == "classification" else ["--task", task]
    ingested = command("ingest", str(tmp_path / "all.csv"), "--out", str(root / "dataset"), *option)
    assert ingested.exit_code == 0, ingested.stderr
    assert command("init", str(root / "dataset")).exit_code == 0
    result = command("run", str(root / "pipeline.yaml"), "--json")
    summary = Summary.model_validate_json(result.stdout)
    assert (result.exit_code, summary.not_blessed_because, summary.blessed) == (0, [], True), result.stderr
    assert f"pushed as version {summary.pushed_version}" in result.stderr
    assert (summary.unchecked is None) == (task == "classification")  # which has a threshold by default

    answers = command(
        "predict", str(root / "serving" / "first"), *(str(tmp_path / f"00{i}.png") for i in (0, 1)), "--json"
    )
    first, second = map(json.loads, answers.stdout.splitlines())
    if task == "regression":
        assert first["score"] > 150 > 100 > second["score"]
    else:
        assert ["light" in first["label"], second["label"]] == [True, "dark"]
