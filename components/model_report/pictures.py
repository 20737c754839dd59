"""Pictures of a report: small JPEGs of images, and heat maps of what in them made the network say what it says."""

import base64
import io
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from PIL import Image

from imagepipe.base import images
from imagepipe.base.features import IMAGE, Features
from transform import datasets

_QUALITY = 75
_OPACITY = 0.6  # of a heat map where it is hottest
_MAX_PIXELS = 50_000_000


def read(split: str, wanted: Callable[[int, bytes], bool], most: int | None = None) -> Iterator[tuple[int, bytes]]:
    """The Examples of a split that are wanted, serialized, with their places; of the first so many at most."""
    records = datasets.examples(split)
    for place, record in enumerate((records if most is None else records.take(most)).as_numpy_iterator()):
        if wanted(place, record):
            yield place, record


def encoded(record: bytes, features: Features) -> bytes:
    """The image of a serialized Example; nothing if it has none."""
    values = tf.train.Example.FromString(record).features.feature[features.input].bytes_list.value
    return values[0] if values else b""


def picture(data: bytes, side: int) -> Image.Image | None:
    """An image whose longer side is at most ``side`` pixels, RGB; None if it can't be decoded, or is huge."""
    try:
        pixels = Image.open(io.BytesIO(images.normalize(data, max_pixels=_MAX_PIXELS).data))
        pixels.draft("RGB", (side, side))
        made = pixels.convert("RGB")
    except (images.BadImage, OSError, ValueError):
        return None
    scale = side / max(made.size)
    size = (max(1, round(made.width * scale)), max(1, round(made.height * scale)))
    # A tiny image is enlarged as it is: smooth edges would show what isn't there.
    return made.resize(size, Image.Resampling.NEAREST if scale > 1 else Image.Resampling.LANCZOS)


def data_url(image: Image.Image) -> str:
    """A JPEG as a URL that needs no host."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=_QUALITY)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


def overlaid(image: Image.Image, heat: np.ndarray) -> Image.Image:
    """A heat map, ``[h, w]`` in 0..1, over an image: opaque where it is hot."""
    levels = Image.fromarray((255 * heat).astype(np.uint8)).resize(image.size, Image.Resampling.BICUBIC)
    hot = np.asarray(levels, np.float32) / 255
    colors = np.clip(3 * hot[..., None] - np.arange(3), 0, 1) * 255  # black, red, yellow, white
    share = _OPACITY * hot[..., None]
    mixed = np.asarray(image, np.float32) * (1 - share) + colors * share
    return Image.fromarray(mixed.round().astype(np.uint8))


def heat_maps(trained: Path, served: Path, records: Mapping[int, bytes], outputs: Mapping[int, int]) -> dict[int, Any]:
    """Grad-CAM: where in an image the network found what speaks for an output.

    Selvaraju, R. R., Cogswell, M., Das, A., Vedantam, R., Parikh, D., Batra, D. (2017): Grad-CAM: visual explanations
    from deep networks via gradient-based localization. ICCV, section 3, equations 1 and 2, on the backbone's last
    features. The score is the output before its activation.

    Args:
        trained: the Keras model, ``model.keras``.
        served: the SavedModel's folder, whose signature ``transform_features`` gives what the network sees.
        records: serialized Examples.
        outputs: which output is to be explained, by the same keys.

    Returns:
        By the same keys float32 ``[h, w]``, in 0..1, of the size of the backbone's features. Nothing where those have
        one place only, as with small images: there is no where.
    """
    network = keras.models.load_model(trained, compile=False)  # in safe mode: it runs no code of the file's
    pool, head = network.get_layer("pool"), network.get_layer("head")
    if pool.input.shape[1:3] == (1, 1):
        return {}
    last = head.get_layer("outputs")
    features_of = tf.function(keras.Model(network.inputs, pool.input))  # eagerly it takes four times as long
    hidden_of = keras.Model(head.inputs, last.input)
    names = [each.name for each in network.inputs]
    loaded = tf.saved_model.load(str(served))
    transform = loaded.signatures["transform_features"]
    found = {}
    for key, record in records.items():  # one by one: a batch takes as long for each, and 70 MiB more an image
        seen = transform(examples=tf.constant([record]))
        inputs = {name: seen[name] for name in names}
        features = tf.cast(features_of([inputs[name] for name in names]), tf.float32)
        with tf.GradientTape() as tape:
            tape.watch(features)
            pooled = inputs | {IMAGE: pool(features)}
            hidden = hidden_of([pooled[each.name] for each in head.inputs])
            scores = tf.cast(hidden, tf.float32) @ tf.cast(last.kernel, tf.float32) + tf.cast(last.bias, tf.float32)
            chosen = scores[:, outputs[key]]
        weights = tf.reduce_mean(tape.gradient(chosen, features), axis=(1, 2), keepdims=True)
        heat = tf.nn.relu(tf.reduce_sum(weights * features, axis=-1))[0].numpy()
        found[key] = heat / heat.max() if heat.max() > 0 else heat
    return found


def by_id(split: str, features: Features, ids: Collection[str], most: int) -> dict[str, bytes]:
    """The images of a split that have these identifiers, of its first so many Examples."""
    found: dict[str, bytes] = {}
    name = Path(split).name.removeprefix("Split-")

    def wanted(place: int, record: bytes) -> bool:
        if len(found) == len(ids):
            return False
        example = tf.train.Example.FromString(record)
        values = example.features.feature[features.metadata].bytes_list.value
        key = values[0].decode(errors="replace") if values else f"{name}/{place}"
        if key in ids and key not in found:
            image = example.features.feature[features.input].bytes_list.value
            found[key] = image[0] if image else b""
        return False

    for _ in read(split, wanted, most):
        pass
    return found


def shrunk(image: Image.Image, side: int) -> Image.Image:
    """A copy whose longer side is ``side`` pixels."""
    scale = side / max(image.size)
    return image.resize((max(1, round(image.width * scale)), max(1, round(image.height * scale))))
