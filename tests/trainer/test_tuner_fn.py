"""The search, with trainings that only return a loss; a real one is in tests/e2e."""

import json
from types import SimpleNamespace

import pytest
import tensorflow as tf
from keras_tuner.errors import FatalError

from imagepipe.base.errors import TrainingError
from trainer import tuner_fn as tuner
from trainer.config import TrainerConfig, override_settings
from trainer.search_space import TunerConfig

CONFIG = TrainerConfig()
SPACE = {
    "learning_rate": {"min": 1e-4, "max": 1e-1, "log": True},
    "head_units": {"min": 8, "max": 64},
    "dropout": {"values": [0, 0.25, "5e-1"]},
    "unfreeze_after": {"values": ["mixed7", "mixed9"]},
    "augmentation.rotation": {"min": 0, "max": 20},
    "augmentation.horizontal_flip": {"values": [True, False]},
}


def settings(**changes) -> TunerConfig:
    return TunerConfig(**{"trials": 6, "space": SPACE} | changes)


def run_search(folder, train, tuner_settings=None, config=CONFIG):
    folder.mkdir(exist_ok=True)
    search = tuner.Search(tuner_settings or settings(), config, folder)
    search.search(train_trial=train)
    return search


@pytest.mark.parametrize("kind", ["random", "bayesian"])
def test_the_best_values_are_those_of_the_trial_with_the_minimum_loss(tmp_path, kind):
    tried = {}

    def train(values, _):
        loss = abs(values["dropout"] - 0.25) + values["learning_rate"]
        tried[loss] = values
        return loss

    small = {key: SPACE[key] for key in ("learning_rate", "dropout")}
    search = run_search(tmp_path / "state", train, settings(search=kind, trials=8, space=small))
    (best,) = search.get_best_hyperparameters()
    assert len(tried) == 8
    assert best.get_config()["values"] == tried[min(tried)]
    search.results_summary()  # as TFX calls it at the end
    assert not (tmp_path / "state").exists()


def test_each_trial_has_values_of_the_space_which_make_a_configuration(tmp_path):
    configs = []
    run_search(tmp_path / "state", lambda values, _: configs.append(override_settings(CONFIG, values)) or 1.0)
    assert len({str(config) for config in configs}) == 6
    for config in configs:
        assert 1e-4 <= config.learning_rate <= 1e-1
        assert config.head_units in range(8, 65)
        assert config.dropout in (0, 0.25, 0.5)
        assert config.unfreeze_after in ("mixed7", "mixed9")
        assert 0 <= config.augmentation.rotation <= 20
        assert isinstance(config.augmentation.horizontal_flip, bool)
        assert config.augmentation.zoom == CONFIG.augmentation.zoom
        assert config.batch_size == CONFIG.batch_size


def test_the_same_seed_tries_the_same_values(tmp_path):
    tried = []
    for name in ("a", "b"):
        run_search(tmp_path / name, lambda values, _: tried.append(json.dumps(values)) or 1.0)
    assert tried[:6] == tried[6:]


def test_seeds_0_and_1_try_other_values(tmp_path):
    tried = []
    for seed in (0, 1):
        config = TrainerConfig(seed=seed)
        run_search(tmp_path / str(seed), lambda values, _: tried.append(json.dumps(values)) or 1.0, config=config)
    assert len(set(tried)) == 12


def test_the_highest_seed_is_one_of_a_search_too(tmp_path):
    tried = []
    config = TrainerConfig(seed=2**32 - 1)
    run_search(
        tmp_path, lambda values, _: tried.append(values) or 1.0, settings(search="bayesian", trials=4), config=config
    )
    assert len(tried) == 4


def test_a_trial_that_can_not_be_trained_is_ignored(tmp_path):
    folders = []

    def train(values, folder):
        assert not list(folder.iterdir())  # every trial has a fresh one
        (folder / "state").write_text("")
        folders.append(folder)
        if len(folders) != 4:
            raise TrainingError("the loss is no number any more")
        return 7.0

    search = run_search(tmp_path / "state", train)
    assert len(set(folders)) == 6
    assert [trial.score for trial in search.oracle.get_best_trials()] == [7.0]


def test_a_search_without_any_result_is_an_error(tmp_path):
    def train(values, _):
        raise TrainingError("the loss is no number any more")

    with pytest.raises(TrainingError, match=r"tuner\.space: none of 6 trials could be trained"):
        run_search(tmp_path / "state", train)


def test_an_error_that_no_other_values_would_fix_ends_the_search(tmp_path):
    def train(values, _):
        raise ValueError("trainer.unfreeze_after: there is no such layer")

    with pytest.raises(FatalError, match=r"trainer\.unfreeze_after: there is no such layer"):
        run_search(tmp_path / "state", train)


def test_a_killed_search_resumes_with_its_trials_and_the_state_of_the_interrupted_one(tmp_path):
    tried = []

    def train(values, folder):
        tried.append(dict(values))
        if len(tried) == 3:
            (folder / "epoch").write_text("2")
            raise SystemExit(143)
        if len(tried) == 4:
            assert (folder / "epoch").read_text() == "2"
        return float(len(tried))

    with pytest.raises(SystemExit):
        run_search(tmp_path / "state", train)
    search = run_search(tmp_path / "state", train)
    assert len(tried) == 7
    assert tried[3] == tried[2]
    (best,) = search.oracle.get_best_trials()
    assert (best.score, best.hyperparameters.values) == (1.0, tried[0])


@pytest.mark.parametrize("name", ["oracle.json", "tuner0.json", "trial_1/trial.json"])
@pytest.mark.parametrize("share", [0, 0.5])
def test_a_search_whose_trials_were_half_written_when_it_was_killed_starts_over(tmp_path, caplog, name, share):
    def stop_in_third(values, folder):
        if "2" in folder.parent.name:
            raise SystemExit(143)
        return 1.0

    with pytest.raises(SystemExit):
        run_search(tmp_path / "state", stop_in_third)
    (file,) = (tmp_path / "state").rglob(name)
    content = file.read_bytes()
    file.write_bytes(content[: int(share * len(content))])
    tried = []
    search = run_search(tmp_path / "state", lambda values, _: tried.append(values) or float(len(tried)))
    assert len(tried) == 6
    assert "the search starts over" in caplog.text
    assert [trial.score for trial in search.oracle.get_best_trials()] == [1.0]


def test_all_trials_share_the_data_and_have_the_epochs_of_the_tuner(tmp_path, monkeypatch):
    loaded, trained = [], []

    def train(data, config, folder, strategy):
        trained.append((data, config.epochs))
        return SimpleNamespace(history=[{"val_loss": loss, "kept": loss < 3} for loss in (2.0, 1.0, 3.0)])

    monkeypatch.setattr(tuner, "set_up_process", lambda distribution: tf.distribute.get_strategy())
    monkeypatch.setattr(tuner, "make_state_folder", lambda fn_args, module: tmp_path / "state")
    monkeypatch.setattr(tuner, "load_data", lambda *_: loaded.append("data") or "data")
    monkeypatch.setattr(tuner, "train", train)
    (tmp_path / "state").mkdir()
    custom = {"tuner": settings(epochs=3).model_dump(), "trainer": CONFIG.model_dump()}
    search, keywords = tuner.tuner_fn(SimpleNamespace(custom_config=custom))
    search.search(**keywords)
    assert len(loaded) == 1
    assert trained == [("data", 3)] * 6
    assert search.oracle.get_best_trials()[0].score == 1.0
