"""From JPEG bytes to answers, by engine: images/s, accuracy, latency and memory, on real photos.

- by hand: the recipe as people do it: the run's Keras model in float32, behind `tf.map_fn` with decode and resize
- ours: each version, its SavedModel by TensorFlow, and its form by OpenVINO
- bare: the same form by OpenVINO in LATENCY mode behind the same decoding, as TensorFlow runs it by default, and
  nothing else
- server: `imagepipe serve`, asked by 1, 8 and 32 callers in the binary form over HTTP, by gRPC, and with two workers;
  what is answered while all callers are connected and ask

Each side is a process of its own, and all of a network take turns. What counts is the median of the turns: of a side's
images/s, and of the ratios within each turn; a server is held against the best batch of the graph that it serves.

    python -m benchmarks.serving PHOTOS RUN... [--turns N] [--json] [--record]

PHOTOS holds <class>/*.jpg, which no run was trained on. RUN is the folder of a run (runs/RUN), of any number of
networks, for each one a precision, made by

    imagepipe train flowers --out inception_v3 --set trainer.backbone=inception_v3 --set trainer.weights=FILE \
      --set trainer.epochs=4 --set serving.engine=openvino --set serving.precision=int8

and the same with bfloat16 and, with serving.engine=tensorflow, float32. A few hundred images can show that int8 does
harm by bad luck: --set serving.min_agreement=0.9 --set serving.max_loss=0.05 lets it through.
"""

import argparse
import itertools
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from statistics import median, quantiles
from typing import IO, Any, cast

from benchmarks.common import measure_in_turns, next_turn, read_memory
from benchmarks.engine_servers import ask_steadily, serving
from benchmarks.results import Claim, at_most, make_parser, report
from imagepipe.base.errors import ModelError
from imagepipe.base.names import OPTIMIZED, TRAINING_FOLDER
from imagepipe.deploy.openvino_form import FOLDER, find_form, read_form
from imagepipe.deploy.versions import find_model, find_model_name
from trainer.config import ServingConfig

MEASURES = ("imagepipe/base", "imagepipe/deploy", "imagepipe/serving", "trainer/export", "transform")
SIZES = (1, 8, 32)  # of batches, or numbers of callers
KEYS = [str(size) for size in SIZES]
IMAGES = {1: 32, 8: 64, 32: 128}  # asked about in a turn, of a graph
BARE_GOAL, SERVER_GOAL, TENSORFLOW_SERVER_GOAL = 0.97, 0.9, 0.85
HAND_GOALS = {"inception_v3": {"1": 3.0, "8": 3.5, "32": 3.5}}  # of int8, with VNNI, by backbone
LONE_GOAL = 3.0  # milliseconds by which a lone caller of the server waits longer than for the bare engine
MEMORY_GOAL = 250.0  # MiB of anonymous memory above a server without a model

Ask = Callable[[list[bytes]], Any]
Turns = dict[str, list[float]]
Side = Callable[[list[Path], int], dict[str, Any]]
Results = dict[str, dict[str, Any]]


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("photos", type=Path)
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--side", help=argparse.SUPPRESS)
    parser.add_argument("--result", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    photos = sorted(arguments.photos.glob("*/*.jpg"))
    if not photos:
        sys.exit(f"{arguments.photos} has no photos: give a folder with <class>/*.jpg")
    if arguments.side:
        sides = list_sides([find_version(run) for run in arguments.runs])
        arguments.result.write_text(json.dumps(sides[arguments.side](photos, arguments.turns)), encoding="utf-8")
        return
    networks: dict[str, list[Path]] = {}
    for run in arguments.runs:
        networks.setdefault(find_model_name(run), []).append(run)
    empty = measure_empty_server()
    rows, claims, figures = [], [], {}
    for name, runs in networks.items():
        results = measure_sides(arguments, runs)
        rates = {side: {key: median(result[key]) for key in KEYS} for side, result in results.items()}
        memory = {side: result["anonymous MiB"] for side, result in results.items()}
        figures[name] = {"images_per_second": rates, "anonymous_mib": memory}
        rows += [
            [f"{name}: {side}", *(f"{rates[side][key]:.1f}" for key in KEYS), f"{memory[side]:,.0f}"]
            for side in results
        ]
        truth = [photo.parent.name for photo in photos]
        goals = HAND_GOALS.get(read_backbone(find_version(runs[0])))
        claims += [
            claim._replace(what=f"{name}: {claim.what}")
            for make in (partial(claim_rates, goals), claim_latencies, claim_labels)
            for claim in make(results, empty, truth)
        ]
    header = ["images/s", *(f"batch or callers {key}" for key in KEYS), "peak MiB, anonymous"]
    report(arguments, "serving", MEASURES, figures | {"empty_server_mib": empty}, header, rows, claims)


def measure_sides(arguments: argparse.Namespace, runs: list[Path]) -> Results:
    """Runs all sides of a network in turns, and returns what each measured."""
    own = [sys.executable, "-m", "benchmarks.serving", str(arguments.photos), *map(str, runs)]
    own += ["--turns", str(arguments.turns)]
    with tempfile.TemporaryDirectory() as folder:
        sides = list_sides([find_version(run) for run in runs])
        files = {side: Path(folder) / f"{number}.json" for number, side in enumerate(sides)}
        usages = measure_in_turns([[*own, "--side", side, "--result", str(file)] for side, file in files.items()])
        results: Results = {}
        for (side, file), usage in zip(files.items(), usages, strict=True):
            # A server's memory is its own, without its callers.
            results[side] = {"anonymous MiB": usage.peak_anonymous / 2**20} | json.loads(
                file.read_text(encoding="utf-8")
            )
            if by_grpc := results[side].pop("gRPC", None):
                results[f"{side}, gRPC"] = by_grpc
    return results


def list_sides(versions: list[Path]) -> dict[str, Side]:
    """Returns what measures each side of a network, by its name."""

    def graph(make: Callable[[Path], Ask], version: Path) -> Side:
        return lambda photos, turns: measure_graph(make(version), photos, turns)

    def server(version: Path, *options: str, is_bare: bool = False) -> Side:
        return lambda photos, turns: measure_server(version, options, is_bare, photos, turns)

    sides: dict[str, Side] = {}
    if find_network(versions[0]).is_file():
        sides["by hand"] = graph(make_recipe, versions[0])
    for version in versions:
        sides[f"ours, TensorFlow {read_saved_precision(version)}"] = graph(ask_tensorflow, version)
        if form := find_form(version):
            precision = read_form(form)["precision"]
            sides |= {
                f"ours, OpenVINO {precision}": graph(ask_openvino, version),
                f"bare, OpenVINO {precision}": graph(ask_bare, version),
                f"server, OpenVINO {precision}": server(version),
            }
    version = versions[0]
    sides[f"server, TensorFlow {read_saved_precision(version)}"] = server(version, is_bare=True)
    if form := find_form(version):
        precision = read_form(form)["precision"]
        sides[f"server, OpenVINO {precision}, 2 workers"] = server(version, "--workers", "2")
    return sides


def claim_rates(
    hand_goals: dict[str, float] | None, results: Results, empty: float, truth: list[str]
) -> Iterator[Claim]:
    """Yields images/s of sides against others."""
    rates = {side: {key: median(result[key]) for key in KEYS} for side, result in results.items()}

    def compare(one: str, other: str, goals: dict[str, float] | float | None = None) -> Iterator[Claim]:
        if not {one, other} <= results.keys():
            return
        best = max(KEYS, key=lambda key: rates[other][key])
        is_against_best = one.startswith("server") and not other.startswith("server")
        pairs = [(results[one][key], results[other][best if is_against_best else key]) for key in KEYS]
        ratios = [median(a / b for a, b in zip(*pair, strict=True)) for pair in pairs]
        what = f"images/s, {one} / {other}, batch or callers {', '.join(KEYS)}"
        text = ", ".join(f"{ratio:.2f}" for ratio in ratios)
        if goals is None:
            yield Claim(what, text)
            return
        bounds = [goals[key] for key in KEYS] if isinstance(goals, dict) else [goals] * len(KEYS)
        is_met = all(ratio >= bound for ratio, bound in zip(ratios, bounds, strict=True))
        yield Claim(what, text, f"at least {', '.join(f'{bound:g}' for bound in dict.fromkeys(bounds))}", is_met)

    for side in results:
        who, _, engine = side.partition(", ")
        if who == "ours":
            yield from compare(side, "by hand", hand_goals if engine == "OpenVINO int8" else None)
            yield from compare(side, f"bare, {engine}", BARE_GOAL)
        if who == "server":
            yield from compare(side, f"bare, {engine}", SERVER_GOAL)
            yield from compare(side, f"ours, {engine}", TENSORFLOW_SERVER_GOAL if "TensorFlow" in engine else None)
            yield from compare(side, side.rpartition(", ")[0], 1.0)  # by gRPC or with two workers


def claim_latencies(results: Results, empty: float, truth: list[str]) -> Iterator[Claim]:
    """Yields the servers' latencies, and their memory above ``empty`` MiB."""
    for side, result in results.items():
        if not side.startswith("server"):
            continue
        times = {key: quantiles(result[f"{key}, ms"], n=100, method="inclusive") for key in KEYS}
        text = "; ".join(f"{key}: {cuts[49]:,.0f}, {cuts[98]:,.0f} ms" for key, cuts in times.items())
        yield Claim(f"{side}: median and 99th percentile by callers", text)
        if bare := results.get(side.replace("server", "bare")):
            over = times["1"][49] - 1000 / median(bare["1"])
            yield at_most(f"{side}: ms of a lone caller above the bare engine", over, LONE_GOAL)
            what = f"{side}: MiB of anonymous memory above a server without a model, after 32 callers"
            yield at_most(what, result["anonymous MiB"] - empty, MEMORY_GOAL)


def claim_labels(results: Results, empty: float, truth: list[str]) -> Iterator[Claim]:
    """Yields how often each side is right, and how much a form changes of what TensorFlow answers in float32."""
    bounds = ServingConfig()  # the default ones, whatever the runs were made with
    labels = {side: result["labels"] for side, result in results.items() if "labels" in result}
    photos = f"of {len(truth)} photos"

    def share(given: list[str], other: list[str]) -> float:
        return sum(map(str.__eq__, given, other)) / len(truth)

    for side, given in labels.items():
        yield Claim(f"{side}: right, {photos}", f"{share(given, truth):.3f}")
    trained = "ours, TensorFlow float32"
    if trained not in labels:
        return
    for side, given in labels.items():
        if side in ("by hand", trained):  # the recipe resizes images otherwise
            continue
        same, lost = share(given, labels[trained]), share(labels[trained], truth) - share(given, truth)
        what = f"{side}: the same label as {trained}, {photos}"
        yield Claim(what, f"{same:.3f}", f"at least {bounds.min_agreement:g}", same >= bounds.min_agreement)
        what = f"{side}: points of accuracy below {trained}, {photos}"
        yield at_most(what, 100 * lost, 100 * bounds.max_loss)


def find_version(run: Path) -> Path:
    """Returns the version of a run; ends the program if it has none."""
    try:
        return find_model(run)
    except ModelError as error:
        sys.exit(str(error))


def read_saved_precision(version: Path) -> str:
    """Returns the precision of a version's SavedModel, bfloat16 only if the run's training says so."""
    file = version.parent / TRAINING_FOLDER / OPTIMIZED
    tried = json.loads(file.read_text(encoding="utf-8"))["tried"] if file.is_file() else []
    return (
        "bfloat16"
        if any(line.startswith("TensorFlow, bfloat16") and ": accepted" in line for line in tried)
        else "float32"
    )


def read_backbone(version: Path) -> str:
    """Returns the backbone that a version was trained from."""
    return str(
        json.loads((version.parent / TRAINING_FOLDER / "config.json").read_text(encoding="utf-8"))["trainer"][
            "backbone"
        ]
    )


def copy_without_form(version: Path, folder: Path) -> Path:
    """Copies a version into a folder, so that TensorFlow computes its network."""
    return Path(shutil.copytree(version, folder / "1", ignore=shutil.ignore_patterns(Path(FOLDER).name)))


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
    from imagepipe.serving.threads import limit_threads
    from imagepipe.serving.types import Request

    limit_threads(version)
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


def measure_server(
    version: Path, options: tuple[str, ...], is_bare: bool, photos: list[Path], turns: int
) -> dict[str, Any]:
    """Measures a server, asked over HTTP and, if it has one worker, by gRPC.

    Args:
        version: what it serves.
        options: of `imagepipe serve`.
        is_bare: whether it serves the SavedModel without the form for OpenVINO.
        photos: what is asked about.
        turns: of ``measure_in_turns``.

    Returns:
        Images/s of each turn and the latencies of all, by callers, and the server's anonymous memory; the same of gRPC
        under that name.
    """
    jpegs = [photo.read_bytes() for photo in photos]
    ways = ["HTTP"] if options else ["HTTP", "gRPC"]
    results: dict[str, Any] = {way: {key: [] for size in SIZES for key in (str(size), f"{size}, ms")} for way in ways}
    with tempfile.TemporaryDirectory() as folder:
        if is_bare:
            version = Path(
                shutil.copytree(version, Path(folder, "1"), ignore=shutil.ignore_patterns(Path(FOLDER).name))
            )
        with serving(version, *options) as server:
            for turn in range(turns + 1):
                for way, callers in itertools.product(ways, SIZES):
                    rate, times = ask_steadily(server.ask if way == "HTTP" else server.ask_by_grpc, callers, jpegs)
                    if turn:  # the first warms
                        results[way][str(callers)].append(rate)
                        results[way][f"{callers}, ms"] += times
                if turn < turns:
                    next_turn()
            for measured in results.values():
                measured["anonymous MiB"] = server.read_anonymous() / 2**20
    return results.pop("HTTP") | results


def measure_empty_server() -> float:
    """Returns the MiB of anonymous memory of a server's process before it loads a model."""
    code = "import imagepipe.serving.server as _; print(flush=True); input()"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:  # noqa: S603
        stdin, stdout = cast(IO[bytes], process.stdin), cast(IO[bytes], process.stdout)
        stdout.readline()
        anonymous = read_memory(process.pid)["Pss_Anon"]
        stdin.write(b"\n")
    return anonymous / 2**20


if __name__ == "__main__":
    main()
