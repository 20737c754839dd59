"""The ``tuner_fn`` that TFX's Tuner calls: a search for the settings that the Trainer then takes."""

import logging
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import keras_tuner
from keras_tuner.engine.base_tuner import BaseTuner
from keras_tuner.engine.trial import Trial
from keras_tuner.errors import FailedTrialError, FatalError

# All that its caller, in the same package, has imported already; tfx.v1 would bring in the orchestrators as well.
from tfx.components.tuner.component import TunerFnResult

from imagepipe.base.errors import TrainingError
from trainer import devices, space, training
from trainer.config import TrainerConfig
from trainer.space import SpanConfig, TunerConfig, Value
from trainer.training import FnArgs

_ORACLES = {
    "random": keras_tuner.oracles.RandomSearchOracle,
    "bayesian": keras_tuner.oracles.BayesianOptimizationOracle,
}

_log = logging.getLogger("trainer")

Train = Callable[[Mapping[str, Value], Path], float]


def tuner_fn(fn_args: FnArgs) -> TunerFnResult:
    """Prepares a search; the data is loaded once for all its trials.

    Args:
        fn_args: as for ``trainer.run.run_fn``, without what that writes; ``custom_config`` has ``tuner`` as well.

    Returns:
        The search, and what its ``run_trial`` takes.

    Raises:
        TrainingError: if there is nothing to learn, or the search would run on several workers.
    """
    custom = fn_args.custom_config
    settings = TunerConfig(**custom["tuner"])
    config = TrainerConfig(**custom["trainer"])
    config = config.model_copy(update={"epochs": settings.epochs or config.epochs})
    strategy = training.start(config)
    if devices.worker(strategy)[1] > 1:
        raise TrainingError("tuner: a search runs on one machine. Search there, and train on many without tuner.")
    state = training.state_folder(fn_args)
    data = training.load(fn_args, config, strategy, state)

    def train(values: Mapping[str, Value], folder: Path) -> float:
        history = training.train(data, space.with_values(config, values), folder, strategy).history
        return min(row["val_loss"] for row in history)

    # Not TFX's working_dir, which is another one each time: here, a search that was killed finds its trials again.
    return TunerFnResult(Search(settings, config, state), {"train": train})


class Search(BaseTuner):
    """A search for the least ``val_loss``.

    A trial that can't be trained (its loss is no number any more, memory doesn't suffice) counts as none; any other
    error ends the search.

    Args:
        settings: what is searched, and how.
        config: what the trials have in common.
        folder: an existing local folder, for the state; a search that was killed goes on from what it finds there.
            Removed at the end.
    """

    def __init__(self, settings: TunerConfig, config: TrainerConfig, folder: Path):
        oracle = _ORACLES[settings.search](
            objective=keras_tuner.Objective("val_loss", "min"),
            max_trials=settings.trials,
            seed=config.seed + 1,  # of 0, keras-tuner makes a random one
            hyperparameters=hyperparameters(settings.space, config),
            max_consecutive_failed_trials=settings.trials + 1,  # all of them may fail, see on_search_end
        )
        oracle.verbose = 0
        super().__init__(oracle, directory=str(folder), project_name="search")

    def run_trial(self, trial: Trial, train: Train) -> float:
        """Trains with a trial's values, and returns its least ``val_loss``.

        Args:
            trial: the trial.
            train: trains, given the values by dotted key and an existing local folder for the state.
        """
        folder = Path(self.get_trial_dir(trial.trial_id)) / "state"
        folder.mkdir(exist_ok=True)
        values = trial.hyperparameters.values
        _log.info("trial %s: %s", trial.trial_id, _listed(values))
        try:
            loss = train(values, folder)
        except TrainingError as error:
            _log.warning("trial %s failed: %s", trial.trial_id, error)
            shutil.rmtree(folder)
            raise FailedTrialError(str(error)) from error
        except Exception as error:  # which keras-tuner would only note down
            raise FatalError(str(error)) from error
        _log.info("trial %s: val_loss %.4g", trial.trial_id, loss)
        shutil.rmtree(folder)
        return loss

    def on_search_end(self) -> None:
        """Removes the state, and looks whether there is a best trial."""
        shutil.rmtree(self.directory)
        trials = self.oracle.trials.values()
        if not any(trial.status == "COMPLETED" for trial in trials):
            raise TrainingError(
                f"tuner.space: none of {len(trials)} trials could be trained; the log has the reason of each. "
                "Give a space with lower learning rates, or smaller batches."
            )

    def results_summary(self, num_trials: int = 10) -> None:
        """Says what is best. TFX calls it; keras-tuner's own would make the folder again."""
        (best,) = self.oracle.get_best_trials(1)
        _log.info(
            "best is trial %s, val_loss %.4g: %s", best.trial_id, best.score, _listed(best.hyperparameters.values)
        )


def hyperparameters(spans: Mapping[str, SpanConfig], config: TrainerConfig) -> keras_tuner.HyperParameters:
    """A space as keras-tuner has it."""
    made = keras_tuner.HyperParameters()
    for key, span in spans.items():
        ends = space.ends(span, key, config)
        if span.values:
            made.Choice(key, ends)
        else:
            add = made.Int if isinstance(ends[0], int) else made.Float
            add(key, *ends, sampling="log" if span.log else "linear")
    return made


def _listed(values: Mapping[str, Value]) -> str:
    return ", ".join(
        f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}" for key, value in values.items()
    )
