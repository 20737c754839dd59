"""False alarms and what is found by the whole way: files of three days, `imagepipe monitor`, and its exit status."""

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from imagepipe.capture.files import write_rows
from imagepipe.monitoring.reference_rows import write_reference
from pipeline.cli import app
from pipeline.cli.shared import MOVED
from tests.monitoring.test_two_samples import IMAGES, draw

DAYS = 3
NOON = datetime.now(UTC).replace(hour=12, minute=0, second=0, microsecond=0)


def draw_rows(rng: np.random.Generator, count: int, **shift: float) -> list[dict]:
    """Images and answers as rows, in the order of the days, of which each has as many."""
    sample = draw(rng, count, **shift)
    columns = {name: values.tolist() for name, values in sample.numbers.items()}
    embeddings = [*sample.embedding.astype(np.float16), *[None] * (count - len(sample.embedding))]
    return [
        {
            "time": NOON - timedelta(days=1 + number * DAYS // count) + timedelta(milliseconds=number),
            "metadata": str(number).encode(),
            "version": "3",
            "label": sample.labels[number][0],
            "embedding": embeddings[place],
            "height": 240,
            **{name: values[number] for name, values in columns.items()},
        }
        for number, place in enumerate(rng.permutation(count))
    ]


def ask_monitor(rng: np.random.Generator, folder: Path, **shift: float) -> tuple[int, dict]:
    """Draws a reference and traffic; returns what `imagepipe monitor` exits with and prints."""
    splits = (("train", 3000), ("eval", 1000))
    reference = [row | {"split": split} for split, count in splits for row in draw_rows(rng, count)]
    write_reference(f"{folder}/reference.parquet", reference, "classification", "3", "")
    write_rows(f"{folder}/traffic", draw_rows(rng, IMAGES, **shift), "all")
    command = ["monitor", f"{folder}/traffic", "--against", f"{folder}/reference.parquet", "--json"]
    result = CliRunner().invoke(app, command)
    return result.exit_code, json.loads(result.stdout)


@pytest.mark.parametrize("draws", [2, pytest.param(200, marks=pytest.mark.long)])
@pytest.mark.parametrize(
    ("shift", "measure"),
    [({}, None), ({"brighter": 0.5}, "brightness"), ({"doubled": 2.0}, "label")],
    ids=["none", "brighter by half a sd", "class doubled"],
)
def test_monitor_exits_with_3_if_traffic_of_three_days_has_moved_and_seldom_else(shift, measure, draws, tmp_path):
    rng = np.random.default_rng(7)
    alarms = correct = 0
    for number in range(draws):
        (tmp_path / f"{number}").mkdir()
        status, figures = ask_monitor(rng, tmp_path / f"{number}", **shift)
        assert [part["images"] for part in figures["parts"]] == [333, 333, 334, IMAGES]
        assert status == (MOVED if figures["moved"] else 0)
        alarms += status == MOVED
        correct += measure in figures["moved"]
    print(f"\n{alarms} of {draws} draws were an alarm, {correct} of which named {measure}")
    assert (alarms <= 0.05 * draws) if measure is None else (correct >= 0.95 * draws)
