"""The ``tuner_fn`` that TFX's Tuner calls: a search for the settings that the Trainer then uses."""

import logging
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import keras_tuner
from keras_tuner.engine.base_tuner import BaseTuner
from keras_tuner.engine.trial import Trial
from keras_tuner.errors import FailedTrialError, FatalError

# Its caller, in the same package, has imported this already; tfx.v1 would bring in the orchestrators as well.
from tfx.components.tuner.component import TunerFnResult

from imagepipe.base.errors import TrainingError
from trainer.checkpoint import make_state_folder
from trainer.config import FnArgs, TrainerConfig, override_settings
from trainer.data import load_data
from trainer.devices import set_up_process
from trainer.run_fn import train
from trainer.schedule import find_best
from trainer.search_space import SpanConfig, TunerConfig, Value, parse_span

_ORACLES = {
    "random": keras_tuner.oracles.RandomSearchOracle,
    "bayesian": keras_tuner.oracles.BayesianOptimizationOracle,
}

_log = logging.getLogger("trainer")

TrainTrial = Callable[[Mapping[str, Value], Path], float]


def tuner_fn(fn_args: FnArgs) -> TunerFnResult:
    """Prepares a search; the data is loaded once for all trials.

    Args:
        fn_args: as for ``trainer.run_fn.run_fn``, without its outputs; ``custom_config`` has ``tuner`` as well.

    Returns:
        The search, and the arguments of its ``run_trial``.

    Raises:
        TrainingError: if there is nothing to learn.
    """
    custom = fn_args.custom_config
    settings = TunerConfig(**custom["tuner"])
    config = TrainerConfig(**custom["trainer"])
    config = config.model_copy(update={"epochs": settings.epochs or config.epochs, "refit": False})
    strategy = set_up_process(config.distribution)
    state_folder = make_state_folder(fn_args, __name__)
    data = load_data(fn_args, config, state_folder.parent)

    def train_trial(values: Mapping[str, Value], folder: Path) -> float:
        history = train(data, override_settings(config, values), folder, strategy).history
        return find_best(history)["val_loss"]

    # Not in TFX's working_dir, which differs from run to run: here, a search that was killed finds its trials again.
    return TunerFnResult(Search(settings, config, state_folder), {"train_trial": train_trial})


class Search(BaseTuner):
    """A search for the lowest ``val_loss`` of a best epoch.

    A trial that can't be trained (its loss is no longer finite, memory doesn't suffice) is ignored; any other error
    ends the search.

    Args:
        settings: what is searched, and how.
        config: the settings that all trials share.
        folder: an existing local folder for the state; a search that was killed resumes from it, or starts over if it
            is damaged. Removed at the end.
    """

    def __init__(self, settings: TunerConfig, config: TrainerConfig, folder: Path):
        def prepare(overwrite: bool) -> None:
            oracle = _ORACLES[settings.search](
                objective=keras_tuner.Objective("val_loss", "min"),
                max_trials=settings.trials,
                seed=config.seed or 2**31,  # keras-tuner replaces 0 by a random seed; 1 is another one of the user's
                hyperparameters=make_hyperparameters(settings.space, config),
                max_consecutive_failed_trials=settings.trials + 1,  # all of them may fail, see on_search_end
            )
            oracle.verbose = 0
            super(Search, self).__init__(oracle, directory=str(folder), project_name="search", overwrite=overwrite)

        try:
            prepare(overwrite=False)
        except (OSError, MemoryError):  # a disk that fails for a while must not cost the trials
            raise
        except Exception as error:  # keras-tuner writes its files in place: a kill may leave half of one
            _log.warning(
                "the trials in %s can't be used (%s: %s): the search starts over", folder, type(error).__name__, error
            )
            prepare(overwrite=True)

    def run_trial(self, trial: Trial, train_trial: TrainTrial) -> float:
        """Trains with a trial's values, and returns the ``val_loss`` of its best epoch.

        Args:
            trial: the trial.
            train_trial: trains, given the values by dotted key and an existing local folder for the state.
        """
        folder = Path(self.get_trial_dir(trial.trial_id)) / "state"
        folder.mkdir(exist_ok=True)
        values = trial.hyperparameters.values
        _log.info("trial %s: %s", trial.trial_id, _format_values(values))
        try:
            loss = train_trial(values, folder)
        except TrainingError as error:
            _log.warning("trial %s failed: %s", trial.trial_id, error)
            shutil.rmtree(folder)
            raise FailedTrialError(str(error)) from error
        except Exception as error:  # which keras-tuner would only log
            raise FatalError(str(error)) from error
        _log.info("trial %s: val_loss %.4g", trial.trial_id, loss)
        shutil.rmtree(folder)
        return loss

    def on_search_end(self) -> None:
        """Removes the state, and checks that there is a best trial."""
        shutil.rmtree(self.directory)
        trials = self.oracle.trials.values()
        if not any(trial.status == "COMPLETED" for trial in trials):
            raise TrainingError(
                f"tuner.space: none of {len(trials)} trials could be trained; the log has the reason of each. "
                "Give a space with lower learning rates, or smaller batches."
            )

    def results_summary(self, num_trials: int = 10) -> None:
        """Logs the best trial. TFX calls it; keras-tuner's own would create the folder again."""
        (best,) = self.oracle.get_best_trials(1)
        _log.info(
            "best is trial %s, val_loss %.4g: %s",
            best.trial_id,
            best.score,
            _format_values(best.hyperparameters.values),
        )


def make_hyperparameters(spans: Mapping[str, SpanConfig], config: TrainerConfig) -> keras_tuner.HyperParameters:
    """Returns a search space in keras-tuner's form."""
    hyperparameters = keras_tuner.HyperParameters()
    for key, span in spans.items():
        limits = parse_span(span, key, config)
        if span.values:
            hyperparameters.Choice(key, limits)
        else:
            add_range = hyperparameters.Int if isinstance(limits[0], int) else hyperparameters.Float
            add_range(key, *limits, sampling="log" if span.log else "linear")
    return hyperparameters


def _format_values(values: Mapping[str, Value]) -> str:
    return ", ".join(
        f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}" for key, value in values.items()
    )
