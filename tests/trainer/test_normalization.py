import numpy as np
import pytest
import tensorflow as tf

from trainer.normalization import channel_statistics


def test_statistics_are_those_of_all_pixels_whatever_their_order_and_batches():
    images = np.random.default_rng(0).integers(0, 256, (50, 9, 7, 3)).astype(np.uint8)
    images[..., 2] = 7
    statistics = channel_statistics(tf.data.Dataset.from_tensor_slices(images).batch(8))
    assert statistics == channel_statistics(reversed(images))
    pixels = images.reshape(-1, 3).astype(np.float64)
    assert statistics.mean == pytest.approx(pixels.mean(axis=0), rel=1e-14)
    assert statistics.variance == pytest.approx(pixels.var(axis=0), rel=1e-12)
    assert (statistics.mean[2], statistics.variance[2]) == (7, 0)


def test_no_images_have_no_statistics():
    with pytest.raises(ValueError, match="no images"):
        channel_statistics([])
