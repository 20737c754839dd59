import io

import numpy as np
import pytest
from PIL import Image, ImageEnhance

from imagepipe.base import appearance, images
from imagepipe.ingest.command import ingest


def measure(image: Image.Image) -> appearance.Appearance:
    return appearance.measure_appearance(appearance.make_thumbnail(image))


def distance(one: appearance.Appearance, other: appearance.Appearance) -> int:
    return (int(one.dhash, 16) ^ int(other.dhash, 16)).bit_count()


def test_copies_in_another_size_quality_or_brightness_have_nearly_the_same_hash_and_another_photo_has_not(photos):
    one, other = map(measure, photos)
    buffer = io.BytesIO()
    photos[0].save(buffer, "JPEG", quality=30)
    for copy in (
        Image.open(buffer),
        photos[0].resize((200, 133)),
        ImageEnhance.Brightness(photos[0]).enhance(0.7),
        photos[0].convert("L"),
    ):
        assert distance(one, measure(copy)) <= 7
    assert distance(one, other) > 20


def test_brightness_is_the_mean_and_contrast_the_deviation_of_luma():
    assert measure(Image.new("RGB", (50, 20), "white")) == (1.0, 0.0, "0" * 16)
    halves = Image.fromarray(np.repeat([[0] * 32 + [255] * 32], 64, axis=0).astype(np.uint8))
    assert measure(halves)[:2] == (0.5, 0.5)
    assert measure(Image.new("RGB", (9, 9), (255, 0, 0))).brightness == pytest.approx(0.299, abs=2e-3)  # ITU-R BT.601


def test_appearance_is_the_same_decoded_small_or_whole(photos, encode):
    jpeg = encode(photos[0], "JPEG", quality=95)
    unchanged = appearance.measure_appearance(images.normalize(jpeg).thumbnail)
    converted = appearance.measure_appearance(images.normalize(jpeg, max_side=300).thumbnail)
    whole = measure(Image.open(io.BytesIO(jpeg)))
    for other in (converted, whole):
        assert distance(unchanged, other) <= 3
        assert other[:2] == pytest.approx(unchanged[:2], abs=0.02)


def test_every_record_has_the_appearance_of_its_image(photos, put, encode, records, tmp_path):
    turned = Image.Exif()
    turned[0x0112] = 6
    jpeg = encode(photos[0], "JPEG")
    put("source/a/plain.jpg", jpeg)
    put("source/a/image.png", encode(photos[1], "PNG"))
    put("source/b/turned.jpg", encode(photos[0], "JPEG", exif=turned.tobytes()))
    ingest(str(tmp_path / "source"), str(tmp_path / "out"))
    features = {f["metadata"].bytes_list.value[0].decode(): f for _, f in records(tmp_path / "out").values()}
    plain, upright = features["a/plain.jpg"], features["b/turned.jpg"]
    assert plain["bytes"].int64_list.value == [len(jpeg)]
    assert plain["aspect"].float_list.value == pytest.approx([640 / 427])
    assert upright["aspect"].float_list.value == pytest.approx([427 / 640])
    for feature in features.values():
        assert feature["bytes"].int64_list.value == [len(feature["input"].bytes_list.value[0])]
        whole = measure(Image.open(io.BytesIO(feature["input"].bytes_list.value[0])))
        assert feature["brightness"].float_list.value == pytest.approx([whole.brightness], abs=0.02)
        assert feature["contrast"].float_list.value == pytest.approx([whole.contrast], abs=0.02)
        assert (int(feature["dhash"].bytes_list.value[0], 16) ^ int(whole.dhash, 16)).bit_count() <= 3
