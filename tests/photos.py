"""Fixtures of real photos, for tests of images and of ingest."""

import io

import pytest
from PIL import Image
from sklearn.datasets import load_sample_images


@pytest.fixture(scope="session")
def photos():
    """scikit-learn's two sample photos, 640 x 427, RGB."""
    return [Image.fromarray(pixels) for pixels in load_sample_images().images]


@pytest.fixture(scope="session")
def encode():
    def encode(image, format_, **options):
        out = io.BytesIO()
        image.save(out, format_, **options)
        return out.getvalue()

    return encode


@pytest.fixture(scope="session")
def crops(photos, encode):
    """``crops(n)``: n different small JPEGs."""

    def crops(n):
        return [encode(photos[i % 2].crop((i, i, i + 48, i + 32)), "JPEG", quality=90) for i in range(n)]

    return crops
