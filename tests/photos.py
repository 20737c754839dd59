"""Fixtures of real photos, for tests of images and of ingest."""

import base64
import io

import pytest
from PIL import Image
from sklearn.datasets import load_sample_images

# 96 x 64, red above blue, turned a quarter clockwise to 64 x 96: blue left, red right. No decoder of ours writes HEIC.
HEIC = base64.b64decode(
    "AAAAHGZ0eXBoZWljAAAAAG1pZjFoZWljbWlhZgAAAaFtZXRhAAAAAAAAACFoZGxyAAAAAAAAAABwaWN0AAAAAAAAAAAAAAAAAAAAADRpbG9jAAAA"
    "AERAAAIAAQAAAAABxQABAAAAAAAAADEAAgAAAAAB9gABAAAAAAAAACQAAAA4aWluZgAAAAAAAgAAABVpbmZlAgAAAAABAABodmMxAAAAABVpbmZl"
    "AgAAAQACAABFeGlmAAAAAA5waXRtAAAAAAABAAAA4GlwcnAAAADAaXBjbwAAAHhodmNDAQNwAAAAkAAAAAAAHvAA/P34+AAADwNgAAEAGEABDAH/"
    "/wNwAAADAJAAAAMAAAMAHroCQGEAAQArQgEBA3AAAAMAkAAAAwAAAwAeoDCBBZbqSSmubgIaDAgAAAMAyAAAAwAIQGIAAQAHRAHBcrAiQAAAABNj"
    "b2xybmNseAABAA0ABoAAAAAUaXNwZQAAAAAAAABgAAAAQAAAABBwaXhpAAAAAAMICAgAAAAJaXJvdAMAAAAYaXBtYQAAAAAAAAABAAEFgQIDBIUA"
    "AAAaaXJlZgAAAAAAAAAOY2RzYwACAAEAAQAAAF1tZGF0AAAALSgBrxmA93yFN//xnJ/19q/4pgt6n/XNcf9w//VspvorY/3edEV7/xvA5xsOnAAA"
    "AAZFeGlmAABNTQAqAAAACAABARIAAwAAAAEABgAAAAAAAA=="
)


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
