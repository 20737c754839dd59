"""A row per answered image: what was asked, what the model answered, and the measures that ``imagepipe ingest`` takes.

A row has these columns and nothing else of the caller; null where there is none:

- ``time`` (UTC), ``request_id``, ``metadata`` (the caller's name for the image), ``version``;
- ``label``, ``score``, ``classes``, ``novelty``: the answer; ``embedding``: float16, of models that give it;
- ``sha256``: of the bytes that were sent; ``width``, ``height``, ``aspect``, ``bytes``, ``brightness``, ``contrast``,
  ``dhash``: as ingest measures an image;
- ``image``: the bytes that were sent, a JPEG of at most PREVIEW_SIDE pixels, or null, as the user wants;
- ``milliseconds``: from the decoded request to the answer;
- ``shadow``: whether the version answered in the shadow of a live one, unseen by the caller. Such a row has neither
  measures nor an image: the row of the live answer, with the same ``request_id`` and ``sha256``, has them;
- ``error``: why a request was not answered, as one word. Such a row is one of a request, not of an image, and has
  nothing else but ``time``, ``request_id`` and ``version``.
"""

import hashlib
import io
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

import pyarrow as pa
from PIL import Image

from imagepipe.base.appearance import measure_appearance
from imagepipe.base.images import BadImage, normalize

KeptImages = Literal["none", "thumbnail", "original"]
"""The images that rows hold."""

PREVIEW_SIDE = 160
"""Longest side of a thumbnail, in pixels: enough to recognise what it shows, at some 5 kB."""

SCHEMA = pa.schema(
    {
        "time": pa.timestamp("us", "UTC"),
        "request_id": pa.string(),
        "metadata": pa.binary(),
        "version": pa.string(),
        "label": pa.string(),
        "score": pa.float32(),
        "classes": pa.list_(pa.float32()),
        "novelty": pa.float32(),
        "embedding": pa.list_(pa.float16()),
        "sha256": pa.string(),
        "width": pa.int64(),
        "height": pa.int64(),
        "aspect": pa.float64(),
        "bytes": pa.int64(),
        "brightness": pa.float64(),
        "contrast": pa.float64(),
        "dhash": pa.string(),
        "image": pa.binary(),
        "milliseconds": pa.float32(),
        "shadow": pa.bool_(),
        "error": pa.string(),
    }
)
"""Columns of the files, in their order."""


@dataclass(frozen=True)
class CaptureOptions:
    """The part of the traffic that is captured, and where to.

    Attributes:
        folder: path or URI.
        rate: share of the requests that are captured, drawn at random, 0 to 1.
        images: the images that rows hold.
        days: days after which rows are deleted, see ``files.delete_old``.
    """

    folder: str
    rate: float = 0.01
    images: KeptImages = "none"
    days: int = 30


@dataclass(frozen=True, slots=True)
class Answered:
    """An image that was asked about, and the answer.

    Attributes:
        time: when it was answered, in seconds since 1970.
        request_id: of the request that it came in.
        metadata: the caller's name for it.
        version: of the model.
        label: as answered; '' for none.
        score: as answered.
        classes: float32 ``[k]``.
        novelty: as answered; None from a model without.
        embedding: float ``[d]``; None from a model without.
        sent: the bytes that the caller sent.
        prepared: the bytes that the model decoded: the same, or those converted to JPEG or PNG.
        milliseconds: time that the answer took; None if it wasn't measured.
        in_shadow: whether the caller got another version's answer.
    """

    time: float
    request_id: str | None
    metadata: str
    version: str
    label: str
    score: float
    classes: Any
    novelty: float | None
    embedding: Any
    sent: bytes
    prepared: bytes
    milliseconds: float | None
    in_shadow: bool = False

    @property
    def size(self) -> int:
        """Bytes of the images."""
        return len(self.sent) + (0 if self.prepared is self.sent else len(self.prepared))


@dataclass(frozen=True, slots=True)
class Failed:
    """A request that was not answered.

    Attributes:
        time: when it failed, in seconds since 1970.
        request_id: of the request.
        version: of the model.
        error: why, as one word.
    """

    time: float
    request_id: str
    version: str
    error: str

    @property
    def size(self) -> int:
        """Bytes of the images: none."""
        return 0


def build_row(captured: Answered | Failed, keep: KeptImages) -> dict[str, Any]:
    """Measures an image, and returns its row; one that can't be measured, or was asked in shadow, has no measures.

    Args:
        captured: the image and its answer, or a request that failed.
        keep: the image to put into the row.
    """
    if isinstance(captured, Failed):
        time = datetime.fromtimestamp(captured.time, UTC)
        fields = {"request_id": captured.request_id, "version": captured.version, "error": captured.error}
        return {"time": time, "image": None} | fields
    answered = captured
    row: dict[str, Any] = {
        "time": datetime.fromtimestamp(answered.time, UTC),
        "request_id": answered.request_id,
        "metadata": answered.metadata.encode(errors="replace"),
        "version": answered.version,
        "label": answered.label,
        "score": answered.score,
        "classes": answered.classes,
        "novelty": answered.novelty,
        "embedding": None if answered.embedding is None else answered.embedding.astype("float16"),
        "sha256": hashlib.sha256(answered.sent).hexdigest(),
        "image": answered.sent if keep == "original" and not answered.in_shadow else None,
        "milliseconds": answered.milliseconds,
        "shadow": answered.in_shadow,
    }
    if answered.in_shadow:
        return row
    try:
        image = normalize(answered.prepared)
        row |= {"width": image.width, "height": image.height, "aspect": image.width / image.height}
        row |= {"bytes": len(image.data)} | measure_appearance(image.thumbnail)._asdict()
        if keep == "thumbnail":
            row["image"] = make_preview(image.data)
    except BadImage:  # more tolerant was the decoder that answered
        pass
    return row


def make_preview(data: bytes) -> bytes:
    """Returns an image, of those that ``normalize`` returns, as a JPEG of at most PREVIEW_SIDE pixels a side."""
    with Image.open(io.BytesIO(data), formats=("JPEG", "PNG")) as image:
        # A JPEG is decoded at a fraction of its size, no larger than need be: half of the time.
        image.thumbnail((PREVIEW_SIDE, PREVIEW_SIDE), Image.Resampling.BOX, reducing_gap=1.0)
        encoded = io.BytesIO()
        image.convert("RGB").save(encoded, "JPEG", quality=80)
        return encoded.getvalue()
