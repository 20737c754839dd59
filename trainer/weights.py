"""Where a base's pretrained weights come from."""

import urllib.error
import urllib.request
from pathlib import Path

from trainer.config import IMAGENET, NO_WEIGHTS

# What keras.applications.InceptionV3(weights="imagenet", include_top=False) downloads, and where it keeps it.
_IMAGENET_URL = (
    "https://storage.googleapis.com/tensorflow/keras-applications/inception_v3/"
    "inception_v3_weights_tf_dim_ordering_tf_kernels_notop.h5"
)
_KERAS_CACHE = Path("~/.keras/models")
_PROBE_SECONDS = 5


class WeightsError(ValueError):
    """The weights that the configuration names can't be had, or don't fit; the message says what to do."""


def imagenet_available() -> bool:
    """Whether Keras's ImageNet weights are in its cache or can be downloaded from here."""
    if (_KERAS_CACHE / _IMAGENET_URL.rpartition("/")[2]).expanduser().exists():
        return True
    try:
        request = urllib.request.Request(_IMAGENET_URL, method="HEAD")
        with urllib.request.urlopen(request, timeout=_PROBE_SECONDS):  # noqa: S310 (a constant https URL)
            return True
    except (urllib.error.URLError, OSError):
        return False


def check(weights: str) -> None:
    """Finds out before anything is run whether ``weights`` can be had.

    Args:
        weights: ``imagenet``, ``none`` or the path of a file.

    Raises:
        WeightsError: if they can't.
    """
    if weights == NO_WEIGHTS:
        return
    if weights == IMAGENET:
        if not imagenet_available():
            raise WeightsError(
                "trainer.weights: imagenet: Keras can't download the weights from here and has no copy in "
                f"{_KERAS_CACHE}. Give a file of InceptionV3 weights without the top (trainer.weights: FILE), or train "
                "from scratch (trainer.weights: none)."
            )
    elif not Path(weights).is_file():
        raise WeightsError(f"trainer.weights: there is no file {weights}. Give a file, 'imagenet' or 'none'.")
