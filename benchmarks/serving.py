"""From JPEG bytes to classes: 320x240 JPEGs, an InceptionV3 at 299x299 with ten classes, random weights.

- by hand: the recipe as people do it: the Keras model in float32, behind `tf.map_fn` with decode and resize
- ours: the exported SavedModel, in float32 and in bfloat16
- OpenVINO: the same network in bfloat16, behind the same decode as ours (the extra `openvino`)
- server: `imagepipe serve` with either of our exports, asked by 1, 8 and 32 callers at once from another process
- hardly a network: one layer in place of InceptionV3, which leaves decoding to the graph, and all else to the server

Each side is a process of its own, and all take turns. What counts is the median of the turns: of a side's images/s, and
of the ratios within each turn.

    python -m benchmarks.serving [--turns N] [--json] [--record]
"""

import argparse
import base64
import importlib.util
import json
import os
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from http import HTTPStatus
from http.client import HTTPConnection
from pathlib import Path
from statistics import median, quantiles
from typing import Any

from benchmarks.common import build_inception_v3, export_model, make_photo_crops, measure_in_turns, next_turn
from benchmarks.results import Claim, make_parser, report

MEASURES = ("imagepipe/base", "imagepipe/serving", "trainer/export", "transform")
SIZE = (299, 299)
BATCHES = (1, 8, 32)
CALLERS = (1, 8, 32)
IMAGES = {1: 48, 8: 64, 32: 128}  # asked about in a turn, by batch or by callers
ONE_LAYER = "hardly a network"
OURS, SERVER = ({kind: f"{side}, {kind}" for kind in ("float32", "bfloat16", ONE_LAYER)} for side in ("ours", "server"))
OPENVINO = "OpenVINO, bfloat16"
SIDES = ["by hand", *OURS.values(), OPENVINO, *SERVER.values()]
GOALS = {
    "ours, float32 / by hand": 1.05,
    "ours, bfloat16 / by hand": 1.9,
    "ours, bfloat16 / OpenVINO, bfloat16": 0.95,
    "server, float32 / ours, float32": 0.85,
    "server, bfloat16 / ours, bfloat16": 0.85,
}

Ask = Callable[[list[bytes]], Any]
Turns = dict[str, list[float]]


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--side", choices=["prepare", *SIDES], help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.side == "prepare":
        prepare(arguments.folder)
        os._exit(0)  # see transform_and_input
    if arguments.side:
        run_side = server if arguments.side in SERVER.values() else graph
        rates_by_turn = run_side(arguments.folder, arguments.side, arguments.turns)
        (arguments.folder / f"{arguments.side}.json").write_text(json.dumps(rates_by_turn))
        return

    sides = [side for side in SIDES if side != OPENVINO or importlib.util.find_spec("openvino")]
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "benchmarks.serving", "--folder", folder, "--turns", str(arguments.turns)]
        measure_in_turns([[*command, "--side", "prepare"]])
        usages = measure_in_turns([[*command, "--side", side] for side in sides])
        turns: dict[str, Turns] = {side: json.loads((Path(folder) / f"{side}.json").read_text()) for side in sides}
    memory = {side: usage.peak / 2**20 for side, usage in zip(sides, usages, strict=True)}
    latency = {
        side: {
            key: quantiles(turns[side].pop(f"{key}, ms"), n=100, method="inclusive")[-1] for key in map(str, CALLERS)
        }
        for side in SERVER.values()
    }
    rates = {side: {key: median(turns[side][key]) for key in turns[side]} for side in sides}
    best = {side: max(rates[side], key=lambda key: rates[side][key]) for side in sides}

    def compare(pair: str) -> dict[str, float]:
        one, other = pair.split(" / ")
        if other not in sides:
            return {}
        return {
            key: median(
                a / b
                for a, b in zip(turns[one][key], turns[other][best[other] if one in latency else key], strict=True)
            )
            for key in turns[one]
        }

    compared = {pair: compare(pair) for pair in GOALS}
    report(
        arguments,
        "serving",
        MEASURES,
        {
            "images_per_second": rates,
            "peak_memory_mib": memory,
            "ratios": compared,
            "goals": GOALS,
            "server_p99_ms": latency,
        },
        ["images/s", *(f"batch or callers {key}" for key in BATCHES), "peak MiB"],
        [[side, *(f"{rates[side][str(key)]:.1f}" for key in BATCHES), f"{memory[side]:,.0f}"] for side in sides],
        [
            Claim(
                f"images/s, {pair}, batch or callers {', '.join(ratios)}",
                ", ".join(f"{ratio:.2f}" for ratio in ratios.values()),
                f"at least {GOALS[pair]:g}",
                min(ratios.values()) >= GOALS[pair],
            )
            for pair, ratios in compared.items()
            if ratios
        ]
        + [
            Claim(
                f"{side}: 99th percentile by callers",
                ", ".join(f"{key}: {ms:,.0f} ms" for key, ms in by_callers.items()),
            )
            for side, by_callers in latency.items()
        ],
    )


def prepare(folder: Path) -> None:
    """Writes the models."""
    import tensorflow as tf

    from benchmarks import transform_and_input

    transform_and_input.prepare(folder, 10)
    network = build_inception_v3()
    for kind, name in OURS.items():
        model = one_layer() if kind == ONE_LAYER else network.served
        export_model(model, folder / "transform", folder / name, bfloat16=kind == "bfloat16")

    network.model.export(folder / "network", verbose=False)
    module = tf.Module()
    module.network = network.model

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="input")])
    def serve(input: Any) -> dict[str, Any]:
        def decode(one: Any) -> Any:
            return tf.image.resize(tf.io.decode_jpeg(one, channels=3), SIZE)

        pixels = tf.map_fn(decode, input, fn_output_signature=tf.float32)
        return {"classes": network.model({"image": tf.cast(pixels, tf.uint8)}, training=False)}

    module.serve = serve
    tf.saved_model.save(module, str(folder / "by hand"), signatures={"serving_default": serve})


def one_layer() -> Any:
    import keras

    pixels = keras.Input((*SIZE, 3), dtype="uint8", name="image")
    means = keras.layers.GlobalAveragePooling2D()(keras.layers.Rescaling(1 / 255)(pixels))
    return keras.Model({"image": pixels}, {"logits": keras.layers.Dense(10)(means), "embedding": means})


def graph(folder: Path, side: str, turns: int) -> Turns:
    """Images/s of each turn, by batch."""
    ask = openvino(folder) if side == OPENVINO else saved_model(folder / side)
    jpegs = list(make_photo_crops(max(IMAGES.values())))
    for batch in BATCHES:
        ask(jpegs[:batch])
    rates: Turns = {str(batch): [] for batch in BATCHES}
    for _ in range(turns):
        next_turn()
        for batch in BATCHES:
            start = time.perf_counter()
            for first in range(0, IMAGES[batch], batch):
                ask(jpegs[first : first + batch])
            rates[str(batch)].append(IMAGES[batch] / (time.perf_counter() - start))
    return rates


def saved_model(path: Path) -> Ask:
    import tensorflow as tf

    loaded = tf.saved_model.load(str(path))
    serve = loaded.signatures["serving_default"]
    if path.name == "by hand":
        return lambda jpegs: serve(input=tf.constant(jpegs))["classes"].numpy()
    return lambda jpegs: serve(input=tf.constant(jpegs), metadata=tf.fill([len(jpegs)], ""))["classes"].numpy()


def openvino(folder: Path) -> Ask:
    import openvino as ov
    import tensorflow as tf

    ours = tf.saved_model.load(str(folder / OURS["float32"]))
    network = ov.compile_model(
        ov.convert_model(folder / "network"), "CPU", {"INFERENCE_PRECISION_HINT": "bf16", "PERFORMANCE_HINT": "LATENCY"}
    )
    return lambda jpegs: network(ours.preprocess(input=tf.constant(jpegs))["image"].numpy())[0]


def server(folder: Path, side: str, turns: int) -> Turns:
    """Images/s of each turn, by callers, and the latencies of all turns."""
    from imagepipe.serving.check import run_server

    model = folder / side.replace("server", "ours")
    with run_server(model, "bench", folder / f"{side}.log") as url:
        bodies = [
            json.dumps({"instances": [{"input": {"b64": base64.b64encode(jpeg).decode()}}]}).encode()
            for jpeg in make_photo_crops(max(IMAGES.values()))
        ]
        caller = threading.local()  # http.client, as it leaves more of the two cores to the server than httpx

        def ask(body: bytes) -> float:
            if not hasattr(caller, "http"):
                caller.http = HTTPConnection(url.removeprefix("http://"), timeout=120)
            start = time.perf_counter()
            caller.http.request("POST", "/v1/models/bench:predict", body)
            answer = caller.http.getresponse()
            if answer.status != HTTPStatus.OK:
                raise RuntimeError(answer.read())
            answer.read()
            return time.perf_counter() - start

        results: Turns = {key: [] for callers in CALLERS for key in (str(callers), f"{callers}, ms")}
        for turn in range(turns + 1):
            for callers in CALLERS:
                start = time.perf_counter()
                with ThreadPoolExecutor(callers) as pool:
                    times = list(pool.map(ask, bodies[: IMAGES[callers]]))
                if turn:  # the first warms
                    results[str(callers)].append(IMAGES[callers] / (time.perf_counter() - start))
                    results[f"{callers}, ms"] += [1000 * seconds for seconds in times]
            if turn < turns:
                next_turn()
        return results


if __name__ == "__main__":
    main()
