"""Which columns `init` enters into the configuration: none that names its image, or gives the label away."""

import io

import numpy as np
import pytest
from PIL import Image

from imagepipe.ingest import dataset as datasets
from imagepipe.ingest.command import ingest
from pipeline import init
from pipeline.columns import find_unsuitable_columns
from pipeline.config_file import read_config

CLASSES = ("cat", "dog", "bird")
IMAGES = 60  # of each class


def make_columns(random, name, index, number):
    """Values of an image of a class: by column whether it may enter, and the value."""
    return {
        "image_id": 1000 * index + number,
        "serial": 1000 * index + max(number, 3),
        "burst": f"{index}-{number // 2}",
        "uuid": f"{random.integers(2**60):015x}",
        "class_idx": index,
        "class_share": index / 2,
        "breed": f"{name} {number % 4}",
        "subset": "train" if number % 5 else "val",
        "filename": f"{name}_{number}.jpg",
        "folder": f"/data/{number % 7}/",
        "date": f"2024-01-{1 + number % 28:02}",
        "day": 20240101 + number % 28,
        "taken": f"{1 + number % 28}.1.2024 10:{number:02}",
        "oracle": f"{1 + number % 28:02}-JAN-24",
        "month": f"Jan {1 + number % 28}, 2024",
        "time": 1_700_000_000 + 60 * (number // 2),
        "caption": f"a {name} that is number {number}",
        "camera": f"cam{random.integers(3)}",
        "age": random.integers(80),
        "weight": f"{10 + random.random():.9f}",
        "hint": name if random.random() < 0.8 else "other",
        "constant": 1,
        "size": random.choice(["1/2", "3/4", "S", "M"]),
    }


GOOD = ["age", "camera", "constant", "hint", "size", "weight"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("columns")
    random = np.random.default_rng(0)
    lines = []
    for index, name in enumerate(CLASSES):
        for number in range(IMAGES):
            buffer = io.BytesIO()
            Image.fromarray(random.integers(0, 256, (8, 8, 3), np.uint8)).save(buffer, "PNG")
            (folder / f"{name}{number}.png").write_bytes(buffer.getvalue())
            columns = make_columns(random, name, index, number)
            lines.append([f"{name}{number}.png", name, f"{index + number / 100:.2f}", *columns.values()])
    for task, label in (("classification", 1), ("regression", 2)):
        header = ["path", "label", "copy", *columns]
        rows = [
            header,
            *(
                [line[0], line[label], line[2] if label == 2 else number % 4, *line[3:]]
                for number, line in enumerate(lines)
            ),
        ]
        text = "\n".join(",".join(f'"{value}"' for value in row) for row in rows)
        (folder / f"{task}.csv").write_text(text)
        ingest(folder / f"{task}.csv", folder / task, task=task, workers=1)
    return folder


def find(folder, name):
    description = datasets.load(str(folder / name))
    names = sorted(set(description.features) - set(datasets.list_features(description.options.task)))
    return names, find_unsuitable_columns(str(folder / name), description, names)


def test_columns_that_name_their_image_or_give_the_label_away_are_found_with_the_reason(folder):
    names, problems = find(folder, "classification")
    assert sorted(set(names) - set(problems)) == sorted([*GOOD, "copy"])
    for reason, columns in {
        "as an id is": ["image_id", "serial", "uuid", "caption"],
        "tells the label of": ["class_idx", "class_share", "breed"],
        "are splits": ["subset"],
        "are paths or file names": ["filename", "folder"],
        "are dates": ["date", "day", "taken", "oracle", "month", "time"],
        "new images have others": ["burst"],
    }.items():
        assert [name for name in columns if reason not in problems[name]] == []
    assert problems["class_idx"].startswith("class_idx: its value alone tells the label of ")


def test_in_a_small_set_a_copy_of_the_split_or_the_label_and_a_path_are_found_too(folder):
    lines = ["path,label,split,fold,copy,file,maker,age"]
    for index, name in enumerate(CLASSES):
        for number in range(8):
            split = "val" if number == 7 else "train"
            maker = ("Canon", "Nikon")[(index + number) % 2]
            lines.append(f"{name}{number}.png,{name},{split},{split},{index},dcim/{number}.jpg,{maker},{number % 5}")
    (folder / "small.csv").write_text("\n".join(lines))
    ingest(folder / "small.csv", folder / "small", workers=1)
    _, problems = find(folder, "small")
    assert {name: problems[name].partition(": ")[2].partition(",")[0] for name in problems} == {
        "fold": "its values are splits",
        "copy": "its value alone tells the label of 10 of 10 images held out from finding that",
        "file": "its values are paths or file names",
    }


def test_a_column_that_gives_a_number_away_is_found(folder):
    _, problems = find(folder, "regression")
    assert problems["copy"] == "copy: its value alone tells the label: their rank correlation is 1.0000"
    assert not set(problems) & {*GOOD, "class_idx"}


def test_init_leaves_them_out_and_says_which_and_why(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(init, "is_imagenet_available", lambda: True)
    notes = init.write_config(folder / "classification", tmp_path / "pipeline.yaml")
    features = read_config(tmp_path / "pipeline.yaml").data.features
    assert features.numeric == ("age", "constant", "copy", "weight")
    assert features.categorical == ("camera", "hint", "size")
    (note,) = [note for note in notes if "image_id" in note]
    assert note.startswith(
        "This column was left out of data.features: image_id: each image has a value of its own, such as "
    )
