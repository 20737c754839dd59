"""Where a base's pretrained weights come from."""

import os
import re
import urllib.error
import urllib.request
from pathlib import Path

from imagepipe.base.errors import WeightsError
from trainer import backbones
from trainer.config import IMAGENET, NO_WEIGHTS

# Keras keeps all its applications' weights on one host; this file stands for them.
_PROBE_URL = (
    "https://storage.googleapis.com/tensorflow/keras-applications/inception_v3/"
    "inception_v3_weights_tf_dim_ordering_tf_kernels_notop.h5"
)
_PROBE_SECONDS = 5


def keras_cache() -> Path:
    """Where Keras keeps the weights that it has downloaded."""
    return Path(os.environ.get("KERAS_HOME", "~/.keras")).expanduser() / "models"


def imagenet_available(backbone: str = backbones.DEFAULT) -> bool:
    """Whether Keras's ImageNet weights of this backbone are in its cache or can be downloaded from here."""
    # Such as resnet50v2_weights_tf_dim_ordering_tf_kernels_notop.h5, efficientnetv2-b0_notop.h5 or
    # weights_mobilenet_v3_small_224_1.0_float_no_top_v2.h5.
    name = re.compile(rf"(weights)?{backbone.replace('_', '')}(weights|224|notop).*")
    for file in keras_cache().glob("*.h5"):
        letters = re.sub("[-_]", "", file.name)
        if name.fullmatch(letters) and "notop" in letters:
            return True
    try:
        request = urllib.request.Request(_PROBE_URL, method="HEAD")
        with urllib.request.urlopen(request, timeout=_PROBE_SECONDS):  # noqa: S310 (a constant https URL)
            return True
    except (urllib.error.URLError, OSError):
        return False


def check(weights: str, backbone: str) -> None:
    """Finds out before anything is run whether ``weights`` can be had.

    Args:
        weights: ``imagenet``, ``none`` or the path of a file.
        backbone: the network that they are for, see ``trainer.backbones``.

    Raises:
        WeightsError: if they can't.
    """
    if weights == NO_WEIGHTS:
        return
    if weights == IMAGENET:
        if not imagenet_available(backbone):
            raise WeightsError(
                f"trainer.weights: imagenet: Keras can't download the weights of {backbone} from here and has no copy "
                f"in {keras_cache()}. Give a file of them (trainer.weights: FILE), or train from scratch "
                "(trainer.weights: none)."
            )
    elif not Path(weights).is_file():
        raise WeightsError(f"trainer.weights: there is no file {weights}. Give a file, 'imagenet' or 'none'.")
