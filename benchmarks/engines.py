"""Engines for a trained version, held against each other: accuracy, images/s, latency and memory, on real photos.

- by hand: the recipe as people do it: the run's Keras model in float32, behind `tf.map_fn` with decode and resize
- ours: each version, its SavedModel by TensorFlow, and its form by OpenVINO
- bare: the same form by OpenVINO in LATENCY mode behind the same decoding, and nothing else
- server: `imagepipe serve`, asked by 1, 8 and 32 callers in the binary form over HTTP, by gRPC, and with two workers

Each side is a process of its own, and all take turns. What counts is the median of the turns: of a side's images/s, and
of the ratios within each turn; a server is held against the best batch of the bare engine. Train a version for each
precision first (`imagepipe run` with serving.engine: openvino and serving.precision: bfloat16, int8).

    python -m benchmarks.engines PHOTOS RUN... [--turns N] [--json] [--record]

PHOTOS holds <class>/*.jpg, which no run was trained on; RUN is the folder of a run (runs/RUN), or of a version.
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median, quantiles
from typing import Any

from benchmarks.common import measure_in_turns, next_turn
from benchmarks.engine_servers import serving
from benchmarks.results import Claim, make_parser, report
from imagepipe.base.errors import ModelError
from imagepipe.base.names import TRAINING_FOLDER
from imagepipe.deploy.openvino_form import find_form, read_form
from imagepipe.deploy.versions import find_model

MEASURES = ("imagepipe/base", "imagepipe/deploy", "imagepipe/serving", "trainer/export", "transform")
SIZES = (1, 8, 32)  # of batches, or numbers of callers
IMAGES = {1: 32, 8: 64, 32: 128}  # asked about in a turn
BARE_GOAL, SERVER_GOAL = 0.97, 0.9
HEADER = "Inference-Header-Content-Length"

Ask = Callable[[list[bytes]], Any]
Turns = dict[str, list[float]]


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("photos", type=Path)
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--side", help=argparse.SUPPRESS)
    parser.add_argument("--result", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    photos = sorted(arguments.photos.glob("*/*.jpg"))
    if not photos:
        sys.exit(f"{arguments.photos} has no photos: give a folder with <class>/*.jpg")
    versions = [find_version(run) for run in arguments.runs]
    sides = list_sides(versions)
    if arguments.side:
        arguments.result.write_text(json.dumps(sides[arguments.side](photos, arguments.turns)))
        return
    with tempfile.TemporaryDirectory() as folder:
        own = [sys.executable, "-m", "benchmarks.engines", *sys.argv[1:]]
        files = {side: Path(folder) / f"{number}.json" for number, side in enumerate(sides)}
        usages = measure_in_turns([[*own, "--side", side, "--result", str(file)] for side, file in files.items()])
        results = {side: json.loads(file.read_text()) for side, file in files.items()}
    memory = {side: usage.peak_anonymous / 2**20 for side, usage in zip(sides, usages, strict=True)}
    show(arguments, results, memory, [photo.parent.name for photo in photos])


def list_sides(versions: list[Path]) -> dict[str, Callable[[list[Path], int], dict[str, Any]]]:
    """Returns what measures each side, by its name."""

    def graph(make: Callable[[Path], Ask], version: Path) -> Callable[[list[Path], int], dict[str, Any]]:
        return lambda photos, turns: measure_graph(make(version), photos, turns)

    def server(version: Path, *options: str) -> Callable[[list[Path], int], dict[str, Any]]:
        return lambda photos, turns: measure_server(version, options, photos, turns)

    sides = {}
    if find_network(versions[0]).is_file():
        sides["by hand"] = graph(make_recipe, versions[0])
    for version in versions:
        precision = read_form(find_form(version) or version)["precision"]
        sides |= {
            f"ours, TensorFlow, beside {precision}": graph(ask_tensorflow, version),
            f"ours, OpenVINO {precision}": graph(ask_openvino, version),
            f"bare, OpenVINO {precision}": graph(ask_bare, version),
            f"server, OpenVINO {precision}": server(version),
        }
    sides[f"server, OpenVINO {precision}, gRPC"] = server(versions[-1], "--grpc-port", "0")
    sides[f"server, OpenVINO {precision}, 2 workers"] = server(versions[-1], "--workers", "2")
    return sides


def show(
    arguments: argparse.Namespace, results: dict[str, dict[str, Any]], memory: dict[str, float], truth: list[str]
) -> None:
    """Prints and records what the sides measured."""
    servers = [side for side in results if side.startswith("server")]
    keys = [str(size) for size in SIZES]
    rates = {side: {key: median(result[key]) for key in keys} for side, result in results.items()}

    def compare(one: str, other: str) -> list[float]:
        best = max(keys, key=lambda key: rates[other][key])
        is_against_best = one in servers and other not in servers
        pairs = [(results[one][key], results[other][best if is_against_best else key]) for key in keys]
        return [median(a / b for a, b in zip(*pair, strict=True)) for pair in pairs]

    claims = []
    for side in results:
        base, _, precision = side.partition(", OpenVINO ")
        bare = f"bare, OpenVINO {precision}"
        other, goal = None, 0.0
        if bare in results and base in ("ours", "server"):
            other, goal = bare, SERVER_GOAL if base == "server" else BARE_GOAL
        elif base == "server":
            other, goal = side.rpartition(", ")[0], 1.0
        if other:
            ratios = compare(side, other)
            text = ", ".join(f"{ratio:.2f}" for ratio in ratios)
            claims.append(Claim(f"images/s, {side} / {other}", text, f"at least {goal:g}", min(ratios) >= goal))
        if "by hand" in results and base == "ours":
            text = ", ".join(f"{ratio:.2f}" for ratio in compare(side, "by hand"))
            claims.append(Claim(f"images/s, {side} / by hand", text))
    for side in servers:
        times = {key: quantiles(results[side][f"{key}, ms"], n=100, method="inclusive") for key in keys}
        text = "; ".join(f"{key}: {cuts[49]:,.0f}, {cuts[98]:,.0f} ms" for key, cuts in times.items())
        held = f"{results[side]['anonymous MiB']:,.0f} MiB anonymous"
        claims.append(Claim(f"{side}: median and 99th percentile by callers; memory", f"{text}; {held}"))
    labels = {side: result["labels"] for side, result in results.items() if "labels" in result}
    first = next(iter(labels))
    for side, given in labels.items():
        right, same = (sum(map(str.__eq__, given, other)) / len(truth) for other in (truth, labels[first]))
        claims.append(
            Claim(f"{side}: right, and the same as {first}, of {len(truth)} photos", f"{right:.3f}, {same:.3f}")
        )
    report(
        arguments,
        "engines",
        MEASURES,
        {"images_per_second": rates, "peak_anonymous_mib": memory},
        ["images/s", *(f"batch or callers {key}" for key in keys), "peak MiB, anonymous"],
        [[side, *(f"{rates[side][key]:.1f}" for key in keys), f"{memory[side]:,.0f}"] for side in results],
        claims,
    )


def find_version(run: Path) -> Path:
    """Returns the version of a run, which has a form for OpenVINO; ends the program if it has none."""
    try:
        version = find_model(run)
    except ModelError as error:
        sys.exit(str(error))
    if not find_form(version):
        sys.exit(f"{version} has no form for OpenVINO: train it with serving.engine: openvino")
    return version


def find_network(version: Path) -> Path:
    return version.parent / TRAINING_FOLDER / "model.keras"


def make_recipe(version: Path) -> Ask:
    import keras
    import tensorflow as tf

    from imagepipe.deploy.saved_model import read_labels

    network = keras.saving.load_model(find_network(version), compile=False)
    height, width = network.inputs[0].shape[1:3]
    names = read_labels(version)

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string)])
    def classify(encoded: Any) -> Any:
        def decode(one: Any) -> Any:
            return tf.image.resize(tf.io.decode_jpeg(one, channels=3), (height, width))

        pixels = tf.map_fn(decode, encoded, fn_output_signature=tf.float32)
        answers = network(tf.cast(pixels, tf.uint8), training=False)
        return answers["logits"] if isinstance(answers, dict) else answers

    return lambda jpegs: [names[row.argmax()] for row in classify(tf.constant(jpegs)).numpy()]


def ask_tensorflow(version: Path) -> Ask:
    import tensorflow as tf

    serve = tf.saved_model.load(str(version)).signatures["serving_default"]
    return lambda jpegs: serve(input=tf.constant(jpegs), metadata=tf.fill([len(jpegs)], ""))["label"].numpy()


def ask_openvino(version: Path) -> Ask:
    from imagepipe.serving.openvino_model import OpenVinoModel
    from imagepipe.serving.types import Request

    model = OpenVinoModel(version)
    return lambda jpegs: model.answer(model.preprocess([Request("", jpeg) for jpeg in jpegs]))["label"]


def ask_bare(version: Path) -> Ask:
    import tensorflow as tf

    from imagepipe.deploy.openvino_form import OpenVinoNetwork

    form = find_form(version) or version
    around = tf.saved_model.load(str(form))
    network = OpenVinoNetwork(form, {"PERFORMANCE_HINT": "LATENCY"})

    def ask(jpegs: list[bytes]) -> None:
        network({name: tensor.numpy() for name, tensor in around.preprocess(input=tf.constant(jpegs)).items()})

    return ask


def measure_graph(ask: Ask, photos: list[Path], turns: int) -> dict[str, Any]:
    """Returns images/s of each turn by batch, and the labels of all photos if it gives any."""
    jpegs = [photo.read_bytes() for photo in photos]
    answers = [ask(jpegs[first : first + 8]) for first in range(0, len(jpegs), 8)]
    rates: dict[str, Any] = {str(size): [] for size in SIZES}
    for size in SIZES:
        ask(jpegs[:size])
    for _ in range(turns):
        next_turn()
        for size in SIZES:
            start = time.perf_counter()
            for batch in make_batches(jpegs, size):
                ask(batch)
            rates[str(size)].append(IMAGES[size] / (time.perf_counter() - start))
    if answers[0] is not None:
        rates["labels"] = [x.decode() if isinstance(x, bytes) else x for answer in answers for x in answer]
    return rates


def make_batches(jpegs: list[bytes], size: int) -> Iterator[list[bytes]]:
    for first in range(0, IMAGES[size], size):
        yield [jpegs[number % len(jpegs)] for number in range(first, first + size)]


def measure_server(version: Path, options: tuple[str, ...], photos: list[Path], turns: int) -> dict[str, Any]:
    """Returns images/s of each turn and the latencies of all, by callers, and the server's anonymous memory."""
    jpegs = [photo.read_bytes() for photo in photos]
    results: dict[str, Any] = {key: [] for size in SIZES for key in (str(size), f"{size}, ms")}
    with serving(version, *options) as server:
        for turn in range(turns + 1):
            for callers in SIZES:
                bodies = [batch[0] for batch in make_batches(jpegs, 1)] * (IMAGES[callers] // IMAGES[1])
                start = time.perf_counter()
                with ThreadPoolExecutor(callers) as pool:
                    times = list(pool.map(server.ask, bodies))
                if turn:  # the first warms
                    results[str(callers)].append(len(bodies) / (time.perf_counter() - start))
                    results[f"{callers}, ms"] += [1000 * seconds for seconds in times]
            if turn < turns:
                next_turn()
        results["anonymous MiB"] = server.read_anonymous() / 2**20
    return results


if __name__ == "__main__":
    main()
