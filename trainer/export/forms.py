"""Chooses the forms in which a trained network serves, each accepted by what it does to the answers.

The SavedModel has TensorFlow's form, in float32 or bfloat16. Beside it a form for OpenVINO may be written, in float32,
bfloat16 or int8: its candidates are measured on this machine, and tried the fastest first. Where a form in a lower
precision is refused, some layers are kept in float32 by their measured effect.
"""

import functools
import importlib.util
import logging
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import keras
import numpy as np

from imagepipe.base.errors import TrainingError, describe_error
from trainer.config import ServingConfig, TrainerConfig
from trainer.data import TrainingData
from trainer.devices import choose_precision, has_openvino_bfloat16
from trainer.export.answers import Tensors
from trainer.export.fitting import Fitted, Outputs, compile_network, compute_split
from trainer.export.judge import Form, Judge
from trainer.export.layers import choose_layers, rank_layers
from trainer.export.optimize import optimize_network
from trainer.export.recipes import (
    Recipe,
    make_int8_recipe,
    make_openvino_recipe,
    make_tensorflow_recipe,
    measure_error,
    measure_ms,
)
from trainer.export.thresholds import Facts
from trainer.inputs import make_batches

_TIMED_IMAGES = 8
_SHARES_KEPT = (0.1, 0.3)  # of the layers, in float32, where all of them in a lower precision were refused

_log = logging.getLogger("trainer")


class Forms(NamedTuple):
    """The forms of a version.

    Attributes:
        saved: the SavedModel's.
        openvino: the one beside it; None if there is none.
        fitted: of the network itself, in float32.
        thresholds: decision thresholds of all forms, see ``thresholds.settle_thresholds``.
        facts: for people: ``engine`` and ``precision`` that serve, ``saved_precision`` of the SavedModel,
            ``max_difference``, ``tried``, a line for each form that was tried.
    """

    saved: Form
    openvino: Form | None
    fitted: Fitted
    thresholds: Facts
    facts: dict[str, Any]


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
        TrainingError: if a form that the configuration names is refused or can't be made, or no form is accepted.
    """
    judge = Judge(config, serving, data, network, None if chosen is network else chosen)
    if serving.optimize == "off":
        own = Form("float32", network, judge.fitted, {})
        return Forms(own, None, judge.fitted, judge.thresholds, _describe_choice(own, None, []))
    batch = next(iter(make_batches(data.validation, _TIMED_IMAGES)))[0]
    saved = _choose_saved(judge, batch)
    openvino = _choose_openvino(saved, judge, batch) if serving.engine != "tensorflow" else None
    facts = _describe_choice(saved, openvino, judge.tried)
    _log.info("a server of ours computes with %s in %s", facts["engine"], facts["precision"])
    return Forms(saved, openvino, judge.fitted, judge.thresholds, facts)


def _describe_choice(saved: Form, openvino: Form | None, tried: list[str]) -> dict[str, Any]:
    served = openvino or saved
    return {
        "engine": "openvino" if openvino else "tensorflow",
        "precision": served.precision,
        "saved_precision": saved.precision,
        "max_difference": served.facts.get("max_difference"),  # of the network itself there is none
        "tried": tried,
    }


# --- TensorFlow


def _choose_saved(judge: Judge, batch: Tensors) -> Form:
    wanted = judge.serving.precision
    make_plain = functools.cache(lambda: optimize_network(judge.network, bfloat16=False))
    if wanted == "bfloat16" or (wanted in ("auto", "int8") and choose_precision("auto") == "mixed_bfloat16"):
        recipe = make_tensorflow_recipe()
        prepared = recipe.prepare(judge.network)
        form, refusals, facts = judge.try_form(recipe.name, recipe, recipe.build(prepared, []), [])
        if form is None and wanted != "int8" and _may_be_better(judge, recipe, facts):
            limit = measure_ms(compile_network(make_plain()), batch) if wanted == "auto" else None
            form = _try_with_layers_in_float32(judge, recipe, prepared, batch, limit)
        if form:
            return form
        if wanted == "bfloat16":
            raise TrainingError(f"serving.precision: bfloat16 is refused: {'; '.join(refusals)}. Try auto.")
    held_out = compute_split(compile_network(make_plain()), judge.data.validation)
    outputs = Outputs({name: array[:0] for name, array in held_out.items()}, held_out)  # only rounding is to be seen
    refusals, facts = judge.judge(outputs, None, judge.fitted, must_prove=False)
    if refusals:
        raise TrainingError(
            f"The graph optimized for serving is refused: {'; '.join(refusals)}. Try serving.optimize: off."
        )
    return Form("float32", make_plain(), judge.fitted, facts)


# --- OpenVINO


def _choose_openvino(saved: Form, judge: Judge, batch: Tensors) -> Form | None:
    serving = judge.serving
    is_needed = serving.engine == "openvino" or serving.precision == "int8"
    if importlib.util.find_spec("openvino") is None:
        judge.report("OpenVINO is not installed (pip install 'imagepipe-tfx[openvino]'): TensorFlow serves")
        return None
    limit = None if is_needed else measure_ms(compile_network(saved.network), batch)
    for ms, recipe, prepared in sorted(_prepare(judge, batch), key=lambda candidate: candidate[0]):
        name = f"{recipe.name}, {ms:.2f} ms an image"
        if limit is not None and ms >= limit:
            judge.report(f"{name}: not tried, as TensorFlow in {saved.precision} takes {limit:.2f}")
            continue
        form, _, facts = judge.try_form(name, recipe, recipe.build(prepared, []), [])
        if form is None and recipe.precision != "float32" and _may_be_better(judge, recipe, facts):
            form = _try_with_layers_in_float32(judge, recipe, prepared, batch, limit)
        if form:
            return form
    if is_needed:
        named = "" if serving.precision == "auto" else f" with serving.precision: {serving.precision}"
        reasons = "\n".join(judge.tried)
        advice = "engine: auto" if serving.precision == "auto" else "precision: auto"
        raise TrainingError(f"serving.engine: {serving.engine}{named}: no form was accepted. Try {advice}.\n{reasons}")
    return None


def _prepare(judge: Judge, batch: Tensors) -> Iterator[tuple[float, Recipe, Any]]:
    """Yields the candidates: milliseconds an image, how it is computed, and what its forms are built from."""
    for recipe in _list_recipes(judge):
        try:
            prepared = recipe.prepare(judge.network)
            yield measure_ms(recipe.wrap(recipe.build(prepared, [])), batch), recipe, prepared
        except (RuntimeError, TrainingError) as error:
            judge.report(f"{recipe.name}: can't be made: {describe_error(error)}")


def _list_recipes(judge: Judge) -> Iterator[Recipe]:
    from trainer.export.openvino import convert_network

    wanted, convert = judge.serving.precision, functools.cache(convert_network)
    if wanted in ("auto", "float32"):
        yield make_openvino_recipe("float32", convert)
    if wanted in ("auto", "bfloat16"):
        if has_openvino_bfloat16():
            yield make_openvino_recipe("bfloat16", convert)
        else:
            judge.report("OpenVINO, bfloat16: not tried, as this processor lacks it: OpenVINO would emulate it, slowly")
    if wanted not in ("auto", "int8"):
        return
    if wanted == "auto" and (best := judge.show_at_best()) < judge.serving.min_agreement:
        judge.report(
            f"OpenVINO, int8: not tried, as so many images show that {best:.2%} of new images get the same answer if "
            f"all do, and serving.min_agreement is {judge.serving.min_agreement:.4g}; precision: int8 would try it"
        )
    elif importlib.util.find_spec("nncf") is None:
        judge.report("OpenVINO, int8: nncf is not installed (pip install 'imagepipe-tfx[openvino]')")
    else:
        yield make_int8_recipe(judge.data, convert)


# --- layers in float32


def _may_be_better(judge: Judge, recipe: Recipe, facts: dict[str, Any]) -> bool:
    """Returns whether a refused form could be accepted with some layers in float32: not if images are too few."""
    # Of all images: though those set aside alone count for this form, they needn't for a better one.
    is_enough = judge.show_at_best() >= judge.serving.min_agreement
    return np.isfinite(facts["max_difference"]) and (is_enough or not judge.must_prove(recipe))


def _try_with_layers_in_float32(
    judge: Judge, recipe: Recipe, prepared: Any, batch: Tensors, limit: float | None
) -> Form | None:
    """Takes those layers back to float32 whose lower precision does most harm.

    Args:
        judge: has the network.
        recipe: how it is computed.
        prepared: what the recipe has prepared of it.
        batch: inputs by which layers are compared, and time is measured.
        limit: milliseconds an image, of TensorFlow's form; a slower one is of no use. None for no limit.
    """
    ms = measure_ms(recipe.wrap(recipe.build(prepared, [])), batch)
    if limit is not None and ms >= limit:
        judge.report(
            f"{recipe.name} takes {ms:.2f} ms an image, TensorFlow {limit:.2f}: layers in float32 would not help"
        )
        return None
    expected = np.asarray(compile_network(judge.network)(batch)["logits"])

    def measure(kept: Sequence[str]) -> float:
        return measure_error(recipe.wrap(recipe.build(prepared, kept)), batch, expected)

    ranked = rank_layers(recipe.list_layers(prepared), measure)
    for share in _SHARES_KEPT if ranked else ():
        kept = choose_layers(ranked, share)
        network = recipe.build(prepared, kept)
        ms = measure_ms(recipe.wrap(network), batch)
        name = f"{recipe.name} but for {len(kept)} of {len(ranked)} layers, {ms:.2f} ms an image"
        if limit is not None and ms >= limit:
            judge.report(f"{name}: not tried, as TensorFlow takes {limit:.2f}")
            return None
        form, _, _ = judge.try_form(name, recipe, network, kept)
        if form:
            return form
    return None
