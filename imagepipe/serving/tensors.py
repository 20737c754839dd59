"""Tensors of the Open Inference Protocol in binary, by HTTP and gRPC alike, and the outputs of answers as arrays.

Numbers are little-endian; of BYTES each element comes after its length, 4 bytes.
"""

from collections.abc import Collection
from typing import Any

import numpy as np

from imagepipe.serving.limits import MAX_INSTANCES
from imagepipe.serving.types import Answers, RequestError

_NUMBERS = {  # by datatype: numpy's name of the type
    "BOOL": "?",
    **{f"INT{8 * size}": f"<i{size}" for size in (1, 2, 4, 8)},
    **{f"UINT{8 * size}": f"<u{size}" for size in (1, 2, 4, 8)},
    **{f"FP{8 * size}": f"<f{size}" for size in (2, 4, 8)},
}


def check_count(count: int) -> None:
    """Checks the number of images of a request.

    Raises:
        RequestError: if there is none, or are too many.
    """
    if not count:
        raise RequestError("no_instances", "there is nothing to predict")
    if count > MAX_INSTANCES:
        raise RequestError("too_many_instances", f"{count:,} instances, and at most {MAX_INSTANCES} are taken at once")


def read_values(name: str, datatype: str, body: bytes, start: int, end: int) -> list[Any]:
    """Returns the values of a tensor in binary, between two places in a body.

    Raises:
        RequestError: if they aren't of that datatype, or more than MAX_INSTANCES.
    """
    if datatype == "BYTES":
        return _split_elements(body, start, end)
    if datatype not in _NUMBERS:
        raise RequestError("wrong_type", f"{name!a} has an unknown datatype: {datatype!a}")
    dtype, size = np.dtype(_NUMBERS[datatype]), end - start
    if size % dtype.itemsize or size > MAX_INSTANCES * dtype.itemsize:
        raise RequestError("wrong_type", f"{name!a}: {size:,} bytes don't fit [n] of {datatype}")
    return mark_missing(np.frombuffer(body[start:end], dtype).tolist())


def mark_missing(values: list[Any]) -> list[Any]:
    """Returns values with None for a missing number, for which tensors have NaN."""
    return [None if value != value else value for value in values]


def _split_elements(body: bytes, start: int, end: int) -> list[bytes]:
    elements: list[bytes] = []
    while start < end:
        check_count(len(elements) + 1)
        first = start + 4
        start = first + int.from_bytes(body[start:first], "little")
        if start > end:
            raise RequestError("wrong_type", "a tensor in binary ends in the middle of an element")
        elements.append(body[first:start])
    return elements


def choose_outputs(answers: Answers, wanted: Collection[str]) -> dict[str, np.ndarray]:
    """Returns the outputs that are wanted, all by default: float32, or text in an array of objects.

    Raises:
        RequestError: if one is wanted that there is not.
    """
    outputs = {
        "classes": np.asarray(answers.classes, np.float32),
        "label": np.array(answers.labels, object),
        "score": np.asarray(answers.scores, np.float32),
        "metadata": np.array(answers.ids, object),
    }
    if answers.novelty is not None:
        outputs["novelty"] = np.asarray(answers.novelty, np.float32)
    for name in wanted:
        if name not in outputs:
            raise RequestError("unknown_field", f"there is no output {name!a}; the model has {', '.join(outputs)}")
    return {name: outputs[name] for name in wanted} if wanted else outputs


def name_datatype(array: np.ndarray) -> str:
    """Returns the datatype of an output."""
    return "BYTES" if array.dtype == object else "FP32"


def encode_texts(array: np.ndarray) -> list[bytes]:
    """Returns text in UTF-8, with ? for what that can't encode."""
    return [text.encode(errors="replace") for text in array]


def join_values(array: np.ndarray) -> bytes:
    """Returns an output in binary."""
    if array.dtype == object:
        return b"".join(len(text).to_bytes(4, "little") + text for text in encode_texts(array))
    return array.astype("<f4").tobytes()
