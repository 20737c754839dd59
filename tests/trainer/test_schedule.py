"""The schedule, on a network small enough for seconds; the real one is in tests/e2e."""

import json
import os
import signal
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import keras
import numpy as np
import pytest
import tensorflow as tf

from imagepipe.base.errors import TrainingError
from imagepipe.base.features import IMAGE
from imagepipe.base.signals import Stopped, end_on_signals
from trainer import frozen, schedule, transfer
from trainer.checkpoint import STATE, Progress
from trainer.config import AugmentationConfig, TrainerConfig
from trainer.frozen import keep_outputs, remove_kept
from trainer.inputs import ArrayFile, LoadedSplit, make_batches
from trainer.network import Network, join_parts
from trainer.phase import Chosen
from trainer.schedule import count_chosen, find_best, is_better, run_schedule
from trainer.steps import ProgressLog
from trainer.tasks import Task, make_classification, make_regression, measure_targets

OFF = AugmentationConfig(horizontal_flip=False, rotation=0, zoom=0, shift=0, brightness=0, contrast=0)
SCRATCH = {"weights": "none", "batch_size": 8, "learning_rate": 0.02, "patience": 99}
GIVEN = {"weights": "some.h5", "head_epochs": 2, "epochs": 3, "learning_rate": 0.05, "unfreeze_after": "middle"}
TASK = make_classification(2)
ONE_DEVICE = tf.distribute.get_strategy()


def make_network(
    config: TrainerConfig, dropout: float = 0.2, hidden: bool = False, lower_dropout: float = 0, outputs: int = 2
) -> Network:
    keras.utils.set_random_seed(3)
    base = keras.Sequential(
        [
            keras.Input((8, 8, 3)),
            keras.layers.Conv2D(4, 3, name="lower"),
            keras.layers.BatchNormalization(name="norm"),
            *([keras.layers.Dropout(lower_dropout)] if lower_dropout else []),
            keras.layers.ReLU(name="middle"),
            keras.layers.Conv2D(4, 3, name="upper"),
        ]
    )
    image = keras.Input((8, 8, 3), dtype="uint8", name=IMAGE)
    features = keras.Input((4,), name=IMAGE)
    x = keras.layers.Dense(4, name="hidden")(features) if hidden else features
    logits = keras.layers.Dense(outputs, name="logits")(keras.layers.Dropout(dropout)(x))
    outcome = keras.layers.Softmax()(logits) if outputs > 1 else keras.layers.Identity()(logits)
    head = keras.Model({IMAGE: features}, outcome)
    scaling = keras.Model(image, keras.layers.Rescaling(1 / 255)(image))
    return join_parts(scaling, base, keras.layers.GlobalAveragePooling2D(), head)


def make_split(folder: Path, count: int = 60, turned: bool = False) -> LoadedSplit:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, count)
    pixels = (rng.integers(0, 100, (count, 8, 8, 3)) + 100 * labels[:, None, None, None]).astype(np.uint8)
    path = folder / f"pixels-{count}-{turned}"
    path.write_bytes(pixels.tobytes())
    targets = (1 - labels if turned else labels).astype(np.int32)
    return LoadedSplit(ArrayFile(path, (8, 8, 3), np.dtype(np.uint8)), {}, targets, TASK)


@pytest.fixture
def split(tmp_path):
    return make_split(tmp_path)


def train(split, config, folder, evaluation=None, task=TASK, network=None):
    folder.mkdir(exist_ok=True)
    network = network or make_network(config)
    return network, run_schedule(network, task, split, evaluation or split, config, folder, ONE_DEVICE)


def copy_weights(base: keras.Model) -> dict[str, np.ndarray]:
    return {layer.name: layer.get_weights()[0] for layer in base.layers if layer.get_weights()}


@pytest.mark.parametrize("augmentation", [OFF, AugmentationConfig()], ids=["on cached features", "augmented"])
def test_with_weights_the_head_comes_first_and_then_only_the_blocks_above_the_named_one(
    split, tmp_path, monkeypatch, augmentation
):
    config = TrainerConfig(**GIVEN, augmentation=augmentation)
    network = make_network(config)
    initial = copy_weights(network.base)
    at_unfreezing = {}
    original = transfer.unfreeze_after

    def spy(base, name):
        at_unfreezing.update(copy_weights(base))
        original(base, name)

    monkeypatch.setattr(transfer, "unfreeze_after", spy)
    monkeypatch.setattr(transfer, "start_from_probe", lambda *arguments: None)  # which leaves nothing to learn here
    _, history = train(split, config, tmp_path / "state", network=network)

    assert [row["phase"] for row in history] == ["head"] * 2 + ["upper blocks"] * 3
    assert all(np.array_equal(initial[name], at_unfreezing[name]) for name in initial)
    final = copy_weights(network.base)
    assert np.array_equal(initial["lower"], final["lower"])
    assert not np.array_equal(initial["upper"], final["upper"])


def test_from_scratch_everything_is_trained_and_it_learns(split, tmp_path):
    config = TrainerConfig(**SCRATCH, epochs=8, augmentation=OFF)
    network = make_network(config)
    initial = copy_weights(network.base)
    _, history = train(split, config, tmp_path / "state", network=network)
    assert not any(np.array_equal(initial[name], now) for name, now in copy_weights(network.base).items())
    assert [row["epoch"] for row in history] == list(range(1, 9))
    assert max(row["val_accuracy"] for row in history) > 0.9
    assert all(0 <= row["input_wait"] <= 1 and row["images_per_second"] > 0 for row in history)


def test_the_best_epoch_is_kept_and_training_stops_when_nothing_improves(split, tmp_path):
    # Labels turned round: each step towards the training data is one away from the eval data.
    worse = make_split(tmp_path, turned=True)
    config = TrainerConfig(**{**SCRATCH, "patience": 3}, epochs=30, augmentation=OFF)
    network, history = train(split, config, tmp_path / "state", worse)
    assert len(history) < 30
    best = min(row["val_loss"] for row in history)
    x, y = make_batches(worse, 60).get_single_element()
    assert float(tf.reduce_mean(TASK.loss(y, network.model(x)))) == pytest.approx(best, rel=1e-4)


def test_an_epoch_is_better_only_by_more_than_the_images_differences_vary_by_chance():
    rng = np.random.default_rng(0)
    reference = rng.exponential(1, 400).astype(np.float32)
    noise = rng.normal(0, 0.1, 400).astype(np.float32)
    noise -= noise.mean()
    assert is_better(reference - 0.01 + noise, reference)  # the losses themselves vary by 1
    assert not is_better(reference - 0.004 + noise, reference)
    assert not is_better(reference, reference)
    assert not is_better(reference + 1, reference)
    assert is_better(np.zeros(1, np.float32), np.ones(1, np.float32))


def test_gains_within_chance_do_not_keep_a_training_going(split, tmp_path, monkeypatch):
    monkeypatch.setattr(schedule, "is_better", lambda losses, reference: False)
    config = TrainerConfig(**{**SCRATCH, "patience": 2}, epochs=9, augmentation=OFF)
    network, history = train(split, config, tmp_path / "state")
    losses = [row["val_loss"] for row in history]
    assert len(losses) == 3
    x, y = make_batches(split, 60).get_single_element()
    assert float(tf.reduce_mean(TASK.loss(y, network.model(x)))) == pytest.approx(losses[-1], rel=1e-4)


def test_a_later_epoch_is_kept_unless_it_is_worse_than_the_best_one_by_more_than_chance(split, tmp_path, monkeypatch):
    worse = make_split(tmp_path, turned=True)
    config = TrainerConfig(**SCRATCH, epochs=3, augmentation=OFF)
    x, y = make_batches(worse, 60).get_single_element()
    for name, by_chance in {"by chance": True, "for good": False}.items():
        if by_chance:
            monkeypatch.setattr(schedule, "is_better", lambda losses, reference: False)
        network, history = train(split, config, tmp_path / name, worse)
        assert history[2]["val_loss"] > history[0]["val_loss"]
        assert [row["kept"] for row in history] == ([True] * 3 if by_chance else [True, False, False])
        kept = find_best(history)["val_loss"]
        assert float(tf.reduce_mean(TASK.loss(y, network.model(x)))) == pytest.approx(kept, rel=1e-4)
        monkeypatch.undo()


def test_the_epochs_of_a_refit_are_those_that_led_to_the_weights_that_were_kept():
    def list_rows(head, upper):
        return [{"phase": "head", "kept": kept} for kept in head] + [{"phase": "upper", "kept": kept} for kept in upper]

    assert count_chosen(list_rows([True, True, False], [True, True, False])) == {"head": 2, "upper": 2}
    assert count_chosen(list_rows([True, True, False], [False, False])) == {"head": 2, "upper": 0}


@pytest.mark.parametrize("head", ["at random", "from a probe"])
def test_numbers_are_learned_alike_in_any_unit(tmp_path, head):
    options = {**SCRATCH, "epochs": 3} if head == "at random" else GIVEN
    config = TrainerConfig(**options, augmentation=OFF)
    pixels = make_split(tmp_path)
    brightness = pixels.images.read(np.arange(pixels.count)).mean(axis=(1, 2, 3))

    def learn(unit: float, offset: float) -> tuple[np.ndarray, float, float]:
        targets = (brightness * unit + offset).astype(np.float32)[:, None]
        task = measure_targets(make_regression("mean_squared_error"), targets)
        split = replace(pixels, targets=targets, task=task)
        network = make_network(config, dropout=0, hidden=head == "at random", outputs=1)
        for _ in ("trains", "had ended"):
            network, history = train(split, config, tmp_path / f"{unit}", task=task, network=network)
        values = network.model.predict(make_batches(split, 60), verbose=0)
        best = find_best(history)
        assert np.abs(values - targets).mean() == pytest.approx(best["val_mean_absolute_error"], rel=1e-3)
        return (values - offset) / unit, best["val_mean_absolute_error"] / unit, best["val_loss"]

    values, error, loss = learn(1.0, 0.0)
    for unit, offset in ((3e3, 1e5), (1e-6, 0.0)):
        scaled = learn(unit, offset)
        np.testing.assert_allclose(scaled[0], values, atol=0.2)
        assert scaled[1:] == (pytest.approx(error, rel=0.02), pytest.approx(loss, rel=0.02))


def test_a_training_of_chosen_epochs_ends_with_its_last_weights_whatever_validation_says(split, tmp_path):
    turned = make_split(tmp_path, turned=True)
    config = TrainerConfig(**{**SCRATCH, "patience": 1}, epochs=9, augmentation=OFF)
    network = make_network(config)
    (tmp_path / "state").mkdir()
    chosen = Chosen({"all": 4}, split.count)
    history = run_schedule(network, TASK, split, turned, config, tmp_path / "state", ONE_DEVICE, chosen=chosen)
    assert len(history) == 4
    x, y = make_batches(turned, 60).get_single_element()
    assert float(tf.reduce_mean(TASK.loss(y, network.model(x)))) == pytest.approx(history[-1]["val_loss"], rel=1e-4)
    assert min(row["val_loss"] for row in history) < history[-1]["val_loss"]


def test_a_training_on_more_images_takes_as_many_steps_at_the_same_rates_as_the_one_that_chose(split, tmp_path):
    config = TrainerConfig(**SCRATCH, epochs=3, augmentation=OFF)
    _, history = train(split, config, tmp_path / "chose")
    more, folder = make_split(tmp_path, count=100), tmp_path / "more"
    folder.mkdir()
    chosen = Chosen({"all": 3}, split.count)
    longer = run_schedule(make_network(config), TASK, more, split, config, folder, ONE_DEVICE, chosen=chosen)
    assert [row["learning_rate"] for row in longer] == [row["learning_rate"] for row in history]


def test_a_training_that_has_ended_is_restored_without_computing_anything_again(split, tmp_path, monkeypatch):
    config = TrainerConfig(**GIVEN, augmentation=OFF)
    network, history = train(split, config, tmp_path / "state")
    remove_kept(tmp_path / "state")
    monkeypatch.setattr(transfer, "keep_what_fits", lambda *arguments: pytest.fail("computed again"))
    monkeypatch.setattr(frozen.shutil, "disk_usage", lambda path: SimpleNamespace(free=1))
    # Settings that only the export reads may have changed, as after an export that was refused.
    config = config.model_copy(update={"calibration": "none", "label_thresholds": {"a": 0.3}})
    restored, same = train(split, config, tmp_path / "state")
    assert same == history
    for one, other in zip(network.model.get_weights(), restored.model.get_weights(), strict=True):
        assert np.array_equal(one, other)


SLOW = pytest.mark.slow
CONFIGS = {
    "from scratch": TrainerConfig(**SCRATCH, epochs=6),
    "averaged weights": TrainerConfig(**SCRATCH, epochs=6, ema=0.9, optimizer="sgd"),
    "with weights": TrainerConfig(**{**GIVEN, "epochs": 4}),
    "in whole": TrainerConfig(**{**GIVEN, "epochs": 4, "views": 0}),
    "on cached features": TrainerConfig(**{**GIVEN, "head_epochs": 4, "epochs": 2}, augmentation=OFF),
}


class Killed(BaseException):
    """Stands for SIGKILL: nothing is caught, nothing is saved any more."""


@pytest.mark.parametrize(
    "config",
    [pytest.param(config, id=name, marks=() if name == "with weights" else SLOW) for name, config in CONFIGS.items()],
)
def test_a_training_killed_in_its_third_epoch_resumes_there_and_ends_with_the_very_same_weights(
    split, tmp_path, monkeypatch, config
):
    undisturbed, expected = train(split, config, tmp_path / "undisturbed")

    epochs = []
    original = ProgressLog.log_step

    def killed(self, clock):
        original(self, clock)
        epochs.append(self._label)
        if len(set(epochs)) == 3:
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(ProgressLog, "log_step", killed)
        with pytest.raises(Killed):
            train(split, config, tmp_path / "killed")
    saved = read_progress(tmp_path / "killed").history
    assert len(saved) == 2

    resumed, history = train(split, config, tmp_path / "killed")
    assert history[:2] == saved
    assert_same((resumed, history), (undisturbed, expected))


@pytest.mark.parametrize(
    ("room", "room_later", "epoch"),
    [(10**9, 1, 2), (10**9, 1, 4), (1, 10**9, 4)],
    ids=["filled in the head's phase", "filled later", "more room, as advised"],
)
def test_a_training_continues_whatever_room_the_disk_has_by_then(
    split, tmp_path, monkeypatch, caplog, room, room_later, epoch
):
    def kill(row):
        if row["epoch"] == epoch:
            raise Killed

    config, folder = TrainerConfig(**GIVEN), tmp_path / "state"
    folder.mkdir()
    monkeypatch.setattr(frozen.shutil, "disk_usage", lambda path: SimpleNamespace(free=room))
    with pytest.raises(Killed):
        run_schedule(make_network(config), TASK, split, split, config, folder, ONE_DEVICE, on_epoch=kill)
    saved = read_progress(folder).history
    monkeypatch.setattr(frozen.shutil, "disk_usage", lambda path: SimpleNamespace(free=room_later))
    _, history = train(split, config, folder)
    assert (len(saved), len(history), history[: epoch - 1]) == (epoch - 1, 5, saved)
    assert "starts over" not in caplog.text


TIMINGS = ("images_per_second", "input_wait")


def read_progress(folder: Path) -> Progress:
    with np.load(folder / STATE) as stored:
        return Progress(**json.loads(str(stored["progress"])))


def assert_same(result: tuple[Network, list[dict]], expected: tuple[Network, list[dict]]) -> None:
    figures = [[{k: v for k, v in row.items() if k not in TIMINGS} for row in rows] for _, rows in (result, expected)]
    assert figures[0] == figures[1]
    for ours, theirs in zip(result[0].model.get_weights(), expected[0].model.get_weights(), strict=True):
        assert np.array_equal(ours, theirs)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """Returns a function that trains with a configuration, once for all tests of this module."""
    results = {}

    def train_once(name: str):
        if name not in results:
            folder = tmp_path_factory.mktemp("undisturbed")
            results[name] = train(make_split(folder), CONFIGS[name], folder / "state")
        return results[name]

    return train_once


MOMENTS = {  # configuration, kind of step, number of those taken: finished epochs, steps of the next one
    "in the last step of a phase": ("with weights", "train", 2 * 2, 1, 2),
    "in the last evaluation of a phase": ("with weights", "eval", 2 * 2, 1, 2),
    "in the middle of an epoch": ("from scratch", "train", 8 + 3, 1, 3),
    "in the last step of an epoch": ("from scratch", "train", 2 * 8, 1, 8),
    "in an evaluation": ("from scratch", "eval", 8 + 2, 1, 8),
    "in an evaluation of averaged weights": ("averaged weights", "eval", 8 + 2, 1, 8),
    "in the last evaluation of the training": ("with weights", "eval", 6 * 2, 5, 2),
    "on cached features": ("on cached features", "eval", 4 * 2 - 1, 3, 2),
}


def choose_marks(moment: str, number: signal.Signals) -> list[pytest.MarkDecorator]:
    """Of SIGINT, which takes the way of SIGTERM, one moment is enough for the gate."""
    if number == signal.SIGINT and moment != "in the middle of an epoch":
        return [pytest.mark.long]
    return [] if moment.endswith("phase") else [SLOW]


@pytest.mark.parametrize(
    ("moment", "number"),
    [
        pytest.param(moment, number, id=f"{moment}, {number.name}", marks=choose_marks(moment, number))
        for number in (signal.SIGTERM, signal.SIGINT)
        for moment in MOMENTS
    ],
)
def test_a_signal_ends_the_training_at_once_and_the_next_one_resumes_there_with_the_very_same_result(
    split, tmp_path, monkeypatch, undisturbed, moment, number
):
    name, kind, count, epochs, step = MOMENTS[moment]
    taken = []

    def disturb(make):
        def make_disturbed(*arguments):
            original = make(*arguments)

            def disturbed(batch):
                result = original(batch)
                taken.append(kind)
                if len(taken) == count:
                    os.kill(os.getpid(), number)
                return result

            disturbed.get_concrete_function = original.get_concrete_function
            return disturbed

        return make_disturbed

    with monkeypatch.context() as patch:
        patch.setattr(schedule, f"make_{kind}_step", disturb(getattr(schedule, f"make_{kind}_step")))
        with pytest.raises(Stopped), end_on_signals():
            train(split, CONFIGS[name], tmp_path / "state")
    assert len(taken) == count
    progress = read_progress(tmp_path / "state")
    assert (len(progress.history), progress.step) == (epochs, step)
    assert_same(train(split, CONFIGS[name], tmp_path / "state"), undisturbed(name))


@pytest.mark.slow
def test_a_signal_while_outputs_of_frozen_layers_are_kept_ends_the_training(split, tmp_path, monkeypatch, undisturbed):
    def cache(*arguments):
        os.kill(os.getpid(), signal.SIGTERM)
        return keep_outputs(*arguments)

    name = "on cached features"
    with monkeypatch.context() as patch:
        patch.setattr(frozen, "keep_outputs", cache)
        with pytest.raises(Stopped), end_on_signals():
            train(split, CONFIGS[name], tmp_path / "state")
    assert not (tmp_path / "state" / STATE).exists()
    assert_same(train(split, CONFIGS[name], tmp_path / "state"), undisturbed(name))


@pytest.mark.slow
def test_where_the_application_has_a_handler_for_the_signal_that_one_decides(split, tmp_path, undisturbed):
    received = []
    previous = signal.signal(signal.SIGTERM, lambda number, _: received.append(number))
    steps = []

    def on_epoch(row):
        steps.append(row)
        os.kill(os.getpid(), signal.SIGTERM)

    config = CONFIGS["from scratch"]
    network = make_network(config)
    (tmp_path / "state").mkdir()
    try:
        history = run_schedule(network, TASK, split, split, config, tmp_path / "state", ONE_DEVICE, on_epoch=on_epoch)
    finally:
        signal.signal(signal.SIGTERM, previous)
    assert len(received) == len(steps) == 6
    assert_same((network, history), undisturbed("from scratch"))


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory):
    """The state of a training that stopped in the middle of its second phase."""
    folder = tmp_path_factory.mktemp("interrupted")

    def stop(row):
        if row["epoch"] == 4:
            os.kill(os.getpid(), signal.SIGTERM)

    config = CONFIGS["with weights"]
    split = make_split(folder)
    with pytest.raises(Stopped), end_on_signals():
        run_schedule(make_network(config), TASK, split, split, config, folder, ONE_DEVICE, on_epoch=stop)
    assert read_progress(folder).phase == 1
    return folder / STATE


@pytest.mark.slow
def test_a_state_that_does_not_fit_is_named_and_the_training_starts_over(
    split, tmp_path, caplog, interrupted, undisturbed
):
    """In the second phase, so that the network has been prepared for it already."""
    stored = dict(np.load(interrupted))
    last = [key for key in stored if key.startswith("best/")][-1]
    (tmp_path / "state").mkdir()
    np.savez(tmp_path / "state" / STATE, **stored | {last: np.zeros((5, 5), np.float32)})
    assert_same(train(split, CONFIGS["with weights"], tmp_path / "state"), undisturbed("with weights"))
    assert "arrays of best don't fit" in caplog.text
    assert "the training starts over" in caplog.text


def test_a_state_of_another_configuration_is_named_and_the_training_starts_over(split, tmp_path, caplog, interrupted):
    config = CONFIGS["with weights"].model_copy(update={"dropout": 0.3, "epochs": 1, "head_epochs": 1})
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / STATE).write_bytes(interrupted.read_bytes())
    _, history = train(split, config, tmp_path / "state")
    assert len(history) == 2
    assert "it is of another training: configuration was" in caplog.text


def test_a_loss_that_is_not_finite_stops_training_and_says_what_to_do(split, tmp_path):
    broken = Task("classification", 2, "softmax", lambda y, p: TASK.loss(y, p) * np.nan, TASK.make_metrics)
    with pytest.raises(TrainingError, match=r"loss is nan in all, epoch 1 of 2.*trainer\.learning_rate"):
        train(split, TrainerConfig(**SCRATCH, epochs=2), tmp_path / "state", task=broken)


@pytest.mark.parametrize(("batch_size", "advice"), [(8, "Try 4"), (1, "smaller image.size")])
def test_out_of_memory_names_the_batch_size_and_a_smaller_one(split, tmp_path, monkeypatch, batch_size, advice):
    def full(*args):
        raise tf.errors.ResourceExhaustedError(None, None, "OOM when allocating tensor")

    monkeypatch.setattr(schedule, "run_pass", full)
    config = TrainerConfig(**{**SCRATCH, "batch_size": batch_size}, epochs=1)
    with pytest.raises(TrainingError, match=advice):
        train(split, config, tmp_path / "state")


def test_class_weights_scale_the_loss_of_their_class(split, tmp_path):
    nothing = [np.array([0, 0], np.float32), np.array([1, 1], np.float32), np.array([2, 2], np.float32)]
    losses = []
    for class_weights in nothing:
        (tmp_path / f"{class_weights[0]}").mkdir()
        config = TrainerConfig(**SCRATCH, epochs=1, clip_norm=None, optimizer="sgd", weight_decay=0, augmentation=OFF)
        network = make_network(config, dropout=0.0)
        initial = network.head.get_weights()
        run_schedule(network, TASK, split, split, config, tmp_path / f"{class_weights[0]}", ONE_DEVICE, class_weights)
        losses.append(np.abs(network.head.get_weights()[0] - initial[0]).sum())
    assert losses[0] == 0
    assert losses[1] < losses[2]
