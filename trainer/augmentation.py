"""Augmentation: random changes to the training images, batch by batch, inside tf.data.

Every draw comes from the seed that is passed in, so the same seed gives the same images on any number of threads and
after a restart. Keras's layers hold their generator as a variable, which a parallel map reads in any order, and its
RandAugment draws the same operations for a whole batch; hence these few functions.
"""

import math
from collections.abc import Callable

import tensorflow as tf

from imagepipe.base.features import IMAGE
from trainer.config import AugmentationConfig
from trainer.inputs import Tensors
from transform.examples import CORES

Augment = Callable[[tf.Tensor, tf.Tensor, tf.Tensor], tuple[tf.Tensor, tf.Tensor]]

_RAND_AUGMENT_ROUNDS = 2  # the paper's N


def make_augmentation(config: AugmentationConfig) -> Augment:
    """Returns the function that augments a batch; options that are off cost nothing.

    Args:
        config: which changes to make, and how strong.

    Returns:
        A function from images, uint8 ``[n, height, width, 3]`` with static height and width; targets, float32
        ``[n, k]``; and a seed, int32 ``[2]``, a different one for each batch; to images and targets of the same shapes
        and dtypes. Only MixUp and CutMix change targets. If everything is off, images are unchanged bit for bit.
    """
    warps = any((config.horizontal_flip, config.vertical_flip, config.rotation, config.zoom, config.shift))

    def augment(images: tf.Tensor, target: tf.Tensor, seed: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        if not config.is_on:
            return images, target
        shape = images.shape
        # A seed for each kind of change: turning one on leaves the draws of the others unchanged.
        warp_seed, rounds_seed, signs_seed, light_seed, blur_seed, mix_seed = tf.unstack(
            tf.random.experimental.stateless_split(seed, 6)
        )
        count, height, width = tf.shape(images)[0], shape[1], shape[2]

        matrices = _draw_matrices(config, count, height, width, warp_seed)
        rounds = []
        if config.rand_augment:
            draws = [_RAND_AUGMENT_ROUNDS, count]
            operations = tf.random.stateless_uniform(draws, rounds_seed, 0, _OPERATION_COUNT, tf.int32)
            signs = tf.sign(tf.random.stateless_uniform(draws, signs_seed, -1, 1))
            rounds = list(zip(tf.unstack(operations), tf.unstack(config.rand_augment * signs), strict=True))
            for operation, strength in rounds:
                matrices = tf.matmul(matrices, _make_reshaping_matrices(operation, strength, height, width))
        # RandAugment's geometry is part of the one warp, so that each image is resampled once.
        images = _warp(images, matrices) if warps or rounds else tf.cast(images, tf.float32)
        for operation, strength in rounds:
            images = _recolour(images, operation, strength)

        if config.brightness or config.contrast:
            brightness, contrast = tf.unstack(tf.random.stateless_uniform([2, count, 1, 1, 1], light_seed, -1, 1))
            images = _relight(images, config.brightness * brightness, 1 + config.contrast * contrast)
        if config.blur_sigma:
            sigma = tf.random.stateless_uniform([count], blur_seed, 0, config.blur_sigma)
            images = _blur(images, sigma, config.blur_sigma)
        if config.mixup or config.cutmix:
            images, target = _mix(images, target, config, mix_seed)
        return tf.cast(tf.round(tf.ensure_shape(images, shape)), tf.uint8), target

    return augment


def augment_batches(batches: tf.data.Dataset, config: AugmentationConfig, seed: int, first: int) -> tf.data.Dataset:
    """Augments the images of batches of (inputs, targets).

    Args:
        batches: see ``inputs.read_batches``.
        config: which changes to make, and how strong.
        seed: 0 or more.
        first: number of the first batch: each number gives other changes.
    """
    augment = make_augmentation(config)

    def augment_batch(number: tf.Tensor, batch: tuple[Tensors, tf.Tensor]) -> tuple[Tensors, tf.Tensor]:
        inputs, target = batch
        images, target = augment(inputs[IMAGE], target, tf.cast([seed, number], tf.int32))
        return {**inputs, IMAGE: images}, target

    return batches.enumerate(first).map(augment_batch, num_parallel_calls=CORES, deterministic=True)


def _draw_matrices(config: AugmentationConfig, count: tf.Tensor, height: int, width: int, seed: tf.Tensor) -> tf.Tensor:
    flip_x, flip_y, angle, zoom, shift_x, shift_y = tf.unstack(tf.random.stateless_uniform([6, count], seed, -1, 1))
    scale = 1 / (1 + config.zoom * zoom)

    def flip_at_random(draw: tf.Tensor) -> tf.Tensor:
        return tf.where(draw < 0, -scale, scale)

    return _make_affine_matrices(
        angle=math.radians(config.rotation) * angle,
        scale_x=flip_at_random(flip_x) if config.horizontal_flip else scale,
        scale_y=flip_at_random(flip_y) if config.vertical_flip else scale,
        shift_x=config.shift * width * shift_x,
        shift_y=config.shift * height * shift_y,
    )


def _make_affine_matrices(
    angle: tf.Tensor,
    shift_x: tf.Tensor,
    shift_y: tf.Tensor,
    scale_x: tf.Tensor | float = 1.0,
    scale_y: tf.Tensor | float = 1.0,
    shear_x: tf.Tensor | float = 0.0,
    shear_y: tf.Tensor | float = 0.0,
) -> tf.Tensor:
    """Returns matrices ``[n, 3, 3]`` that map positions in the result to the original, in pixels from the centre."""
    cos, sin, zero = tf.cos(angle), tf.sin(angle), tf.zeros_like(angle)
    rows = [
        [(cos - sin * shear_y) * scale_x, (cos * shear_x - sin) * scale_y, shift_x],
        [(sin + cos * shear_y) * scale_x, (sin * shear_x + cos) * scale_y, shift_y],
        [zero, zero, zero + 1],
    ]
    return tf.stack([tf.stack(row, axis=-1) for row in rows], axis=-2)


# Compiled, this is one loop over the pixels, some four times as fast as TensorFlow's ImageProjectiveTransformV3.
@tf.function(jit_compile=True)
def _warp(images: tf.Tensor, matrices: tf.Tensor) -> tf.Tensor:
    """Resamples bilinearly; images are mirrored beyond their borders, so that no border is visible."""
    height, width = images.shape[1], images.shape[2]
    centre_x, centre_y = (width - 1) / 2, (height - 1) / 2
    x = tf.range(width, dtype=tf.float32) - centre_x
    y = (tf.range(height, dtype=tf.float32) - centre_y)[:, None]

    def locate(row: int, centre: float, size: int) -> tuple[tf.Tensor, tf.Tensor]:
        a, b, shift = (matrices[:, row, column, None, None] for column in range(3))
        mirrored = size - 0.5 - tf.abs(tf.math.floormod(a * x + b * y + shift + centre + 0.5, 2.0 * size) - size)
        exact = tf.clip_by_value(mirrored, 0.0, size - 1.0)
        whole = tf.floor(exact)
        return tf.cast(whole, tf.int32), (exact - whole)[..., None]

    left, right_share = locate(0, centre_x, width)
    top, lower_share = locate(1, centre_y, height)
    # Neighbours beyond the last row and column have a share of 0, but must exist.
    pixels = tf.pad(tf.reshape(images, [-1, height * width, 3]), [[0, 0], [0, width + 1], [0, 0]])

    def gather_neighbour(offset: int) -> tf.Tensor:
        return tf.cast(tf.gather(pixels, top * width + left + offset, batch_dims=1), tf.float32)

    upper = _blend(gather_neighbour(0), gather_neighbour(1), right_share)
    lower = _blend(gather_neighbour(width), gather_neighbour(width + 1), right_share)
    return _blend(upper, lower, lower_share)


def _blend(first: tf.Tensor, second: tf.Tensor, share_of_second: tf.Tensor) -> tf.Tensor:
    return first + (second - first) * share_of_second


def _relight(images: tf.Tensor, brightness: tf.Tensor, contrast: tf.Tensor) -> tf.Tensor:
    """Scales levels around the image's mean, then shifts them by a share of full white; both ``[n, 1, 1, 1]``."""
    mean = tf.reduce_mean(images, axis=[1, 2, 3], keepdims=True)
    return tf.clip_by_value(images * contrast + (mean * (1 - contrast) + 255 * brightness), 0, 255)


def _blur(images: tf.Tensor, sigma: tf.Tensor, max_sigma: float) -> tf.Tensor:
    """Blurs each image with its own Gaussian of ``sigma`` pixels, ``[n]``, at most ``max_sigma``."""
    _, height, width, channels = images.shape
    radius = math.ceil(3 * max_sigma)
    offsets = tf.range(-radius, radius + 1, dtype=tf.float32)[:, None]
    kernels = tf.exp(-(offsets**2) / (2 * tf.maximum(sigma, 1e-3) ** 2))
    kernels = tf.repeat(kernels / tf.reduce_sum(kernels, axis=0), channels, axis=1)
    # A depthwise convolution has a kernel for each channel: all images of the batch become channels of one.
    stacked = tf.reshape(tf.transpose(images, [1, 2, 0, 3]), [1, height, width, -1])
    stacked = tf.pad(stacked, [[0, 0], [radius, radius], [radius, radius], [0, 0]], "SYMMETRIC")
    for kernel in (kernels[:, None, :, None], kernels[None, :, :, None]):
        stacked = tf.nn.depthwise_conv2d(stacked, kernel, [1, 1, 1, 1], "VALID")
    return tf.transpose(tf.reshape(stacked, [height, width, -1, channels]), [2, 0, 1, 3])


def _mix(
    images: tf.Tensor, target: tf.Tensor, config: AugmentationConfig, seed: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor]:
    """Mixes each image with its partner, from the reversed batch, and their targets by the same share.

    The share is drawn for each image: MixUp (Zhang et al. 2018, arXiv:1710.09412) or CutMix (Yun et al. 2019,
    arXiv:1905.04899).
    """
    coin_seed, first_seed, second_seed, box_seed = tf.unstack(tf.random.experimental.stateless_split(seed, 4))
    count = tf.shape(images)[0]
    backwards = tf.range(count - 1, -1, -1)

    def draw_partner_share(alpha: float) -> tf.Tensor:
        # Beta(alpha, alpha) from two gammas, in double precision: with a small alpha both are close to 0.
        first, second = (
            tf.random.stateless_gamma([count], gamma_seed, alpha, dtype=tf.float64)
            for gamma_seed in (first_seed, second_seed)
        )
        return tf.cast(tf.math.divide_no_nan(first, first + second), tf.float32)

    def mix(mask: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        share = tf.reduce_mean(mask, axis=[1, 2, 3])[:, None]
        # A gather copies whole images; a slice [::-1] goes pixel by pixel and takes many times as long.
        return (
            _blend(images, tf.gather(images, backwards), mask),
            _blend(target, tf.gather(target, backwards), share),
        )

    def mixup() -> tuple[tf.Tensor, tf.Tensor]:
        return mix(draw_partner_share(config.mixup)[:, None, None, None])

    def cutmix() -> tuple[tf.Tensor, tf.Tensor]:
        return mix(_draw_boxes(draw_partner_share(config.cutmix), images.shape[1], images.shape[2], box_seed))

    if config.mixup and config.cutmix:
        return tf.cond(tf.random.stateless_uniform([], coin_seed) < 0.5, mixup, cutmix)
    return mixup() if config.mixup else cutmix()


def _draw_boxes(share: tf.Tensor, height: int, width: int, seed: tf.Tensor) -> tf.Tensor:
    """Returns masks ``[n, height, width, 1]``: 1 in a box of the given share of the area, 0 around it.

    As in the paper, the box's centre is anywhere in the image, and parts outside the image are cut off.
    """
    centres = tf.random.stateless_uniform([2, tf.shape(share)[0]], seed)

    def is_inside(centre: tf.Tensor, size: int) -> tf.Tensor:
        distance = tf.range(size, dtype=tf.float32) + 0.5 - size * centre[:, None]
        return tf.abs(distance) <= size * tf.sqrt(share)[:, None] / 2

    rows, columns = is_inside(centres[0], height), is_inside(centres[1], width)
    return tf.cast(rows[:, :, None, None] & columns[:, None, :, None], tf.float32)


# RandAugment (Cubuk et al. 2020, arXiv:1909.13719): its 14 operations in its ranges, two of them for each image. A
# strength is the magnitude with a random sign, -1 to 1; if an operation has no direction, the absolute value counts.

_RESHAPING_COUNT = 5  # operations 0 to 4: rotation, shear and shift


def _make_reshaping_matrices(operation: tf.Tensor, strength: tf.Tensor, height: int, width: int) -> tf.Tensor:
    rotation, shear_x, shear_y, shift_x, shift_y = (
        tf.where(operation == number, strength, 0.0) for number in range(_RESHAPING_COUNT)
    )
    return _make_affine_matrices(
        angle=math.radians(30) * rotation,
        shear_x=0.3 * shear_x,
        shear_y=0.3 * shear_y,
        shift_x=0.45 * width * shift_x,
        shift_y=0.45 * height * shift_y,
    )


def _recolour(images: tf.Tensor, operation: tf.Tensor, strength: tf.Tensor) -> tf.Tensor:
    """Applies to each image the recolouring operation that was drawn for it."""
    # Partitioned, so that each operation is computed only for its own images.
    numbers = tf.maximum(operation - _RESHAPING_COUNT, 0)
    indices = tf.dynamic_partition(tf.range(tf.shape(images)[0]), numbers, len(_RECOLOURING))
    parts = [
        recolour(tf.gather(images, chosen), tf.gather(strength, chosen)[:, None, None, None])
        for recolour, chosen in zip(_RECOLOURING, indices, strict=True)
    ]
    return tf.ensure_shape(tf.dynamic_stitch(indices, parts), images.shape)


def _keep(images: tf.Tensor, strength: tf.Tensor) -> tf.Tensor:
    return images


def _stretch_levels(images: tf.Tensor, strength: tf.Tensor) -> tf.Tensor:
    low, high = (reduce(images, axis=[1, 2], keepdims=True) for reduce in (tf.reduce_min, tf.reduce_max))
    return tf.where(high > low, (images - low) * tf.math.divide_no_nan(255.0, high - low), images)


def _equalize(images: tf.Tensor, strength: tf.Tensor) -> tf.Tensor:
    height, width = images.shape[1], images.shape[2]
    levels = tf.reshape(tf.transpose(tf.cast(images, tf.int32), [0, 3, 1, 2]), [-1, height * width])
    ranks = tf.cumsum(tf.math.bincount(levels, minlength=256, maxlength=256, axis=-1), axis=-1)
    lowest = tf.reduce_min(tf.where(ranks > 0, ranks, height * width), axis=-1, keepdims=True)
    equal = tf.cast(255 * (ranks - lowest) / tf.maximum(height * width - lowest, 1), tf.float32)
    channels = tf.reshape(tf.gather(equal, levels, batch_dims=1), [-1, 3, height, width])
    return tf.transpose(channels, [0, 2, 3, 1])


def _solarize(images: tf.Tensor, strength: tf.Tensor) -> tf.Tensor:
    return tf.where(images >= 256 * (1 - tf.abs(strength)), 255 - images, images)


def _posterize(images: tf.Tensor, strength: tf.Tensor) -> tf.Tensor:
    step = 2 ** tf.round(4 * tf.abs(strength))
    return tf.floor(images / step) * step


def _make_enhancement(degenerate: Callable[[tf.Tensor], tf.Tensor]) -> Callable[[tf.Tensor, tf.Tensor], tf.Tensor]:
    """Returns Pillow's ImageEnhance: blends with a degenerate image (strength below 0), or away from it (above 0)."""

    def enhance(images: tf.Tensor, strength: tf.Tensor) -> tf.Tensor:
        return tf.clip_by_value(_blend(degenerate(images), images, 1 + 0.9 * strength), 0, 255)

    return enhance


def _average_grey(images: tf.Tensor) -> tf.Tensor:
    return tf.reduce_mean(tf.image.rgb_to_grayscale(images), axis=[1, 2, 3], keepdims=True)


def _smooth(images: tf.Tensor) -> tf.Tensor:
    """Applies Pillow's SMOOTH: a mean of nine pixels, in which the middle one counts five times."""
    return (9 * tf.nn.avg_pool2d(images, 3, 1, "SAME") + 4 * images) / 13


_RECOLOURING = (
    _keep,
    _stretch_levels,
    _equalize,
    _solarize,
    _posterize,
    _make_enhancement(tf.image.rgb_to_grayscale),  # colour
    _make_enhancement(_average_grey),  # contrast
    _make_enhancement(tf.zeros_like),  # brightness
    _make_enhancement(_smooth),  # sharpness
)
_OPERATION_COUNT = _RESHAPING_COUNT + len(_RECOLOURING)
