import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from tests.conftest import encode_image
from transform.images import decode_and_resize


def run(images: list[bytes], size: tuple[int, int]) -> np.ndarray:
    return tf.function(lambda x: decode_and_resize(x, size))(tf.constant(images)).numpy()


def test_images_of_any_size_and_kind_leave_as_uint8_rgb_of_one_size(photo):
    gray, alpha, palette = photo.convert("L"), photo.convert("RGBA"), photo.convert("P")
    images = [
        encode_image(photo),
        encode_image(gray),
        encode_image(gray.resize((50, 300)), "PNG"),
        encode_image(alpha, "PNG"),
        encode_image(palette, "PNG"),
        encode_image(photo.resize((1, 1)), "PNG"),
    ]
    pixels = run(images, (96, 80))
    assert pixels.dtype == np.uint8
    assert pixels.shape == (6, 96, 80, 3)
    assert np.array_equal(pixels[1][..., 0], pixels[1][..., 2])  # gray stays gray
    assert np.abs(pixels[0].astype(int) - pixels[3]).mean() < 3  # alpha dropped, colours kept


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


def test_an_undecodable_image_is_an_error_of_its_batch(photo):
    with pytest.raises(tf.errors.InvalidArgumentError):
        run([encode_image(photo), b"not an image"], (32, 32))
