import collections
import contextlib
import io
import random
import struct
import sys
import zlib
from collections.abc import Iterator

import numpy as np
import pytest
from PIL import Image, ImageFile, TiffImagePlugin

from imagepipe.base.images import BadImage, normalize, prepare_for_decoder
from tests.photos import HEIC


def pixels(data):
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).astype(int)


def differ(one, other):
    """Mean difference of two arrays of pixels, of 255."""
    assert one.shape == other.shape
    return np.abs(one.astype(int) - other.astype(int)).mean()


def fix_checksums(png):
    """Corrects the checksums of a PNG's chunks, in place, as far as chunks can be found."""
    at = 8
    while at + 12 <= len(png):
        end = at + 8 + int.from_bytes(png[at : at + 4], "big")
        if end + 4 > len(png):
            return
        png[end : end + 4] = struct.pack(">I", zlib.crc32(png[at + 4 : end]))
        at = end + 4


def reason(data, **options):
    with pytest.raises(BadImage) as error:
        normalize(data, **options)
    return str(error.value)


@pytest.fixture(scope="module")
def photo(photos):
    return photos[0].crop((100, 100, 260, 220))


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 2}, {"comment": b"x"}])
@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_upright_gray_and_rgb_jpeg_pass_byte_for_byte(photo, encode, mode, options):
    data = encode(photo.convert(mode), "JPEG", **options)
    image = normalize(data)
    assert (image.data, image.width, image.height, image.format) == (data, 160, 120, "jpeg")


def test_the_several_pictures_of_a_phones_jpeg_pass_unchanged(photo, encode):
    data = encode(photo, "MPO", save_all=True, append_images=[photo.rotate(180)])
    image = normalize(data)
    assert (image.data, image.format) == (data, "mpo")


def test_opaque_rgb_png_passes_byte_for_byte(photo, encode):
    data = encode(photo, "PNG")
    assert normalize(data).data == data


@pytest.mark.parametrize("format_", ["PNG", "BMP", "TIFF", "WEBP", "GIF"])
def test_lossless_formats_become_rgb_without_loss(photo, encode, format_):
    source = photo.quantize(64) if format_ == "GIF" else photo
    image = normalize(encode(source, format_, **({"lossless": True} if format_ == "WEBP" else {})))
    assert image.format == format_.lower()
    assert Image.open(io.BytesIO(image.data)).mode == "RGB"
    assert differ(pixels(image.data), np.asarray(source.convert("RGB"))) == 0


def test_lossy_webp_becomes_jpeg(photo, encode):
    image = normalize(encode(photo, "WEBP", quality=90))
    assert image.format == "webp"
    assert image.data.startswith(b"\xff\xd8")
    assert differ(pixels(image.data), np.asarray(photo)) < 6


def test_avif_becomes_jpeg_upright(photo, encode):
    turned = Image.Exif()
    turned[0x0112] = 3
    for exif, upright in ((b"", photo), (turned.tobytes(), photo.rotate(180))):
        image = normalize(encode(photo, "AVIF", quality=90, exif=exif))
        assert image.format == "avif"
        assert image.data.startswith(b"\xff\xd8")
        assert differ(pixels(image.data), np.asarray(upright)) < 6


def test_heic_becomes_jpeg_upright():
    image = normalize(HEIC)
    assert (image.format, image.width, image.height) == ("heif", 64, 96)
    assert image.data.startswith(b"\xff\xd8")
    left, right = pixels(image.data)[48, [8, 56]]
    assert left[2] > 150 > left[0]
    assert right[0] > 150 > right[2]
    assert reason(HEIC, max_pixels=1000).startswith("over the limit of 0.001 megapixels")
    assert reason(HEIC[:500])
    assert reason(HEIC[:200])


def test_heic_without_its_package_names_the_remedy(monkeypatch):
    monkeypatch.setitem(sys.modules, "pi_heif.as_plugin", None)
    assert reason(HEIC) == "HEIC needs a package that is not installed: pip install 'imagepipe-tfx[heic]'"


@pytest.mark.parametrize("tags", [{50706: b"\1\4\0\0"}, {254: 1, 330: 8}])
def test_a_raw_photo_is_not_read_as_its_preview(photo, encode, tags):
    info = TiffImagePlugin.ImageFileDirectory_v2()
    for tag, value in tags.items():
        info[tag] = value
    data = encode(photo, "TIFF", tiffinfo=info)
    assert reason(data) == "a camera's RAW photo, which is not read: convert it to JPEG"
    info = TiffImagePlugin.ImageFileDirectory_v2()
    info[254] = 1  # a reduced picture, but the only one
    assert normalize(encode(photo, "TIFF", tiffinfo=info)).width == photo.width


def test_cmyk_jpeg_becomes_rgb_jpeg_of_the_same_look(photo, encode):
    image = normalize(encode(photo.convert("CMYK"), "JPEG", quality=95))
    assert Image.open(io.BytesIO(image.data)).mode == "RGB"
    assert differ(pixels(image.data), np.asarray(photo)) < 6


@pytest.mark.parametrize("format_", ["JPEG", "TIFF", "PNG", "WEBP"])
@pytest.mark.parametrize("orientation", range(2, 9))
def test_exif_orientation_is_applied_to_the_pixels(photo, encode, format_, orientation):
    # What each value asks for, as EXIF 2.32 defines it: where row 0 and column 0 of the stored pixels belong.
    stored = np.asarray(photo)
    upright = {
        2: stored[:, ::-1],
        3: stored[::-1, ::-1],
        4: stored[::-1],
        5: stored.transpose(1, 0, 2),
        6: stored[::-1].transpose(1, 0, 2),
        7: stored[::-1, ::-1].transpose(1, 0, 2),
        8: stored[:, ::-1].transpose(1, 0, 2),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"JPEG": {"quality": 95, "subsampling": 0}, "WEBP": {"lossless": True}}.get(format_, {})
    image = normalize(encode(photo, format_, exif=exif.tobytes(), **options))
    assert (image.height, image.width) == upright.shape[:2]
    assert differ(pixels(image.data), upright) < (4 if format_ == "JPEG" else 1e-9)
    assert Image.open(io.BytesIO(image.data)).getexif().get(0x0112, 1) == 1


def test_transparency_is_laid_on_white(encode):
    clear = Image.new("RGBA", (4, 4), (255, 0, 0, 0))
    clear.putpixel((0, 0), (255, 0, 0, 255))
    clear.putpixel((1, 0), (255, 0, 0, 51))
    palette = Image.new("P", (4, 4), 1)
    palette.putpalette([0, 0, 0, 255, 0, 0])
    decoded = pixels(normalize(encode(clear, "PNG")).data)
    assert decoded[0, 0].tolist() == [255, 0, 0]
    assert decoded[0, 1].tolist() == [255, 204, 204]
    assert decoded[3, 3].tolist() == [255, 255, 255]
    assert pixels(normalize(encode(palette, "PNG", transparency=1)).data)[0, 0].tolist() == [255, 255, 255]
    gray = Image.new("LA", (2, 2), (0, 0))
    assert pixels(normalize(encode(gray, "PNG")).data)[0, 0].tolist() == [255, 255, 255]


def test_a_decoder_that_turns_gets_lying_jpegs_unchanged(photo, encode):
    exif = Image.Exif()
    exif[0x0112] = 6
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
    inks = encode(photo.convert("CMYK"), "JPEG")
    for data in (encode(photo, "JPEG", exif=exif), encode(photo, "JPEG", xmp=xmp), inks):
        assert prepare_for_decoder(data, decoder_turns=True)[0] == data
        assert prepare_for_decoder(data)[0] != data
    data = encode(photo, "PNG", exif=exif)
    assert prepare_for_decoder(data, decoder_turns=True) == prepare_for_decoder(data)
    assert prepare_for_decoder(data)[1:] == (photo.height, photo.width)


@pytest.mark.parametrize("format_", ["PNG", "TIFF"])
def test_16_bit_gray_is_scaled_not_clipped(encode, format_):
    ramp = np.linspace(0, 65535, 256 * 4).reshape(4, 256).astype(np.uint16)
    decoded = pixels(normalize(encode(Image.fromarray(ramp), format_)).data)
    assert np.abs(decoded[..., 0] - ramp / 257).max() <= 1


def test_float_pixels_of_unknown_range_are_refused(encode):
    data = encode(Image.fromarray(np.ones((4, 4), np.float32)), "TIFF")
    assert "range is not known" in reason(data)


def test_only_the_first_frame_of_an_animation_is_taken(encode):
    frames = [Image.new("RGB", (8, 8), color) for color in ("red", "blue")]
    for format_ in ("GIF", "PNG", "WEBP", "TIFF"):
        lossless = {"lossless": True} if format_ == "WEBP" else {}
        data = encode(frames[0], format_, save_all=True, append_images=frames[1:], **lossless)
        assert pixels(normalize(data).data)[0, 0].tolist() == [255, 0, 0], format_


def test_max_side_shrinks_with_antialiasing_and_only_larger_images(encode):
    stripes = np.zeros((256, 512, 3), np.uint8)
    stripes[:, ::2] = 255  # of the width of a pixel: without antialiasing they stay black and white
    for format_ in ("PNG", "JPEG"):
        image = normalize(
            encode(Image.fromarray(stripes), format_, **({"quality": 95} if format_ == "JPEG" else {})), max_side=100
        )
        assert (image.width, image.height) == (100, 50)
        assert np.abs(pixels(image.data) - 127).max() < 25
    small = encode(Image.fromarray(stripes[:50, :100]), "JPEG")
    assert normalize(small, max_side=100).data == small


def test_max_side_holds_for_extreme_shapes_and_turned_images(photo, encode):
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = normalize(encode(photo, "JPEG", exif=exif.tobytes()), max_side=40)
    assert (turned.width, turned.height) == (30, 40)
    thin = normalize(encode(Image.new("RGB", (3000, 1)), "PNG"), max_side=10)
    assert (thin.width, thin.height) == (10, 1)


def test_one_pixel_is_an_image(encode):
    for format_ in ("JPEG", "PNG", "GIF", "BMP", "WEBP"):
        image = normalize(encode(Image.new("RGB", (1, 1), "red"), format_))
        assert (image.width, image.height) == (1, 1)


def test_pixel_limit_is_ours_and_is_checked_before_decoding(photo, encode, monkeypatch):
    # 60000 x 60000 pixels claimed by a PNG of a few bytes, and by a JPEG and a GIF whose headers were changed.
    png = bytearray(encode(photo, "PNG"))
    png[16:24] = struct.pack(">II", 60000, 60000)
    png[29:33] = struct.pack(">I", zlib.crc32(png[12:29]))
    jpeg = bytearray(encode(photo, "JPEG"))
    frame = jpeg.index(b"\xff\xc0")
    jpeg[frame + 5 : frame + 9] = struct.pack(">HH", 60000, 60000)
    gif = bytearray(encode(photo, "GIF"))
    gif[6:10] = struct.pack("<HH", 60000, 60000)

    def load(*_):
        raise AssertionError("decoded")

    monkeypatch.setattr(ImageFile.ImageFile, "load", load)
    for bomb in (png, jpeg, gif):
        assert reason(bytes(bomb)) == "over the limit of 100 megapixels: it has 3,600.0"
    monkeypatch.undo()
    data = encode(photo, "JPEG")
    assert reason(data, max_pixels=160 * 120 - 1) == "over the limit of 0.019199 megapixels: it has 0.0"
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)  # Pillow's own limit has no say
    assert normalize(data, max_pixels=160 * 120).data == data


def test_reasons_are_plain(photo, encode, monkeypatch):
    assert reason(b"") == "empty file"
    assert reason(b"this is no image").startswith("not an image")
    assert reason(b"%!PS-Adobe-3.0 EPSF-3.0") == "PostScript, which is not read: convert it"
    assert reason(b"RIFF\0\0\0\0WAVEfmt ").startswith("not an image")
    assert reason(encode(photo, "JPEG")[:2000]) == "truncated image"
    assert reason(encode(photo, "JPEG")[:-2]) == "truncated image"
    assert reason(encode(photo, "PNG")[:2000]) == "truncated image"
    damaged = bytearray(encode(photo, "PNG"))
    damaged[3000] ^= 1
    assert reason(bytes(damaged)) == "broken image: a checksum is wrong"
    assert reason(b"\xff\xd8\xff") != ""
    monkeypatch.setattr("imagepipe.base.images.MAX_BYTES", 2**20)
    assert reason(b"\xff\xd8\xff" + bytes(2**20)) == "file of more than 1 MiB"


def test_running_out_of_memory_is_a_reason_not_a_crash(photo, encode, monkeypatch):
    def load(*_):
        raise MemoryError

    monkeypatch.setattr(ImageFile.ImageFile, "load", load)
    assert "memory" in reason(encode(photo, "BMP"))


def test_broken_exif_does_not_cost_a_good_image(photo, encode):
    data = encode(photo, "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff")
    assert normalize(data).data == data


def test_jpeg_of_a_rare_kind_never_passes_unchanged(photo, encode):
    data = bytearray(encode(photo, "JPEG"))
    data[data.index(b"\xff\xc0") + 1] = 0xC9  # arithmetic coding, which many decoders are built without
    with contextlib.suppress(BadImage):
        assert normalize(bytes(data)).data != bytes(data)


def damaged(photo, encode) -> Iterator[bytes]:
    """Seeded cuts and flips of real files."""
    exif = Image.Exif()
    exif[0x0112] = 1
    seeds = [
        encode(photo, "JPEG"),
        encode(photo, "JPEG", progressive=True, exif=exif.tobytes()),
        encode(photo.convert("L"), "JPEG", restart_marker_blocks=4),
        encode(photo, "MPO", save_all=True, append_images=[photo.rotate(180)]),
        encode(photo, "PNG"),
        encode(photo, "PNG", compress_level=0),
        encode(photo.quantize(32), "PNG"),
        encode(photo, "GIF"),
        encode(photo, "WEBP"),
        encode(photo, "BMP"),
        encode(photo, "TIFF"),
    ]
    draw = random.Random(20)  # noqa: S311 (no secret)
    for seed in seeds:
        for _ in range(150):
            data = bytearray(seed)
            kind = draw.randrange(4)
            if kind == 0:
                del data[draw.randrange(len(data)) :]
            elif kind == 1:
                del data[len(data) - draw.randrange(1, 12) :]
            else:
                for _ in range(draw.choice((1, 1, 3, 20))):
                    # Headers are where decoders disagree.
                    place = draw.randrange(min(len(data), 700)) if kind == 2 else draw.randrange(len(data))
                    data[place] = draw.randrange(256)
            if seed.startswith(b"\x89PNG") and kind > 1:
                fix_checksums(data)  # else all that is tested is that they are looked at
            yield bytes(data)


def tensorflow_decodes(data: bytes, width: int, height: int) -> bool:
    import tensorflow as tf

    try:
        return tf.io.decode_image(data, channels=3, expand_animations=False).shape == (height, width, 3)
    except tf.errors.InvalidArgumentError:
        return False


def test_what_passes_is_decoded_by_tensorflow_to_the_same_size(photo, encode):
    passed = refused = 0
    for data in damaged(photo, encode):
        try:
            image = normalize(data, max_pixels=1_000_000)
        except BadImage:
            refused += 1
            continue
        passed += 1
        assert tensorflow_decodes(image.data, image.width, image.height)
    assert passed > 200
    assert refused > 200


def test_what_a_decoder_is_left_to_prove_it_decodes_exactly_if_it_passes(photo, encode):
    outcomes = collections.Counter()
    for data in damaged(photo, encode):
        kept = taken = None
        with contextlib.suppress(BadImage):
            kept = normalize(data, max_pixels=1_000_000).data
        with contextlib.suppress(BadImage):
            taken, width, height = prepare_for_decoder(data, max_pixels=1_000_000)
        if taken == data:
            assert tensorflow_decodes(data, width, height) == (kept == data)
        else:
            assert taken == kept
        outcomes[taken == data, kept == data] += 1
    assert outcomes[True, True] > 100
    assert outcomes[True, False] > 20
