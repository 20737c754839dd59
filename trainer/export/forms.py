"""Chooses the forms in which a trained network serves, each accepted by what it does to the answers.

The SavedModel has TensorFlow's form, in float32 or bfloat16. Beside it a form for OpenVINO may be written, in float32,
bfloat16 or int8: its candidates are measured on this machine, and tried the fastest first. Where a form in a lower
precision is refused, some layers are kept in float32 by their measured effect.
"""

import functools
import importlib.util
import logging
import math
from collections.abc import Iterable, Iterator, Sequence
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
from trainer.export.layers import rank_layers
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


class _Limit(NamedTuple):
    """The time that TensorFlow takes for an image, in milliseconds, with a form in some precision."""

    ms: float
    precision: str


class _Candidate(NamedTuple):
    """A form that may be tried.

    Attributes:
        ms: its time of an image, in milliseconds.
        name: for people.
        recipe: how it is computed.
        prepared: what the recipe has prepared of the network.
        form: as the recipe builds it.
        kept: names of the layers that it has in float32.
    """

    ms: float
    name: str
    recipe: Recipe
    prepared: Any
    form: Any
    kept: list[str]


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
            limit = _Limit(measure_ms(compile_network(make_plain()), batch), "float32") if wanted == "auto" else None
            whole = _measure(recipe, prepared, recipe.name, [], batch)
            if limit and whole.ms >= limit.ms:
                judge.report(f"{whole.name}, in float32 {limit.ms:.2f}: layers in float32 would not help")
            else:
                form = _try_fastest_first(judge, _restore_layers(judge, whole, batch), batch, limit)
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
    limit = None if is_needed else _Limit(measure_ms(compile_network(saved.network), batch), saved.precision)
    if form := _try_fastest_first(judge, _list_candidates(judge, batch), batch, limit):
        return form
    if is_needed:
        named = "" if serving.precision == "auto" else f" with serving.precision: {serving.precision}"
        reasons = "\n".join(judge.tried)
        advice = "engine: auto" if serving.precision == "auto" else "precision: auto"
        raise TrainingError(f"serving.engine: {serving.engine}{named}: no form was accepted. Try {advice}.\n{reasons}")
    return None


def _list_candidates(judge: Judge, batch: Tensors) -> Iterator[_Candidate]:
    """Yields OpenVINO's forms with all layers in their precision."""
    for recipe in _list_recipes(judge):
        try:
            yield _measure(recipe, recipe.prepare(judge.network), recipe.name, [], batch)
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


# --- the fastest first


def _measure(recipe: Recipe, prepared: Any, name: str, kept: list[str], batch: Tensors) -> _Candidate:
    form = recipe.build(prepared, kept)
    ms = measure_ms(recipe.wrap(form), batch)
    return _Candidate(ms, f"{name}, {ms:.2f} ms an image", recipe, prepared, form, kept)


def _try_fastest_first(
    judge: Judge, candidates: Iterable[_Candidate], batch: Tensors, limit: _Limit | None
) -> Form | None:
    """Returns the fastest form that is accepted; where one is refused, it with layers in float32 is a candidate too.

    Args:
        judge: has the network.
        candidates: the forms to begin with.
        batch: inputs by which layers are compared, and time is measured.
        limit: a slower one is of no use; None for no limit.
    """
    left = list(candidates)
    while left:
        left.sort(key=lambda candidate: candidate.ms)
        candidate = left.pop(0)
        if limit and candidate.ms >= limit.ms:
            judge.report(f"{candidate.name}: not tried, as TensorFlow in {limit.precision} takes {limit.ms:.2f}")
            continue
        recipe, kept = candidate.recipe, candidate.kept
        form, _, facts = judge.try_form(candidate.name, recipe, candidate.form, kept)
        if form:
            return form
        if not kept and recipe.precision != "float32" and _may_be_better(judge, recipe, facts):
            left += _restore_layers(judge, candidate, batch)
    return None


# --- layers in float32


def _may_be_better(judge: Judge, recipe: Recipe, facts: dict[str, Any]) -> bool:
    """Returns whether a refused form could be accepted with some layers in float32: not if images are too few."""
    # Of all images: though those set aside alone count for this form, they needn't for a better one.
    is_enough = judge.show_at_best() >= judge.serving.min_agreement
    return np.isfinite(facts["max_difference"]) and (is_enough or not judge.must_prove(recipe))


def _restore_layers(judge: Judge, candidate: _Candidate, batch: Tensors) -> Iterator[_Candidate]:
    """Yields a form with those layers in float32 whose lower precision does most harm."""
    recipe, prepared = candidate.recipe, candidate.prepared
    expected = np.asarray(compile_network(judge.network)(batch)["logits"])

    def measure(kept: Sequence[str]) -> float:
        return measure_error(recipe.wrap(recipe.build(prepared, kept)), batch, expected)

    layers = recipe.list_layers(prepared)
    try:
        ranked = rank_layers(layers, measure)
        counts = {min(math.ceil(share * len(layers)), len(ranked)) for share in _SHARES_KEPT}
        for count in sorted(counts - {0}):
            name = f"{recipe.name} but for {count} of {len(layers)} layers"
            if len(ranked) < len(layers):
                name += f" (the effect of {len(ranked)} was measured)"
            yield _measure(recipe, prepared, name, ranked[:count], batch)
    except (RuntimeError, TrainingError) as error:  # of OpenVINO, which can't compile it
        judge.report(f"{recipe.name} with layers in float32: can't be made: {describe_error(error)}")
