"""The share of a request that reading the images' headers takes: which way up they are, and whether they have alpha.

320x240 JPEGs through the Transform graph's decoder and an InceptionV3 at 299x299, random weights, on the CPU. Decoders
that read headers, of upright photos and of photos that lie on their side by their EXIF, against one that reads none and
takes all for upright. All take turns; what counts is the median over the turns of what a decoder takes longer, as a
share of a whole request.

    python -m benchmarks.orientation [--turns N] [--json] [--record]
"""

import time
from collections.abc import Callable
from statistics import median
from unittest import mock

import tensorflow as tf
from PIL import ExifTags, Image

from benchmarks.common import build_inception_v3, make_photo_crops
from benchmarks.results import at_most, make_parser, report
from trainer.export.optimize import optimize_network
from transform.headers import Headers
from transform.images import decode_and_resize

MEASURES = ("transform/headers.py", "transform/images.py")
SIZE = (299, 299)
BATCHES = (1, 8)
GOAL = 3.0  # percent of a request
REPEATS = 5  # calls in a turn

Decode = Callable[[tf.Tensor], tf.Tensor]


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--turns", type=int, default=9)
    arguments = parser.parse_args()
    network = optimize_network(build_inception_v3().model, bfloat16=False)
    ask = tf.function(lambda pixels: network({"image": pixels})).get_concrete_function(
        tf.TensorSpec([None, *SIZE, 3], tf.uint8)
    )
    ours = _trace_decoder()
    with mock.patch("transform.images.read_headers", _take_all_for_upright_jpegs):
        plain = _trace_decoder()
    shares = {batch: _measure_shares(ours, plain, ask, batch, arguments.turns) for batch in BATCHES}
    rows = [(f"{kind}, {batch} per request", share) for batch, by in shares.items() for kind, share in by.items()]
    report(
        arguments,
        "orientation",
        MEASURES,
        {"turns": arguments.turns, "percent_of_a_request": dict(rows)},
        ["headers of photos", "% of a request"],
        [[what, f"{share:.2f}"] for what, share in rows],
        [at_most(f"headers of photos: {what}, % of a request", share, GOAL) for what, share in rows],
    )


def _trace_decoder() -> Decode:
    spec = tf.TensorSpec([None], tf.string)
    return tf.function(lambda encoded: decode_and_resize(encoded, SIZE), autograph=False).get_concrete_function(spec)


def _take_all_for_upright_jpegs(encoded: tf.Tensor) -> Headers:
    yes = tf.ones_like(tf.strings.length(encoded), tf.bool)
    return Headers(tf.ones_like(tf.strings.length(encoded)), ~yes, yes, yes)


def _measure_shares(ours: Decode, plain: Decode, ask: Decode, batch: int, turns: int) -> dict[str, float]:
    """Returns by how many percent of a request the decoder that reads headers takes longer."""
    upright = list(make_photo_crops(batch))
    pixels = plain(tf.constant(upright))
    sides = {
        "plain": lambda: plain(tf.constant(upright)),
        "upright": lambda: ours(tf.constant(upright)),
        "lying": lambda: ours(tf.constant([_lay(jpeg) for jpeg in upright])),
        "network": lambda: ask(pixels),
    }
    shares: dict[str, list[float]] = {"upright": [], "lying": []}
    for turn in range(turns + 1):
        seconds = {name: min(_time(call) for _ in range(REPEATS)) for name, call in sides.items()}
        if turn:  # the first one compiles
            for kind, values in shares.items():
                values.append(100 * (seconds[kind] - seconds["plain"]) / (seconds["plain"] + seconds["network"]))
    return {kind: median(values) for kind, values in shares.items()}


def _lay(jpeg: bytes) -> bytes:
    """Returns a JPEG with an EXIF that says that it lies on its side."""
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    content = exif.tobytes()
    return jpeg[:2] + b"\xff\xe1" + (len(content) + 2).to_bytes(2, "big") + content + jpeg[2:]


def _time(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
