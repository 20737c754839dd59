"""A run with a search before the training, as a user does it."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from pipeline.cli import app
from pipeline.runs.summary import Summary
from tests.conftest import list_summaries, make_digit_images
from tests.small_backbone import BACKBONE

pytestmark = pytest.mark.long

SETTINGS = [
    "data.validation.min_images={train: 1, eval: 0}",
    "image.size=[32, 32]",
    f"trainer={{backbone: '{BACKBONE}', weights: none, epochs: 1}}",
    "evaluation={thresholds: {accuracy: 0}, margin: 1}",
    "tuner={trials: 2, space: {head_units: {min: 8, max: 64}, augmentation.rotation: {values: [0, 5, 20]}}}",
]


def command(*arguments: str):
    return CliRunner().invoke(app, list(arguments), catch_exceptions=False)


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("tuner") / "digits"
    for number, (label, png) in enumerate(make_digit_images(120)):
        (root / "images" / label).mkdir(parents=True, exist_ok=True)
        (root / "images" / label / f"{number:03}.png").write_bytes(png)
    assert command("ingest", str(root / "images"), "--out", str(root / "dataset")).exit_code == 0
    assert command("init", str(root / "dataset")).exit_code == 0
    return root


def run(root: Path) -> tuple[Summary, str]:
    sets = [argument for setting in SETTINGS for argument in ("--set", setting)]
    result = command("run", str(root / "pipeline.yaml"), *sets)
    (summary, *_) = list_summaries(root / "runs")
    assert result.exit_code == 0, summary.error
    return summary, result.stderr


def test_the_trainer_takes_the_best_of_the_search_and_both_come_from_the_cache_the_next_time(root):
    summary, output = run(root)
    (results,) = (root / "artifacts" / "Tuner" / "tuner_results").glob("*/tuner_results.json")
    trials = json.loads(results.read_text())
    assert len(trials) == 2
    best = min(trials, key=lambda trial: trial["score"])
    values = {key: best[key] for key in ("head_units", "augmentation.rotation")}
    assert summary.hyperparameters == values
    assert "the best of the search: augmentation.rotation " in output
    assert f", head_units {values['head_units']}\n" in output

    training = Path(str(summary.model_dir)).parent / "training"
    used = json.loads((training / "config.json").read_text())["trainer"]
    assert used["head_units"] == values["head_units"]
    assert used["augmentation"]["rotation"] == values["augmentation.rotation"]
    (epoch,) = json.loads((training / "history.json").read_text())
    assert epoch["val_loss"] == pytest.approx(best["score"], rel=1e-4)  # it trains just as the trial did
    assert [file.name for file in (root / "artifacts" / ".training").iterdir()] == [
        ".lock"
    ]  # neither pixels nor trials

    again, _ = run(root)
    assert {node.id for node in again.nodes if node.cached} >= {"Tuner", "Trainer"}
    assert again.hyperparameters == values
