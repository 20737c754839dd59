"""Tries forms of one network: computes their answers to the images at hand, and judges them."""

import logging
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf

from imagepipe.deploy.openvino_form import OpenVinoPrecision
from trainer.config import ServingConfig, TrainerConfig, list_thresholds
from trainer.data import TrainingData
from trainer.export.acceptance import Bounds, Judgement, describe, judge_form
from trainer.export.agreement import Parts, show_at_best
from trainer.export.answers import compute_classes
from trainer.export.fitting import Fitted, Outputs, compile_network, compute_outputs, draw_sample, fit_answers
from trainer.export.recipes import Recipe
from trainer.export.thresholds import settle_thresholds
from trainer.inputs import LoadedSplit

_log = logging.getLogger("trainer")


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


@dataclass
class Judge:
    """Judges forms of one network.

    Attributes:
        config: the trainer's settings, with the decision thresholds of all forms.
        serving: bounds.
        data: the images.
        network: the network, in float32.
        chosen: the one that was not trained on ``data.validation``, if it is another one, after ``trainer.refit``; what
            a form does to answers about images that are set aside is then measured on the same form of this one.
        tried: a line for each form that was tried.
        outputs, others: of ``network``, and of ``chosen`` if there is one.
        thresholds: see ``thresholds.settle_thresholds``.
        fitted: of the network itself, in float32.
        noise: see ``acceptance.judge_form``.
    """

    config: TrainerConfig
    serving: ServingConfig
    data: TrainingData
    network: keras.Model
    chosen: keras.Model | None
    tried: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.outputs = compute_outputs(compile_network(self.network), self.data)
        self.others = compute_outputs(compile_network(self.chosen), self.data) if self.chosen else None
        self.thresholds = settle_thresholds(self.config, self.data, (self.others or self.outputs).held_out["logits"])
        settled = {name: fact["threshold"] for name, fact in self.thresholds.items()}
        self.config = self.config.model_copy(update={"label_thresholds": settled})
        self.fitted = self.fit(self.outputs, self.others)
        self.noise = self._measure_noise()

    def fit(self, outputs: Outputs, others: Outputs | None) -> Fitted:
        """Fits the way from a form's outputs to answers; ``others`` are those of the same form of ``chosen``."""
        unknown = self.serving.unknown
        return fit_answers(self.config, self.data, outputs, others, unknown.novelty if unknown else None)

    def judge(self, outputs: Outputs, others: Outputs | None, fitted: Fitted, must_prove: bool) -> Judgement:
        """Judges a form by its outputs, of the first images of each part or all; see ``fit``."""
        data, serving = self.data, self.serving
        form = self._classify(outputs, others, fitted)

        def cut(parts: Parts) -> Parts:
            return Parts(*(array[: len(part)] for array, part in zip(parts, form, strict=True)))

        return judge_form(
            data.task.name,
            self._list_thresholds(),
            cut(self._classify(self.outputs, self.others if others else None, self.fitted)),
            form,
            unknown=(cut(self.fitted.unknown), cut(fitted.unknown)),
            groups=cut(self._number_groups()),
            targets=_encode_targets(data, data.validation) if data.is_set_aside else None,
            noise=self.noise,
            bounds=Bounds(serving.max_loss, serving.min_agreement, serving.max_difference),
            must_prove=must_prove,
        )

    def try_form(
        self, name: str, recipe: Recipe, network: Any, kept: list[str]
    ) -> tuple[Form | None, list[str], dict[str, Any]]:
        """Returns a form if it is accepted, and else why it is refused; and what was measured.

        Args:
            name: of the form, for people.
            recipe: how it is computed.
            network: the form, as the recipe builds it.
            kept: names of the layers that it has in float32.
        """
        outputs = compute_outputs(recipe.wrap(network), self.data)
        others = None
        if self.chosen:
            prepared = recipe.prepare(self.chosen)
            # Keras numbers the layers of each network anew.
            names = zip(*(recipe.list_layers(x) for x in (recipe.prepare(self.network), prepared)), strict=True)
            same = [other for own, other in names if own in kept]
            others = compute_outputs(recipe.wrap(recipe.build(prepared, same)), self.data)
        computed = [*outputs, *(others or ())]
        is_finite = all(np.isfinite(array).all() for arrays in computed for array in arrays.values())
        fitted = self.fit(outputs, others) if is_finite else self.fitted  # nothing fits what will be refused
        refusals, facts = self.judge(outputs, others, fitted, self.must_prove(recipe))
        verdict = f"refused: {'; '.join(refusals)}" if refusals else "accepted"
        self.report(f"{name}: {verdict} ({describe(facts)})")
        return (None if refusals else Form(recipe.precision, network, fitted, facts)), refusals, facts

    def must_prove(self, recipe: Recipe) -> bool:
        """Returns whether a form is refused if the images are too few to show that it agrees: nobody asked for it."""
        return recipe.precision not in ("float32", self.serving.precision)

    def show_at_best(self) -> float:
        """Returns the share of new images that could be shown to get the network's answer, if all did."""
        return show_at_best(self._number_groups())

    def report(self, line: str) -> None:
        """Adds a line to ``tried``, and logs it."""
        self.tried.append(line)
        _log.info("%s", line)

    def _classify(self, outputs: Outputs, others: Outputs | None, fitted: Fitted) -> Parts:
        task = self.data.task.name
        parts = outputs.sample, (others or outputs).held_out
        return Parts(*(compute_classes(task, fitted.calibration, arrays["logits"]).numpy() for arrays in parts))

    def _measure_noise(self) -> float:
        """Returns a regression's root mean squared error; of images that it was trained on, if none are set aside."""
        if self.data.task.name != "regression":
            return 0.0
        values = self._classify(self.outputs, self.others, self.fitted)
        held_out = self.data.is_set_aside
        split = self.data.validation if held_out else draw_sample(self.data)
        errors = (values.held_out if held_out else values.sample) - _encode_targets(self.data, split)
        return float(np.sqrt(np.mean(np.square(errors))))

    def _list_thresholds(self) -> list[float]:
        is_needed = self.data.task.name == "multilabel"
        return list_thresholds(self.data.output_names, self.config.label_thresholds) if is_needed else []

    def _number_groups(self) -> Parts:
        """Returns the groups of the images that ``compute_outputs`` asks about."""
        sample, held_out = draw_sample(self.data), self.data.validation
        if sample.groups is None or held_out.groups is None:
            return Parts(np.arange(sample.count), -1 - np.arange(held_out.count))
        return Parts(sample.groups, held_out.groups)


def _encode_targets(data: TrainingData, split: LoadedSplit) -> np.ndarray:
    """Returns the targets of a split, float32 ``[n, k]``."""
    return np.asarray(data.task.encode(tf.constant(split.targets)))
