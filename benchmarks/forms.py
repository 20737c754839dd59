"""Forms of networks that were fine-tuned on photos of flowers: accuracy, agreement with float32, and time of an image.

A network is trained as the Trainer does it, on the folder `train`, and exported in each form; the table shows what that
does to the answers about `val`, and whether `serving.precision: auto` would accept it.

    python -m benchmarks.forms FOLDER WEIGHTS [--backbone NAME] [--size PIXELS] [--json] [--record]

FOLDER holds train/<class>/*.jpg and val/<class>/*.jpg, WEIGHTS are of the backbone. Needs the extra openvino.
"""

import argparse
import importlib.util
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.results import Claim, at_least, at_most, make_parser, report

MEASURES = ("trainer",)
MIN_AGREEMENT, MAX_LOSS = 0.98, 0.5  # on some 200 photos, of which one is half a point


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("weights", type=Path)
    parser.add_argument("--backbone", default="mobilenet_v2")
    parser.add_argument("--size", type=int, default=160)
    arguments = parser.parse_args()
    for path in (arguments.folder / "train", arguments.weights):
        if not path.exists():
            raise SystemExit(f"{path} is not there: nothing is measured")
    if importlib.util.find_spec("nncf") is None:
        raise SystemExit("OpenVINO and NNCF are not installed (pip install 'imagepipe-tfx[openvino]')")
    figures = measure(arguments)
    rows = [
        [name, f"{f['accuracy']:.4f}", f"{f['agreement']:.4f}", f"{f['ms']:.2f}", f["verdict"]]
        for name, f in figures.items()
    ]
    header = ["", "accuracy", "agreement", "ms an image", "auto"]
    report(arguments, "forms", MEASURES, figures, header, rows, make_claims(figures))


def make_claims(figures: dict[str, Any]) -> list[Claim]:
    own = figures["TensorFlow, float32"]["accuracy"]
    claims = []
    for name, form in figures.items():
        loss = 100 * (own - form["accuracy"])
        claims += [
            at_least(f"{name}: photos of val with the label of float32", form["agreement"], MIN_AGREEMENT),
            at_most(f"{name}: points of accuracy lost on val", loss, MAX_LOSS),
        ]
    return claims


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    import tensorflow as tf

    from benchmarks.transfer import load_training, read_photos
    from imagepipe.base.errors import TrainingError
    from imagepipe.deploy.openvino_form import OpenVinoPrecision
    from trainer.config import ServingConfig
    from trainer.export.fitting import compile_network
    from trainer.export.forms import choose_forms
    from trainer.export.recipes import measure_ms, wrap_network
    from trainer.inputs import make_batches
    from trainer.run_fn import rebuild_network, train

    figures: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        options = argparse.Namespace(**vars(arguments), unfreeze_after=None, seeds=0)
        data, config = load_training(options, Path(folder))
        trained = train(data, config, Path(folder), tf.distribute.get_strategy())
        network = rebuild_network(data, config, trained).served
        photos, labels = read_photos(arguments.folder / "val", arguments.size)
        batch = next(iter(make_batches(data.validation, 8)))[0]
        own = None
        candidates: list[tuple[str, OpenVinoPrecision]] = [
            ("tensorflow", "float32"),
            ("tensorflow", "bfloat16"),
            ("openvino", "float32"),
            ("openvino", "bfloat16"),
            ("openvino", "int8"),
        ]
        for engine, precision in candidates:
            # No bound, so that each is shown; the line says what the bounds would have said.
            bounds = {"min_agreement": 0, "max_loss": 1}
            serving = ServingConfig.model_validate({"engine": engine, "precision": precision} | bounds)
            name = f"{'OpenVINO' if engine == 'openvino' else 'TensorFlow'}, {precision}"
            try:
                forms = choose_forms(network, network, config, serving, data)
            except TrainingError as error:
                print(f"{name}: {error}", file=sys.stderr)
                continue
            form = forms.openvino or forms.saved
            compute = wrap_network(form.network, precision) if forms.openvino else compile_network(form.network)
            logits = [
                np.asarray(compute({"image": tf.constant(photos[i : i + 32])})["logits"])
                for i in range(0, len(photos), 32)
            ]
            answers = np.concatenate(logits).argmax(axis=1)
            own = answers if own is None else own
            agreement = form.facts["agreement"]
            figures[name] = {
                "accuracy": float((answers == labels).mean()),
                "agreement": float((answers == own).mean()),
                "ms": measure_ms(compute, batch),
                "verdict": f"at least {agreement['low']:.4f}" if agreement else "rounding",
            }
    return figures


if __name__ == "__main__":
    main()
