import io
import os

import numpy as np
import pytest
from PIL import Image, ImageDraw

from imagepipe.base import contact_sheet, tfrecord
from imagepipe.base.overview import draw_classes, draw_values

SPLITS = {"train": 8, "eval": 2}


def record(color, *labels, size=(60, 40), kind="PNG", input_=None):
    buffer = io.BytesIO()
    Image.new("RGB", size, color).save(buffer, kind)
    values = [label.encode() if isinstance(label, str) else label for label in labels]
    return tfrecord.encode_example({"input": [input_ or buffer.getvalue()], "label": values})


@pytest.fixture
def texts(monkeypatch):
    """The texts that are drawn, in their order."""
    texts = []
    text = ImageDraw.ImageDraw.text
    monkeypatch.setattr(
        ImageDraw.ImageDraw, "text", lambda self, at, drawn, *rest: (texts.append(drawn), text(self, at, drawn, *rest))
    )
    return texts


def read_cells(png, rows, columns):
    """The colour in the middle of each picture's place."""
    sheet = Image.open(io.BytesIO(png))
    cell = contact_sheet.SIDE + 6
    return [[sheet.getpixel((230 + c * cell + 48, 44 + r * cell + 48)) for c in range(columns)] for r in range(rows)]


def test_a_row_per_class_with_its_pictures_and_its_counts(texts):
    records = [record("red", "rose"), record("blue", "iris", kind="JPEG"), record("red", "rose")]
    png = draw_classes(records, {"train": 2, "eval": 1}, {"train": {"rose": 1, "iris": 1}, "eval": {"rose": 1}})
    assert texts == [
        "3 images of 2 classes: train 2 · eval 1",
        "rose",
        "train 1 · eval 1",
        "iris",
        "train 1 · eval 0",
    ]
    white, red, blue = (255, 255, 255), (255, 0, 0), (0, 0, 254)
    assert read_cells(png, 2, 3) == [[red, red, white], [blue, white, white]]


def test_an_image_stands_in_the_row_of_each_of_its_labels():
    png = draw_classes([record("red", "a", "b")], {"train": 1}, {"train": {"a": 1, "b": 1}})
    assert read_cells(png, 2, 1) == [[(255, 0, 0)]] * 2


def test_of_many_classes_the_largest_are_shown_and_the_others_counted(texts):
    labels = {f"class {number:03}": 200 - number for number in range(100)}
    png = draw_classes([], {"train": sum(labels.values())}, {"train": labels})
    assert [text for text in texts if text.startswith("class")] == [f"class {number:03}" for number in range(20)]
    assert texts[-1] == "and 80 more, with 101 to 180 images each"
    assert Image.open(io.BytesIO(png)).height < 3000


def test_no_more_records_are_read_than_are_needed():
    def read():
        yield from (record("red", "a") for _ in range(8))
        raise AssertionError("read on")

    draw_classes(read(), {"train": 10**9}, {"train": {"a": 10**9}})


def test_rare_classes_do_not_make_it_read_everything(monkeypatch):
    monkeypatch.setattr("imagepipe.base.overview._MAX_RECORDS", 5)
    records = iter([record("red", "a")] * 10)
    draw_classes(records, {"train": 10}, {"train": {"a": 9, "rare": 1}})
    assert len(list(records)) >= 4


def test_numbers_are_shown_by_fifths_of_their_values(texts):
    values = np.random.default_rng(0).permutation(50) / 10
    png = draw_values([record((0, int(value * 50), 0), float(value)) for value in values], {"train": 50})
    assert [text for text in texts if " to " in text] == ["0 to 0.9", "1 to 1.9", "2 to 2.9", "3 to 3.9", "4 to 4.9"]
    assert texts[-1] == "by value: 5 equal parts of a sample of 50 images"
    greens = [cell[1] for row in read_cells(png, 5, 8) for cell in row]
    assert greens == sorted(greens)


def test_images_that_cannot_be_decoded_here_are_left_out():
    png = draw_classes([record("red", "a", input_=b"no image"), record("blue", "a")], SPLITS, {"train": {"a": 2}})
    assert read_cells(png, 1, 1) == [[(0, 0, 255)]]
    assert draw_values([record("red", 1.0, input_=b"\xff\xd8\xff no image")], SPLITS)


@pytest.mark.parametrize("name", ["ромашка", "قرنفل", "café crème", "Ωμέγα"])
def test_names_in_scripts_that_a_font_has_are_drawn_as_they_are(name, texts):
    draw_classes([], SPLITS, {"train": {name: 8}})
    assert name in texts


def test_what_no_font_has_is_written_as_escapes(texts, monkeypatch):
    monkeypatch.setattr(contact_sheet, "_FONT_FOLDERS", ())
    contact_sheet._find_system_fonts.cache_clear()
    draw_classes([], SPLITS, {"train": {"雛菊 1": 8}})
    contact_sheet._find_system_fonts.cache_clear()
    assert "\\u96db\\u83ca 1" in texts


def test_without_any_font_that_may_be_read_it_is_drawn_all_the_same(texts, monkeypatch, tmp_path):
    """As an ordinary user, whom permissions stop; as root they would not."""
    (tmp_path / "closed").mkdir(mode=0o000)
    monkeypatch.setattr(contact_sheet, "_FONT_FOLDERS", (str(tmp_path / "closed"),))
    monkeypatch.setattr(contact_sheet, "_find_own_font", lambda: iter([str(tmp_path / "closed/own.ttf")]))
    contact_sheet._find_system_fonts.cache_clear()
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)
    try:
        draw_classes([], SPLITS, {"train": {"daisy": 8, "雛": 1}})
    finally:
        os.seteuid(user)
        contact_sheet._find_system_fonts.cache_clear()
    assert {"daisy", "\\u96db"} <= set(texts)


def test_a_long_name_is_cut_in_its_middle(texts):
    for number in (1, 2):
        draw_classes([], SPLITS, {"train": {f"{'x' * 500} {number}": 8}})
    first, second = (text for text in texts if text.startswith("xxx"))
    assert len(first) < 40
    assert first != second


def test_the_same_records_give_the_same_bytes():
    arguments = [record("red", "a")], SPLITS, {"train": {"a": 1}}
    assert draw_classes(*arguments) == draw_classes(*arguments)
