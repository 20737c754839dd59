"""Image ops: encoded bytes to pixels of one size, as TensorFlow graph ops.

JPEGs are resized in two steps: libjpeg can scale by 1/2, 1/4 or 1/8 inside the inverse DCT at a fraction of the cost of
a full decode; an antialiased resize does the rest. On photos of 14 megapixels this is 1.6 to 1.8 times as fast as a
full decode, with a mean difference of 1 in 255.
"""

import functools

import tensorflow as tf

_JPEG_MAGIC = b"\xff\xd8\xff"
_DCT_RATIOS = (8, 4, 2, 1)


def decode_and_resize(encoded: tf.Tensor, size: tuple[int, int]) -> tf.Tensor:
    """Decodes and resizes a batch of images.

    Args:
        encoded: string ``[n]``, JPEG, PNG, BMP or GIF (its first frame); gray and RGBA become RGB (alpha is dropped).
        size: (height, width) of the result in pixels; the aspect ratio is not kept.

    Returns:
        uint8 ``[n, height, width, 3]``, RGB in 0..255. Downscaling is antialiased (triangle filter).

    Raises:
        tf.errors.InvalidArgumentError: at run time, if one of the images cannot be decoded.
    """
    return tf.map_fn(
        functools.partial(_decode_and_resize_one, size=size),
        encoded,
        fn_output_signature=tf.TensorSpec([*size, 3], tf.uint8),
    )


def _decode_and_resize_one(encoded: tf.Tensor, size: tuple[int, int]) -> tf.Tensor:
    is_jpeg = tf.equal(tf.strings.substr(encoded, 0, len(_JPEG_MAGIC)), _JPEG_MAGIC)
    pixels = tf.cond(
        is_jpeg,
        lambda: _decode_jpeg(encoded, size),
        lambda: tf.io.decode_image(encoded, channels=3, expand_animations=False),
    )
    pixels.set_shape([None, None, 3])
    return _resize(pixels, size)


def _decode_jpeg(encoded: tf.Tensor, size: tuple[int, int]) -> tf.Tensor:
    """Decodes at the smallest fraction that still has at least ``size`` pixels in each direction."""
    shape = tf.image.extract_jpeg_shape(encoded)
    fits = [tf.logical_and(shape[0] >= size[0] * r, shape[1] >= size[1] * r) for r in _DCT_RATIOS[:-1]]
    branch = tf.argmax(tf.stack([*fits, True]), output_type=tf.int32)  # argmax takes the first that is true
    decoders = [functools.partial(tf.io.decode_jpeg, encoded, channels=3, ratio=r) for r in _DCT_RATIOS]
    return tf.switch_case(branch, decoders)


def _resize(pixels: tf.Tensor, size: tuple[int, int]) -> tf.Tensor:
    """Resizes uint8 ``[h, w, 3]`` as ``tf.image.resize(pixels, size, antialias=True)`` does, bit for bit, then rounds.

    TensorFlow processes whole rows at once, but within a row one pixel after the other. So both directions are resized
    as rows, with transpositions in between: 1.0 instead of 2.6 ms of a core from 320x240 to 299x299, 1.6 instead of 2.9
    from 598x590.
    """
    height, width = size
    columns = tf.transpose(_resize_rows(pixels, height), [1, 0, 2])
    # Means of pixels with non-negative weights: what exceeds 0..255 is less than rounding removes.
    return tf.transpose(tf.cast(tf.round(_resize_rows(columns, width)), tf.uint8), [1, 0, 2])


def _resize_rows(pixels: tf.Tensor, count: int) -> tf.Tensor:
    """Resizes ``[h, w, 3]`` to float32 ``[count, w, 3]``, as an image one pixel wide whose channels are a whole row."""
    height, width, channels = tf.unstack(tf.shape(pixels))
    rows = tf.image.resize(tf.reshape(pixels, [height, 1, width * channels]), (count, 1), antialias=True)
    return tf.reshape(rows, [count, width, channels])
