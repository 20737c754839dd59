"""Inputs that people complained about in public, as they give them to ``imagepipe ingest``: each ends right."""

import json
import os
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from pipeline.cli import app
from tests.conftest import encode_image

pytestmark = pytest.mark.slow

TINTS = {"cat": (90, 0, 0), "dog": (0, 90, 0), "bird": (0, 0, 90)}


def make_photo(*seed: int, tint: tuple[int, int, int] = (0, 0, 0)) -> bytes:
    small = np.random.default_rng(seed).integers(0, 160, (6, 8, 3)) + np.array(tint)
    return encode_image(Image.fromarray(small.astype(np.uint8)).resize((64, 48), Image.Resampling.BICUBIC))


def put(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def put_classes(root: Path, names: list[str], count: int) -> None:
    for place, name in enumerate(names):
        for number in range(count):
            put(root / name / f"{number:03}.jpg", make_photo(place, number, len(str(root))))


def command(*arguments: str | Path):
    return CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)


def ingest(source: Path, *options: str) -> dict[str, Any]:
    result = command("ingest", source, "--out", source.parent / "project" / "dataset", "--json", *options)
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout) | {"stderr": " ".join(result.stderr.split())}


def describe(source: Path) -> dict[str, Any]:
    return json.loads((source.parent / "project" / "dataset" / "dataset.json").read_text())


def count_labels(source: Path) -> dict[str, dict[str, int]]:
    return {name: split["labels"] for name, split in describe(source)["splits"].items()}


def sum_labels(source: Path) -> dict[str, int]:
    splits = count_labels(source).values()
    return {
        label: sum(split.get(label, 0) for split in splits) for label in {name for split in splits for name in split}
    }


def test_02_folders_of_splits_are_splits(tmp_path):
    source = tmp_path / "photos"
    for split, count in {"train": 12, "val": 4, "test": 3}.items():
        put_classes(source / split, ["cat", "dog"], count)
    result = ingest(source)
    assert count_labels(source) == {
        "train": {"cat": 12, "dog": 12},
        "eval": {"cat": 4, "dog": 4},
        "test": {"cat": 3, "dog": 3},
    }
    assert "val" in result["stderr"]  # what was understood


def test_03_of_an_export_no_id_copy_of_the_label_file_name_date_or_split_enters_the_network(tmp_path):
    lines = ["path,label,image_id,class_idx,split,filename,date"]
    for place, name in enumerate(TINTS):
        for number in range(60):
            put(tmp_path / f"img/{name}_{number}.jpg", make_photo(place, number))
            split = "train" if number % 5 else "val"
            lines.append(
                f"img/{name}_{number}.jpg,{name},{1000 * place + number},{place},{split},{name}_{number}.jpg,"
                f"2024-01-{1 + number % 28:02}"
            )
    source = tmp_path / "all.csv"
    source.write_text("\n".join(lines) + "\n")
    ingest(source)
    assert {name: sum(split.values()) for name, split in count_labels(source).items()} == {
        "train": 144,
        "eval": 36,
        "test": 0,
    }
    result = command("init", tmp_path / "project" / "dataset")
    config = (tmp_path / "project" / "pipeline.yaml").read_text()
    for column in ("image_id", "class_idx", "filename", "date"):
        assert column in result.stderr  # which, and why
    assert not [line for line in config.splitlines() if line.strip().startswith(("numeric:", "categorical:"))]


@pytest.mark.parametrize("seed", range(3))
def test_04_a_small_set_has_each_class_in_each_split(tmp_path, seed):
    source = tmp_path / f"photos{'_' * seed}"  # other photos
    names = [f"class{number}" for number in range(10)]
    put_classes(source, names, 20)
    ingest(source)
    for labels in count_labels(source).values():
        assert sorted(labels) == names


@pytest.mark.parametrize(
    ("names", "override", "message"),
    [
        (["0", "1"], "trainer.class_weights={0: 1, 1: 5}", None),
        (["yes", "no"], "trainer.class_weights={yes: 2, no: 1}", None),
        (["yes", "no"], "evaluation.rules=[{metric: accuracy, slice: {label: no}, min: 0.5}]", None),
        (["007", "010", "8"], "evaluation.rules=[{metric: accuracy, slice: {label: 007}, min: 0.5}]", None),
        (["007", "010", "8"], "evaluation.rules=[{metric: accuracy, slice: {label: 010}, min: 0.5}]", None),
        (["007", "010", "8"], "evaluation.rules=[{metric: accuracy, slice: {label: 7}, min: 0.5}]", "7"),
        (["007", "010", "8"], "evaluation.rules=[{metric: accuracy, slice: {label: 08}, min: 0.5}]", "08"),
        (["12:30", "0x1F"], "trainer.class_weights={12:30: 2, 0x1F: 1}", None),
        (["12:30", "0x1F"], "trainer.class_weights={750: 2, 31: 1}", "750"),
    ],
)
def test_06_names_of_classes_are_as_written_and_others_are_refused_at_once(
    tmp_path, monkeypatch, names, override, message
):
    from pipeline import run as run_module

    def stop(*_):
        raise KeyboardInterrupt("it has got past the checks")

    source = tmp_path / "photos"
    put_classes(source, names, 20)
    ingest(source)
    assert sorted(sum_labels(source)) == sorted(names)
    assert command("init", tmp_path / "project" / "dataset").exit_code == 0
    monkeypatch.setattr(run_module, "hide_output", stop)  # what follows loads TFX
    config = tmp_path / "project" / "pipeline.yaml"
    result = CliRunner().invoke(app, ["run", str(config), "--set", "trainer.weights=none", "--set", override])
    if message is None:
        assert result.exit_code == 130, result.stderr
    else:
        assert result.exit_code == 2, result.stderr
        assert message in result.stderr
        assert any(name in result.stderr for name in names)  # what there is


def test_08_na_is_a_missing_number(tmp_path):
    lines = ['"path","label","age","lat"']
    for place, name in enumerate(("cat", "dog")):
        for number in range(60):
            put(tmp_path / f"img/{name}_{number}.jpg", make_photo(place, number))
            age, latitude = "NA" if number % 20 == 7 else 3 + number, "NaN" if number % 30 == 3 else 50 + number / 10
            lines.append(f'"img/{name}_{number}.jpg","{name}",{age},{latitude}')
    source = tmp_path / "all.csv"
    source.write_text("\n".join(lines) + "\n")
    assert ingest(source)["quarantined"] == 0
    types = describe(source)["features"]
    assert (types["age"], types["lat"]) == ("int64", "float")


@pytest.mark.parametrize("columns", ["path, label, price", "label, path, price", "path, label, caption"])
def test_09_blanks_after_commas_are_none(tmp_path, columns):
    lines = [columns]
    for place, name in enumerate(("cat", "dog")):
        for number in range(15):
            put(tmp_path / f"img/{name}_{number}.jpg", make_photo(place, number))
            cells = {"path": f"img/{name}_{number}.jpg", "label": name, "price": str(number)}
            cells["caption"] = f'"a {name}, sitting"'
            lines.append(", ".join(cells[column] for column in columns.split(", ")))
    source = tmp_path / "all.csv"
    source.write_text("\n".join(lines) + "\n")
    assert ingest(source)["quarantined"] == 0
    assert sum_labels(source) == {"cat": 15, "dog": 15}


def test_10_a_link_to_itself_costs_that_link_only(tmp_path):
    source = tmp_path / "photos"
    put_classes(source, ["daisy", "roses"], 15)
    (source / "daisy" / "self.jpg").symlink_to("self.jpg")
    (source / "roses" / "gone.jpg").symlink_to(tmp_path / "nowhere.jpg")
    result = ingest(source)
    assert sum_labels(source) == {"daisy": 15, "roses": 15}
    assert result["quarantined"] == 2


def test_13_the_thumbnails_of_a_nas_are_passed_over_and_counted(tmp_path):
    source = tmp_path / "photos"
    put_classes(source, ["daisy", "roses"], 15)
    for name, number in product(("daisy", "roses"), range(15)):
        thumbnail = source / name / "@eaDir" / f"{number:03}.jpg" / "SYNOPHOTO_THUMB_M.jpg"
        put(thumbnail, make_photo(9, number, len(name)))
    result = ingest(source)
    assert sum_labels(source) == {"daisy": 15, "roses": 15}
    assert "@eaDir" in json.dumps(result)


@pytest.mark.parametrize(
    "text", ["golden\nretriever", "golden\u2028retriever", "golden\x0bretriever", "misc\x85 other"]
)
def test_16_no_label_has_a_line_end_in_it(tmp_path, text):
    lines = ["path,label"]
    for place, label in enumerate(("beagle", text, "poodle")):
        for number in range(15):
            put(tmp_path / f"img/{place}_{number}.jpg", make_photo(place, number))
            lines.append(f'img/{place}_{number}.jpg,"{label}"')
    source = tmp_path / "all.csv"
    source.write_bytes(("\n".join(lines) + "\n").encode())
    assert ingest(source)["quarantined"] == 15
    assert sum_labels(source) == {"beagle": 15, "poodle": 15}


def make_table(dialect: str, rows: list[tuple[str, str]]) -> bytes:
    comma = "path,label\n" + "".join(f"{path},{label}\n" for path, label in rows)
    match dialect:
        case "pandas":
            return (",path,label\n" + "".join(f"{n},{path},{label}\n" for n, (path, label) in enumerate(rows))).encode()
        case "semicolon":
            return comma.replace(",", ";").encode()
        case "sep":
            return b"sep=;\n" + comma.replace(",", ";").encode()
        case "utf-16":
            return comma.encode("utf-16")
        case "tabs":
            return comma.replace(",", "\t").encode()
        case "capitals":
            return comma.replace("path,label", "Path,Label").encode()
        case "trailing":
            return comma.replace("\n", ",,\n").encode()
        case "backslash":
            return comma.replace("/", "\\").encode()
    raise AssertionError(dialect)


@pytest.mark.parametrize(
    "dialect", ["pandas", "semicolon", "sep", "utf-16", "tabs", "capitals", "trailing", "backslash"]
)
def test_25_a_csv_as_programs_write_it_is_read(tmp_path, dialect):
    rows = []
    for place, name in enumerate(("cat", "dog")):
        for number in range(15):
            put(tmp_path / f"img/{name}_{number}.jpg", make_photo(place, number))
            rows.append((f"img/{name}_{number}.jpg", name))
    source = tmp_path / "all.csv"
    source.write_bytes(make_table(dialect, rows))
    assert ingest(source)["quarantined"] == 0
    assert sum_labels(source) == {"cat": 15, "dog": 15}


def test_28_what_is_no_photo_is_named_for_what_it_is(tmp_path):
    source = tmp_path / "photos"
    put_classes(source, ["daisy", "roses"], 15)
    put(source / "daisy" / "IMG_1.HEIC", b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(200))
    put(source / "daisy" / "b.avif", b"\0\0\0\x1cftypavif\0\0\0\0avifmif1miaf" + bytes(200))
    put(source / "daisy" / "c.jpg", b"<!DOCTYPE html><html><body>404 Not Found</body></html>")
    put(
        source / "daisy" / "d.jpg",
        b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
    )
    assert ingest(source)["quarantined"] == 4
    quarantine = (tmp_path / "project" / "dataset" / "quarantine.jsonl").read_text()
    reasons = {Path(row["path"]).name: row["reason"] for row in map(json.loads, quarantine.splitlines())}
    assert all("broken image" in reasons[name] for name in ("IMG_1.HEIC", "b.avif"))  # sound ones are taken
    assert "HTML" in reasons["c.jpg"]
    assert "git lfs pull" in reasons["d.jpg"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_10_a_closed_folder_and_a_link_into_one_cost_themselves_only(tmp_path):
    source = tmp_path / "photos"
    put_classes(source, ["daisy", "roses"], 15)
    put(tmp_path / "closed" / "x.jpg", make_photo(9))
    (source / "daisy" / "closed.jpg").symlink_to(tmp_path / "closed" / "x.jpg")
    closed = (source / "roses", tmp_path / "closed")
    for folder in closed:
        folder.chmod(0)
    try:
        result = ingest(source)
    finally:
        for folder in closed:
            folder.chmod(0o700)
    assert sum_labels(source) == {"daisy": 15}
    assert result["quarantined"] == 2
