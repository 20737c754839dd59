"""Chooses the forms in which a trained network serves: faster ones are tried, and judged by their answers.

The SavedModel is TensorFlow's, in float32 or bfloat16. Beside it a form for OpenVINO may be written, in float32,
bfloat16 or int8: its candidates are measured on this machine, and tried the fastest first.
"""

import importlib.util
import logging
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf

from imagepipe.base.errors import TrainingError, describe_error
from imagepipe.deploy.openvino_form import OpenVinoPrecision
from imagepipe.deploy.openvino_form import compile_network as compile_for_openvino
from trainer.config import ServingConfig, TrainerConfig, list_thresholds
from trainer.data import TrainingData
from trainer.devices import choose_precision
from trainer.export.acceptance import (
    Bounds,
    Classes,
    Groups,
    Judgement,
    count_independent,
    count_needed,
    describe,
    judge_form,
)
from trainer.export.answers import Tensors, compute_classes
from trainer.export.fitting import (
    Fitted,
    Outputs,
    compile_network,
    compute_outputs,
    compute_split,
    draw_sample,
    fit_answers,
)
from trainer.export.optimize import optimize_network
from trainer.export.thresholds import Facts, settle_thresholds
from trainer.inputs import make_batches

_TIMED_IMAGES, _TIMED_ROUNDS = 8, 5
_SHARES_KEPT = (0.1, 0.3)  # of the layers, in float32, where all of them in int8 were refused

_log = logging.getLogger("trainer")

Compute = Callable[[Tensors], Any]


class Form(NamedTuple):
    """A network in the form in which an engine computes it.

    Attributes:
        precision: float32, bfloat16 or int8.
        network: TensorFlow's function, or OpenVINO's model.
        fitted: the way from its outputs to answers.
        facts: what was measured when it was accepted.
    """

    precision: OpenVinoPrecision
    network: Any
    fitted: Fitted
    facts: dict[str, Any]


class Forms(NamedTuple):
    """The forms of a version.

    Attributes:
        saved: the SavedModel's.
        openvino: the one beside it; None if there is none.
        fitted: of the network itself, in float32.
        thresholds: decision thresholds of all forms, see ``thresholds.settle_thresholds``.
        facts: for people: ``engine`` and ``precision`` that serve, ``max_difference``, ``tried``, a line for each form
            that was tried.
    """

    saved: Form
    openvino: Form | None
    fitted: Fitted
    thresholds: Facts
    facts: dict[str, Any]


@dataclass
class _Judge:
    """Judges forms of one network.

    Attributes:
        config: the trainer's settings.
        serving: bounds.
        data: the images.
        outputs: the network's own.
        chosen: see ``fitting.fit_answers``.
        tried: a line for each form that was tried.
    """

    config: TrainerConfig
    serving: ServingConfig
    data: TrainingData
    outputs: Outputs
    chosen: Outputs | None
    tried: list[str]

    def __post_init__(self) -> None:
        self.fitted = self.fit(self.outputs)

    def fit(self, outputs: Outputs) -> Fitted:
        unknown = self.serving.unknown
        return fit_answers(self.config, self.data, outputs, self.chosen, unknown.novelty if unknown else None)

    def judge(self, outputs: Outputs, fitted: Fitted, must_prove: bool) -> Judgement:
        task, data = self.data.task.name, self.data

        def classify(part: Outputs, calibration: Any) -> Classes:
            return Classes(*(compute_classes(task, calibration, arrays["logits"]).numpy() for arrays in part))

        compared = Outputs(
            *({k: v[: len(o["logits"])] for k, v in own.items()} for own, o in zip(self.outputs, outputs, strict=True))
        )
        targets = np.asarray(data.task.encode(tf.constant(data.validation.targets))) if data.is_set_aside else None
        thresholds = list_thresholds(data.output_names, self.config.label_thresholds) if task == "multilabel" else []
        bounds = Bounds(self.serving.max_loss, self.serving.min_agreement, self.serving.max_difference)
        network, form = classify(compared, self.fitted.calibration), classify(outputs, fitted.calibration)
        groups = Groups(*(numbers[: len(part)] for numbers, part in zip(_number_groups(data), form, strict=True)))
        return judge_form(task, thresholds, network, form, groups, targets, bounds, must_prove)

    def try_form(
        self, name: str, precision: OpenVinoPrecision, network: Any, compute: Compute
    ) -> tuple[Form | None, list[str]]:
        """Returns the form if it is accepted, and else why it is refused."""
        outputs = compute_outputs(compute, self.data)
        fitted = self.fit(outputs)
        must_prove = precision not in ("float32", self.serving.precision)
        refusals, facts = self.judge(outputs, fitted, must_prove)
        verdict = f"refused: {'; '.join(refusals)}" if refusals else "accepted"
        self.report(f"{name}: {verdict} ({describe(facts)})")
        return (None if refusals else Form(precision, network, fitted, facts)), refusals

    def report(self, line: str) -> None:
        self.tried.append(line)
        _log.info("%s", line)


def _number_groups(data: TrainingData) -> Groups:
    """Returns the groups of the images that ``compute_outputs`` asks about."""
    sample, held_out = draw_sample(data), data.validation
    if sample.groups is None or held_out.groups is None:
        return Groups(np.arange(sample.count), -1 - np.arange(held_out.count))
    return Groups(sample.groups, held_out.groups)


def choose_forms(
    network: keras.Model, chosen: keras.Model, config: TrainerConfig, serving: ServingConfig, data: TrainingData
) -> Forms:
    """Chooses the forms in which a network serves.

    Args:
        network: the trained network, in float32, to ``logits`` and ``embedding``.
        chosen: the same, or the one that was not trained on ``data.validation``.
        config: the trainer's settings.
        serving: engine, precision and bounds.
        data: the images that the forms are fitted on and judged by.

    Raises:
        TrainingError: if a form that the configuration names is refused, or no form is accepted.
    """
    outputs = compute_outputs(compile_network(network), data)
    others = None if chosen is network else compute_outputs(compile_network(chosen), data)
    thresholds = settle_thresholds(config, data, (others or outputs).held_out["logits"])
    settled = {name: fact["threshold"] for name, fact in thresholds.items()}
    judge = _Judge(config.model_copy(update={"label_thresholds": settled}), serving, data, outputs, others, [])
    if serving.optimize == "off":
        own = Form("float32", network, judge.fitted, {})
        return Forms(own, None, judge.fitted, thresholds, _describe_choice("float32", None, []))
    saved = _choose_saved(network, judge)
    openvino = _choose_openvino(network, saved, judge) if serving.engine != "tensorflow" else None
    served = openvino or saved
    engine = "openvino" if openvino else "tensorflow"
    _log.info("a server of ours computes with %s in %s", engine, served.precision)
    facts = _describe_choice(served.precision, served, judge.tried, engine)
    return Forms(saved, openvino, judge.fitted, thresholds, facts)


def _describe_choice(precision: str, form: Form | None, tried: list[str], engine: str = "tensorflow") -> dict[str, Any]:
    difference = form.facts["max_difference"] if form else None
    return {"engine": engine, "precision": precision, "max_difference": difference, "tried": tried}


# --- TensorFlow


def _choose_saved(network: keras.Model, judge: _Judge) -> Form:
    wanted = judge.serving.precision
    if wanted == "bfloat16" or (wanted in ("auto", "int8") and choose_precision("auto") == "mixed_bfloat16"):
        function = optimize_network(network, bfloat16=True)
        form, refusals = judge.try_form("TensorFlow, bfloat16", "bfloat16", function, compile_network(function))
        if form:
            return form
        if wanted == "bfloat16":
            raise TrainingError(f"serving.precision: bfloat16 is refused: {'; '.join(refusals)}. Try auto.")
    function = optimize_network(network, bfloat16=False)
    held_out = compute_split(compile_network(function), judge.data.validation)
    outputs = Outputs({name: array[:0] for name, array in held_out.items()}, held_out)  # only rounding is to be seen
    refusals, facts = judge.judge(outputs, judge.fitted, must_prove=False)
    if refusals:
        raise TrainingError(
            f"The graph optimized for serving is refused: {'; '.join(refusals)}. Try serving.optimize: off."
        )
    return Form("float32", function, judge.fitted, facts)


# --- OpenVINO


def _choose_openvino(network: keras.Model, saved: Form, judge: _Judge) -> Form | None:
    is_free = judge.serving.engine == "auto"
    if importlib.util.find_spec("openvino") is None:
        judge.report("OpenVINO is not installed (pip install 'imagepipe-tfx[openvino]'): TensorFlow serves")
        return None
    batch = next(iter(make_batches(judge.data.validation, _TIMED_IMAGES)))[0]
    limit = measure_ms(compile_network(saved.network), batch) if is_free else None
    candidates = sorted(_convert(network, batch, judge), key=lambda candidate: candidate[0])
    for ms, precision, converted in candidates:
        name = f"OpenVINO, {precision}, {ms:.2f} ms an image"
        if limit is not None and ms >= limit:
            judge.report(f"{name}: not tried, as TensorFlow in {saved.precision} takes {limit:.2f}")
            continue
        form, _ = judge.try_form(name, precision, converted, wrap_network(converted, precision))
        if form is None and precision == "int8":
            form = _try_with_layers_in_float32(network, converted, batch, judge, limit)
        if form:
            return form
    if not is_free:
        reasons = "\n".join(judge.tried)
        raise TrainingError(f"serving.engine: openvino: no form was accepted. Try engine: auto.\n{reasons}")
    return None


def _convert(network: keras.Model, batch: Tensors, judge: _Judge) -> Iterator[tuple[float, OpenVinoPrecision, Any]]:
    """Yields the candidates: milliseconds an image, precision, OpenVINO's model."""
    import openvino

    from trainer.export.openvino import convert_network

    wanted = judge.serving.precision
    try:
        converted = convert_network(network)
    except RuntimeError as error:
        judge.report(f"OpenVINO can't convert the network: {describe_error(error)}")
        return
    # OpenVINO emulates bfloat16 where the processor lacks it, slowly.
    has_bfloat16 = "BF16" in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    candidates: list[OpenVinoPrecision] = ["float32", "bfloat16"] if has_bfloat16 else ["float32"]
    for precision in candidates:
        if wanted in ("auto", precision):
            yield measure_ms(wrap_network(converted, precision), batch), precision, converted
    if wanted in ("auto", "int8") and (quantized := _quantize(converted, judge)):
        yield measure_ms(wrap_network(quantized, "int8"), batch), "int8", quantized


def _quantize(converted: Any, judge: _Judge) -> Any:
    """Returns the network in int8; None if there is none, or too few images to show that it may be used."""
    needed = count_needed(0, judge.serving.min_agreement)
    groups = np.concatenate(_number_groups(judge.data))
    independent = math.floor(count_independent(groups) + 1e-9)
    if judge.serving.precision == "auto" and (needed is None or independent < needed):
        counted = f" in groups, which count as {independent}," if independent < len(groups) else ""
        judge.report(
            f"OpenVINO, int8: not tried, as {len(groups)} images{counted} can't show that it may be used: {needed} "
            "would"
        )
        return None
    if importlib.util.find_spec("nncf") is None:
        judge.report("OpenVINO, int8: nncf is not installed (pip install 'imagepipe-tfx[openvino]')")
        return None
    from trainer.export.quantize import draw_images, quantize_network

    try:
        return quantize_network(converted, draw_images(judge.data))
    except Exception as error:  # NNCF raises many kinds on graphs that it doesn't know
        judge.report(f"OpenVINO, int8: NNCF failed: {describe_error(error)}")
        return None


def _try_with_layers_in_float32(
    network: keras.Model, quantized: Any, batch: Tensors, judge: _Judge, limit: float | None
) -> Form | None:
    """Takes those layers back to float32 whose quantization does most harm."""
    from trainer.export.openvino import convert_network
    from trainer.export.quantize import choose_layers, rank_layers, restore_layers

    ranked = rank_layers(convert_network(network), quantized, {name: x.numpy() for name, x in batch.items()})
    for share in _SHARES_KEPT:
        restored = restore_layers(quantized, choose_layers(ranked, share))
        ms = measure_ms(wrap_network(restored, "int8"), batch)
        name = (
            f"OpenVINO, int8 but for {len(choose_layers(ranked, share))} of {len(ranked)} layers, {ms:.2f} ms an image"
        )
        if limit is not None and ms >= limit:
            judge.report(f"{name}: not tried, as TensorFlow takes {limit:.2f}")
            return None
        form, _ = judge.try_form(name, "int8", restored, wrap_network(restored, "int8"))
        if form:
            return form
    return None


def wrap_network(converted: Any, precision: OpenVinoPrecision) -> Compute:
    """Returns the function from a batch of inputs to outputs of OpenVINO's model."""
    compiled = compile_for_openvino(converted, precision)
    return lambda features: {
        port.any_name: array for port, array in compiled({name: x.numpy() for name, x in features.items()}).items()
    }


def measure_ms(compute: Compute, batch: Tensors) -> float:
    """Returns the time of an image in a small batch, in milliseconds: the best of a few rounds."""
    compute(batch)
    times = []
    for _ in range(_TIMED_ROUNDS):
        start = time.perf_counter()
        compute(batch)
        times.append(time.perf_counter() - start)
    return 1000 * min(times) / len(next(iter(batch.values())))
