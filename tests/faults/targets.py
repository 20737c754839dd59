"""Everything of ours that reads a stranger's bytes, with sound input to start from and the errors that it may raise.

Used by hypothesis in the gate and by atheris on demand; whatever else is raised is a bug.
"""

import asyncio
import gzip
import io
import json
import tarfile
import tempfile
import zipfile
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from imagepipe.base.errors import IngestError, ModelError, WeightsError
from imagepipe.base.images import BadImage, keep_unchanged, normalize, prepare_for_decoder, read_pixels
from imagepipe.base.tfrecord import encode_example, frame_record
from imagepipe.ingest import dataset, sources
from imagepipe.ingest.parts import read_part
from imagepipe.serving.base64_text import decode_base64
from imagepipe.serving.listing import infer_types, list_inputs
from imagepipe.serving.protocols import parse_rest, parse_v2
from imagepipe.serving.reading import read_items
from imagepipe.serving.request_files import read_requests
from imagepipe.serving.types import RequestError
from imagepipe.serving.unpacking import unpack_body
from imagepipe.serving.uploads import find_parser
from tests.conftest import encode_image
from tests.photos import HEIC


@dataclass(frozen=True)
class Target:
    """A reader of bytes.

    Attributes:
        read: reads them; its errors are named in ``errors``.
        seeds: sound input.
        errors: what it may raise: a message for whoever sent the bytes.
    """

    read: Callable[[bytes], object]
    seeds: list[bytes]
    errors: tuple[type[Exception], ...] = field(default=())


def _read_image(data: bytes) -> None:
    normalize(data, max_pixels=250_000, max_side=64)
    keep_unchanged(data, max_pixels=250_000)
    prepare_for_decoder(data, max_pixels=250_000)
    read_pixels(data, 8, max_pixels=250_000)


def _make_images() -> list[bytes]:
    pixels = np.random.default_rng(0).integers(0, 256, (9, 7, 3), np.uint8)
    image = Image.fromarray(pixels)
    turned = Image.Exif()
    turned[0x0112] = 6
    return [
        encode_image(image, "JPEG", exif=turned),
        encode_image(image, "JPEG", progressive=True),
        encode_image(image.convert("CMYK"), "JPEG"),
        encode_image(image, "PNG"),
        encode_image(image.convert("P"), "PNG", transparency=0),
        encode_image(image, "GIF", save_all=True, append_images=[image]),
        encode_image(image, "BMP"),
        encode_image(image, "TIFF", compression="tiff_lzw"),
        encode_image(image, "WEBP"),
        encode_image(image, "AVIF"),
        HEIC,
    ]


def _in_file(suffix: str, read: Callable[[Path], object]) -> Callable[[bytes], object]:
    def write_and_read(data: bytes) -> object:
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / f"input{suffix}"
            file.write_bytes(data)
            return read(file)

    return write_and_read


def _read_manifest(file: Path) -> object:
    return list(sources.read_rows(str(file), "multilabel", Counter()))


def _read_container(file: Path) -> None:
    """Reads every row, and the bytes of every image that lies in the file."""
    _, rows = sources.find_reader(str(file), "multilabel", None, Counter())(str(file.parent / "staging"))
    for row in rows:
        if row["at"]:
            with suppress(BadImage):
                read_part(row["at"])


def _make_archives() -> dict[str, list[bytes]]:
    """Archives of class folders and of samples, by the suffix of their names."""
    tar, pax, packed, stored = io.BytesIO(), io.BytesIO(), io.BytesIO(), io.BytesIO()
    members = {"0.jpg": b"data", "0.cls": b"1", "a/" + "x" * 120 + "é.jpg": b"data"}
    for file, kind in ((tar, tarfile.GNU_FORMAT), (pax, tarfile.PAX_FORMAT)):
        with tarfile.open(fileobj=file, mode="w", format=kind) as archive:
            for name, data in members.items():
                info = tarfile.TarInfo(name)
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
    for file, method in ((packed, zipfile.ZIP_DEFLATED), (stored, zipfile.ZIP_STORED)):
        with zipfile.ZipFile(file, "w", method) as archive:
            for name, data in members.items():
                archive.writestr(f"set/{name}", data)
    tars = [tar.getvalue(), pax.getvalue()]
    return {
        ".tar": tars,
        ".tgz": [gzip.compress(data) for data in tars],
        ".zip": [packed.getvalue(), stored.getvalue()],
    }


def _make_image_table() -> bytes:
    image = pa.array(
        [{"bytes": b"data", "path": "a.jpg"}, None], pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    )
    features = {"image": {"_type": "Image"}, "label": {"names": ["x", "y"], "_type": "ClassLabel"}}
    table = pa.table({"image": image, "label": [0, 1], "iso": [100, None]})
    file = io.BytesIO()
    pq.write_table(table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})}), file)
    return file.getvalue()


_COCO = {
    "images": [{"id": 1, "file_name": "a.jpg"}],
    "annotations": [{"image_id": 1, "category_id": 2}],
    "categories": [{"id": 2, "name": "x"}],
}
_TASK = {
    "data": {"image": "/data/local-files/?d=a.jpg"},
    "annotations": [{"was_cancelled": False, "result": [{"type": "choices", "value": {"choices": ["x"]}}]}],
}


def _ask_manifest(file: Path) -> object:
    listing = list_inputs([str(file)], keep=True)
    return list(read_items(listing.items, infer_types(listing.items)))


def _read_dataset(file: Path) -> object:
    return dataset.load(str(file.rename(file.with_name("dataset.json")).parent))


_DATASET = dataset.Dataset(
    dataset.Options("classification", {"train": 80, "eval": 20}, None, 1000, None),
    dataset.list_features("classification"),
    {"train": dataset.Split(), "eval": dataset.Split()},
)


@cache
def _make_network() -> Any:
    import keras

    layers = [keras.layers.Conv2D(2, 3, name="conv"), keras.layers.BatchNormalization(name="norm")]
    return keras.Sequential([keras.Input((8, 8, 3)), *layers])


def _read_weights(file: Path) -> None:
    from trainer.pretrained import load_weights

    load_weights(_make_network(), str(file), "mobilenet_v2")


def _make_weights() -> list[bytes]:
    numbers = {"conv": {"kernel:0": (3, 3, 3, 2), "bias:0": (2,)}}
    numbers["norm"] = dict.fromkeys(("gamma:0", "beta:0", "moving_mean:0", "moving_variance:0"), (2,))
    buffer = io.BytesIO()
    with h5py.File(buffer, "w") as file:  # as Keras 2 did
        file.attrs["layer_names"] = [name.encode() for name in numbers]
        for name, weights in numbers.items():
            group = file.create_group(name)
            group.attrs["weight_names"] = [f"{name}/{weight}".encode() for weight in weights]
            for weight, shape in weights.items():
                group.create_dataset(f"{name}/{weight}", data=np.zeros(shape, np.float32))
    return [buffer.getvalue()]


def _unpack(data: bytes) -> bytes:
    parts = [{"type": "http.request", "body": part, "more_body": True} for part in (data[:5], data[5:])]
    messages = iter([*parts, {"type": "http.request", "more_body": False}])

    async def receive() -> Any:
        return next(messages)

    async def read() -> bytes:
        receive_unpacked, body = unpack_body([(b"content-encoding", b"gzip")], receive), b""
        while len(body) < 2**22:
            message = await receive_unpacked()
            body += message["body"]
            if not message["more_body"]:
                break
        return body

    return asyncio.run(read())


def _read_upload(data: bytes) -> object:
    """Reads a Content-Type, a query and a body, a line each, as one who sends an image writes them."""
    content_type, query, body = [*data.split(b"\n", 2), b"", b""][:3]
    read = find_parser(content_type.decode("latin-1"), query.decode("latin-1"), {"iso": "int64", "weight": "float32"})
    return read and read(body)


_PNG = encode_image(Image.new("RGB", (2, 2)), "PNG")
_FORM = b"multipart/form-data; boundary=XX\nweight=1.5\n" + b"".join(
    b'--XX\r\nContent-Disposition: form-data; name="' + name + b"\r\n\r\n" + content + b"\r\n"
    for name, content in ((b'iso"', b"100"), (b'file"; filename="a.png"\r\nContent-Type: image/png', _PNG))
)
_TENSOR = {"name": "input", "datatype": "BYTES", "shape": [1]}
_V2_TEXT = json.dumps({"inputs": [_TENSOR | {"data": ["aGVsbG8="]}]}).encode()
_V2_BINARY = json.dumps({"inputs": [_TENSOR | {"parameters": {"binary_data_size": 9}}]}).encode()
_ROW = {"input": {"b64": "aGVsbG8="}, "metadata": "a"}
_ARRAYS = io.BytesIO()
_PARQUET = io.BytesIO()
pq.write_table(pa.table({"path": ["a.jpg", "b.jpg"], "label": ["x", None], "iso": [100, 1]}), _PARQUET)
np.savez(_ARRAYS, input=np.array([_PNG, b"b"]), metadata=np.array(["a", "b"]))

TARGETS = {
    "image": Target(_read_image, _make_images(), (BadImage,)),
    "rest": Target(
        parse_rest,
        [json.dumps({"instances": [_ROW, _ROW]}).encode(), json.dumps({"inputs": {"input": [_ROW["input"]]}}).encode()],
        (RequestError,),
    ),
    "v2": Target(parse_v2, [_V2_TEXT], (RequestError,)),
    "v2 binary": Target(lambda body: parse_v2(body, len(_V2_BINARY)), [_V2_BINARY + b"\5\0\0\0hello"], (RequestError,)),
    "upload": Target(
        _read_upload, [b"image/png\nmetadata=a&iso=100&weight=.5\n" + _PNG, _FORM + b"--XX--\r\n"], (RequestError,)
    ),
    "base64": Target(
        lambda text: decode_base64(text.decode("latin-1")),
        [b"aGVs\r\nbG8=", b"data:image/png;base64,aGVsbG8", b"_-8"],
        (ValueError,),
    ),
    "gzip": Target(_unpack, [gzip.compress(b"hello" * 1000), gzip.compress(bytes(2**20))], (RequestError,)),
    "csv": Target(
        _in_file(".csv", _read_manifest),
        [
            b'path,label,iso\na.jpg,x|y,100\n"b\n.jpg",x,\n',
            b"sep=;\n;Path;label;;\n0;a\\b.jpg;x;;\n",
            "path\tlabel\na.jpg\tx\n".encode("utf-16"),
        ],
        (IngestError,),
    ),
    "json lines": Target(
        _in_file(".jsonl", _read_manifest), [b'{"path": "a.jpg", "label": ["x"], "iso": 1.5}\n\n'], (IngestError,)
    ),
    "parquet": Target(_in_file(".parquet", _read_manifest), [_PARQUET.getvalue()], (IngestError,)),
    **{
        f"archive{suffix}": Target(_in_file(suffix, _read_container), seeds, (IngestError,))
        for suffix, seeds in _make_archives().items()
    },
    "parquet, images": Target(_in_file(".parquet", _read_container), [_make_image_table()], (IngestError,)),
    "coco": Target(_in_file(".json", _read_container), [json.dumps(_COCO).encode()], (IngestError,)),
    "label studio": Target(_in_file(".json", _read_container), [json.dumps([_TASK]).encode()], (IngestError,)),
    "asking by csv": Target(
        _in_file(".csv", _ask_manifest), [b"path,iso,metadata\na.jpg,100,x\na.jpg,NA,\n"], (IngestError, ModelError)
    ),
    "asking by json lines": Target(
        _in_file(".jsonl", _ask_manifest),
        [b'{"path": "a.jpg", "iso": null}\n', json.dumps(_ROW).encode() + b"\n"],
        (IngestError, ModelError),
    ),
    "dataset.json": Target(_in_file("", _read_dataset), [dataset.encode(_DATASET)], (IngestError,)),
    "weights": Target(_in_file(".h5", _read_weights), _make_weights(), (WeightsError,)),
    "requests, arrays": Target(_in_file(".npz", lambda file: list(read_requests(file))), [_ARRAYS.getvalue()]),
    "requests, records": Target(
        _in_file(".tfrecord", lambda file: list(read_requests(file))),
        [frame_record(encode_example({"input": [_PNG], "metadata": [b"a"]}))],
    ),
    "requests, lines": Target(
        _in_file(".jsonl", lambda file: list(read_requests(file))), [json.dumps(_ROW).encode() + b"\n"]
    ),
}
