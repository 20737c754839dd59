"""Requests for the server that is checked, with the answers that it has to give."""

from pathlib import Path

from components.served_model import load_as_served
from imagepipe.base.features import Features
from imagepipe.base.images import BadImage, normalize
from imagepipe.serving.check import Expected
from imagepipe.serving.limits import MAX_IMAGES_BYTES, MAX_ONLINE_PIXELS
from imagepipe.serving.request_files import parse_example
from imagepipe.serving.types import Failure
from transform.examples import read_serialized

SPLIT = "eval"

_REQUESTS = 32
_MAX_EXAMPLES = 1000  # that are read to find so many requests


def build_expectations(model: Path, split: str, features: Features) -> list[Expected]:
    """Builds real requests, with the graph's answers to their Examples.

    Args:
        model: folder of the SavedModel.
        split: folder of a split's Examples.
        features: names of an Example's features.

    Returns:
        Up to 32 requests that the graph and the server see alike: with all side features, and with an image that is
        decoded unchanged and is not too large for a server. (In Examples made elsewhere a photo may lie on its side.)
    """
    loaded = load_as_served(model)
    requests, records = [], []
    for index, record in enumerate(read_serialized(split).take(_MAX_EXAMPLES).as_numpy_iterator()):
        request = parse_example(record, f"{SPLIT}/{index}", features, loaded.side)
        if isinstance(request, Failure) or loaded.find_problem(request) or not _is_served_unchanged(request.image):
            continue
        requests.append(request)
        records.append(record)
        if len(requests) == _REQUESTS:
            break
    if not requests:
        return []
    answers = loaded.predict_examples(records)
    return [Expected(request, *answer) for request, answer in zip(requests, answers, strict=True)]


def _is_served_unchanged(image: bytes) -> bool:
    try:
        return len(image) <= MAX_IMAGES_BYTES and normalize(image, max_pixels=MAX_ONLINE_PIXELS).data == image
    except BadImage:
        return False
