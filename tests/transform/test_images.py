import struct
from functools import cache

import numpy as np
import pytest
import tensorflow as tf
from PIL import ExifTags, Image, ImageChops

from imagepipe.base.images import normalize
from tests.conftest import encode_image
from transform.images import decode_and_resize


def run(images: list[bytes], size: tuple[int, int]) -> np.ndarray:
    return _trace(size)(tf.constant(images)).numpy()


@cache  # most of the time of these tests would be tracing
def _trace(size: tuple[int, int]) -> tf.types.experimental.PolymorphicFunction:
    signature = [tf.TensorSpec([None], tf.string)]
    return tf.function(lambda images: decode_and_resize(images, size), input_signature=signature)


def test_images_of_any_size_and_kind_leave_as_uint8_rgb_of_one_size(photo):
    gray, opaque, palette = photo.convert("L"), photo.convert("RGBA"), photo.convert("P")
    images = [
        encode_image(photo),
        encode_image(gray),
        encode_image(gray.resize((50, 300)), "PNG"),
        encode_image(opaque, "PNG"),
        encode_image(palette, "PNG"),
        encode_image(photo.resize((1, 1)), "PNG"),
    ]
    pixels = run(images, (96, 80))
    assert pixels.dtype == np.uint8
    assert pixels.shape == (6, 96, 80, 3)
    assert np.array_equal(pixels[1][..., 0], pixels[1][..., 2])  # gray stays gray
    assert np.abs(pixels[0].astype(int) - pixels[3]).mean() < 3


def test_an_image_of_model_size_keeps_every_pixel(photo):
    image = photo.resize((80, 96))
    assert np.array_equal(run([encode_image(image, "PNG")], (96, 80))[0], np.asarray(image))


def test_downscaling_is_antialiased():
    checkerboard = Image.fromarray((np.indices((512, 512)).sum(axis=0) % 2 * 255).astype(np.uint8))
    inner = run([encode_image(checkerboard, "PNG")], (64, 64))[0, 4:-4, 4:-4]
    assert np.abs(inner.astype(int) - 127).max() <= 2


@pytest.mark.parametrize("size", [(1, 1), (7, 5), (80, 96), (96, 299), (299, 96), (1, 400), (401, 1), (350, 370)])
@pytest.mark.parametrize("shape", [(1, 1), (97, 80), (240, 320)])
def test_resizing_gives_the_pixels_of_tensorflows_antialiased_resize_to_the_last_bit(shape, size):
    noise = np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8)
    expected = tf.round(tf.image.resize(noise, size, antialias=True)).numpy()
    assert np.array_equal(run([encode_image(Image.fromarray(noise), "PNG")], size)[0], expected)


@pytest.mark.parametrize("factor", [1.0, 1.9, 2.0, 3.3, 4.0, 8.0])
def test_a_large_jpeg_decoded_at_a_fraction_looks_like_one_decoded_whole(photo, factor):
    size = (int(photo.height / factor), int(photo.width / factor))
    jpeg = encode_image(photo, quality=92)
    whole = tf.image.resize(tf.io.decode_jpeg(jpeg, channels=3), size, antialias=True).numpy()
    # At a fraction of just the size wanted (2, 4, 8) the DCT is the only filter, and sharper than the triangle.
    assert np.abs(run([jpeg], size)[0].astype(float) - whole).mean() < 6
    aliased = np.asarray(photo.resize(size[::-1], Image.Resampling.NEAREST)).astype(float)
    assert factor == 1.0 or np.abs(aliased - whole).mean() > 8  # what it would be without a filter


def test_a_fraction_never_leaves_fewer_pixels_than_the_model_wants():
    # Fine stripes that an eighth would wipe out: a height that only just misses a fraction must be decoded at more.
    stripes = Image.fromarray((np.indices((199, 800))[1] // 4 % 2 * 255).astype(np.uint8))
    at_half = run([encode_image(stripes, quality=95)], (100, 200))[0].astype(float)
    whole = tf.image.resize(
        tf.io.decode_jpeg(encode_image(stripes, quality=95), channels=3), (100, 200), antialias=True
    ).numpy()
    assert np.abs(at_half - whole).mean() < 2.0


def prepared_like_ingest(encoded: bytes) -> bytes:
    prepared = normalize(encoded).data
    assert prepared != encoded
    return prepared


@pytest.mark.parametrize("orientation", range(2, 9))
def test_a_lying_photo_is_turned_upright_as_ingest_turns_it(photo, orientation):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    size = (96, 144)
    png = encode_image(photo, "PNG", exif=exif)
    lying, upright = run([png, prepared_like_ingest(png)], size).astype(int)
    assert np.abs(lying - upright).max() <= 1  # of a mean, which is rounded
    # Encoded anew, with other blocks; and decoded at a quarter, which for an odd size begins at another edge.
    for smooth in (photo, photo.resize((640, 424))):
        jpeg = encode_image(smooth, quality=95, exif=exif)
        lying, upright, ignored = run([jpeg, prepared_like_ingest(jpeg), encode_image(smooth)], size).astype(int)
        assert np.abs(lying - upright).mean() < 2.5
        assert np.abs(ignored - upright).mean() > 15


def test_what_is_transparent_is_laid_on_white_to_the_last_bit_as_ingest_does(photo):
    fading = Image.fromarray(np.tile(np.linspace(0, 255, photo.width).astype(np.uint8), (photo.height, 1)))
    color, gray, palette, two = photo.convert("RGBA"), photo.convert("LA"), photo.convert("P"), photo.convert("1")
    color.putalpha(fading)
    gray.putalpha(fading)
    encoded = [
        encode_image(color, "PNG"),
        encode_image(gray, "PNG"),
        encode_image(palette, "PNG", transparency=bytes(range(256))),
        encode_image(photo.quantize(4), "PNG", bits=2, transparency=1),
        encode_image(photo.convert("L"), "PNG", transparency=100),
        encode_image(photo, "PNG", transparency=photo.getpixel((0, 0))),
        encode_image(two, "PNG", transparency=0),
        make_bmp(color, alpha_mask=b"\0\0\0\xff"),
    ]
    expected = run([prepared_like_ingest(image) for image in encoded], (80, 96))
    assert np.array_equal(run(encoded, (80, 96)), expected)


def test_pixels_of_few_or_many_bits_are_those_of_ingest(photo):
    deep = (np.asarray(photo.convert("L")).astype(np.uint16) << 8) + 77
    encoded = [
        encode_image(Image.fromarray(deep), "PNG"),
        encode_image(photo.convert("1"), "PNG"),
        encode_image(photo.quantize(16), "PNG", bits=4),
        encode_image(photo, "BMP"),
        encode_image(photo.convert("RGBA"), "BMP"),
        make_bmp(photo.convert("RGBA"), alpha_mask=b"\0\0\0\0"),
    ]
    expected = run([prepared_like_ingest(image) for image in encoded], (80, 96))
    assert np.array_equal(run(encoded, (80, 96)), expected)


def make_bmp(image: Image.Image, alpha_mask: bytes) -> bytes:
    """A BMP whose header (BITMAPV4HEADER) says where the bits of blue, green, red and alpha are."""
    pixels = image.transpose(Image.Transpose.FLIP_TOP_BOTTOM).tobytes("raw", "BGRA")
    sizes = struct.pack("<IiiHHIIiiII", 108, *image.size, 1, 32, 3, len(pixels), 0, 0, 0, 0)
    masks = b"\0\0\xff\0\0\xff\0\0\xff\0\0\0" + alpha_mask
    header = sizes + masks + bytes(108 - len(sizes) - len(masks))
    return b"BM" + struct.pack("<IHHI", 14 + 108 + len(pixels), 0, 0, 14 + 108) + header + pixels


def test_inks_become_the_colors_of_ingest(photo):
    inks = photo.convert("CMYK")
    adobes = encode_image(inks, quality=95)
    at = adobes.index(b"\xff\xee\0\x0eAdobe")
    photoshops = adobes[: at + 15] + b"\2" + adobes[at + 16 :]  # as if its channels were YCCK, in wild colors
    plain = encode_image(ImageChops.invert(inks), quality=95)  # Pillow writes them inverted, as Adobe does
    plain = plain[:at] + plain[at + 16 :]
    for jpeg, tolerance in ((adobes, 1), (photoshops, 6), (plain, 1)):
        graphs, ingests = run([jpeg, prepared_like_ingest(jpeg)], (96, 144)).astype(int)
        assert np.abs(graphs - ingests).mean() < tolerance
    same = run([adobes, plain, encode_image(photo)], (96, 144)).astype(int)
    assert np.abs(same - same[2]).mean() < 2


def test_kinds_that_tensorflow_decodes_otherwise_or_not_are_refused_in_words(photo):
    small = photo.resize((60, 40))
    others = {
        "an animated WebP, which ends a process of TensorFlow 2.21": encode_image(
            small, "WEBP", save_all=True, append_images=[small.rotate(90)]
        ),
        "a WebP": encode_image(small, "WEBP"),
        "a TIFF": encode_image(small, "TIFF"),
        "a BMP with a palette, whose indices would become grays": encode_image(small.convert("P"), "BMP"),
        "a BMP of bits": encode_image(small.convert("1"), "BMP"),
        "text": b"not an image",
        "nothing": b"",
    }
    for kind, encoded in others.items():
        with pytest.raises(tf.errors.InvalidArgumentError, match="JPEG, PNG, GIF, or BMP of 24 or 32 bits"):
            pytest.fail(f"{kind} gave pixels: {run([encode_image(small), encoded], (32, 32)).shape}")


def test_an_undecodable_image_is_an_error_of_its_batch(photo):
    with pytest.raises(tf.errors.InvalidArgumentError):
        run([encode_image(photo), encode_image(photo)[:1000]], (32, 32))
