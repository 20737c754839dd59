"""Optimizers and their learning rates over time."""

from typing import Any

import keras
from keras import ops

from trainer.config import TrainerConfig

_STEPS_DOWN = {0.5: 0.1, 0.75: 0.01}  # He et al. 2015 (ResNet) divide by 10 at a half and at three quarters


@keras.saving.register_keras_serializable("imagepipe")
class Warmup(keras.optimizers.schedules.LearningRateSchedule):
    """Rises linearly over the first steps to what another schedule says there, and follows it from then on."""

    def __init__(self, schedule: keras.optimizers.schedules.LearningRateSchedule, steps: int):
        super().__init__()
        self._schedule = schedule
        self._steps = steps

    def __call__(self, step: Any) -> Any:
        """The rate at a step, a scalar tensor or number."""
        share = ops.minimum(1.0, (ops.cast(step, "float32") + 1) / self._steps)
        return share * self._schedule(step)

    def get_config(self) -> dict:
        """What Keras saves."""
        return {"schedule": keras.saving.serialize_keras_object(self._schedule), "steps": self._steps}


def learning_rate(config: TrainerConfig, peak: float, epochs: int, steps_per_epoch: int) -> Warmup:
    """The learning rate of a phase, by step.

    Args:
        config: ``schedule`` and ``warmup_epochs``.
        peak: the highest rate.
        epochs: of the phase, if nothing stops it early.
        steps_per_epoch: number of batches in an epoch.
    """
    steps = epochs * steps_per_epoch
    match config.schedule:
        case "cosine":
            schedule = keras.optimizers.schedules.CosineDecay(peak, steps)
        case "step":
            boundaries = [max(1, round(share * steps)) for share in _STEPS_DOWN]
            rates = [peak, *(peak * factor for factor in _STEPS_DOWN.values())]
            schedule = keras.optimizers.schedules.PiecewiseConstantDecay(boundaries, rates)
        case "constant":
            schedule = keras.optimizers.schedules.PiecewiseConstantDecay([steps], [peak, peak])
    return Warmup(schedule, max(1, round(min(config.warmup_epochs, epochs / 2) * steps_per_epoch)))


def optimizer(
    config: TrainerConfig, rate: keras.optimizers.schedules.LearningRateSchedule, model: keras.Model
) -> keras.optimizers.Optimizer:
    """Makes the optimizer for the trainable weights of a model, in the scope of the strategy that trains it.

    Weight decay spares biases and the scales and offsets of normalization: all that has one dimension.
    """
    common = {
        "learning_rate": rate,
        "weight_decay": config.weight_decay or None,
        "global_clipnorm": config.clip_norm,
        "use_ema": config.ema is not None,
        "ema_momentum": config.ema or 0.99,
    }
    match config.optimizer:
        case "adam":
            made = keras.optimizers.Adam(**common)
        case "adamw":
            made = keras.optimizers.AdamW(**{**common, "weight_decay": config.weight_decay})
        case "sgd":
            made = keras.optimizers.SGD(momentum=config.momentum, nesterov=True, **common)
    if config.weight_decay:
        made.exclude_from_weight_decay([v for v in model.trainable_variables if len(v.shape) < 2])
    if model.dtype_policy.name == "mixed_float16":
        made = keras.optimizers.LossScaleOptimizer(made)
    made.build(model.trainable_variables)
    return made
