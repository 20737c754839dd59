"""Outputs of frozen layers that are kept, and training on them, on the small network of the schedule's tests."""

from dataclasses import replace
from types import SimpleNamespace

import keras
import numpy as np
import pytest

from imagepipe.base.features import IMAGE
from tests.trainer.test_schedule import GIVEN, OFF, copy_weights, make_network, make_split, train
from trainer import frozen, transfer
from trainer.config import AugmentationConfig, TrainerConfig
from trainer.frozen import choose_kept, count_views, keep_outputs, remove_kept
from trainer.inputs import make_batches
from trainer.linear_probe import fit_probe
from trainer.network import split_base
from trainer.tasks import make_regression, measure_targets
from trainer.transfer import list_transfer_phases, start_from_probe


def keep_two_views(tmp_path):
    config = TrainerConfig(**GIVEN, views=2)
    network, split = make_network(config), make_split(tmp_path)
    lower, upper = split_base(network.base, "middle")
    below = lower(network.scaling.output)
    model = keras.Model(network.scaling.input, {"boundary": below, "features": network.pool(upper(below))})
    return network, upper, split, keep_outputs(model, split, 2, config, tmp_path / "train")


def test_the_first_view_is_the_image_itself_and_the_next_an_augmented_one(tmp_path):
    network, upper, split, kept = keep_two_views(tmp_path)
    assert kept["features"].count == kept["boundary"].count == 120
    assert np.array_equal(kept["features"].targets, np.tile(split.targets, 2))
    first, second = (kept["features"].images.read(np.arange(60) + start) for start in (0, 60))
    assert first.dtype == np.float16
    images = split.images.read(np.arange(60))
    assert np.allclose(first, network.pooled(images), atol=2e-3)
    distances = np.abs(second.astype(np.float32) - first).max(axis=1)
    assert (distances > 2e-3).mean() > 0.9
    boundary = kept["boundary"].images.read(np.arange(60))
    assert np.allclose(network.pool(upper(boundary)), first, atol=2e-3)


def test_the_head_and_the_upper_blocks_on_what_is_kept_give_the_outputs_of_the_network(tmp_path):
    network, upper, split, kept = keep_two_views(tmp_path)
    expected = network.model({IMAGE: split.images.read(np.arange(60))})
    image = keras.Input(upper.input.shape[1:], name=IMAGE)
    models = {"features": network.head, "boundary": transfer._build_rest(network, image, network.pool(upper(image)))}
    for name, model in models.items():
        batch, _ = next(iter(make_batches(kept[name], 60)))
        assert np.allclose(model(batch), expected, atol=2e-3)


def test_views_that_are_whole_are_used_again_and_others_computed(tmp_path):
    *_, kept = keep_two_views(tmp_path)
    path = kept["features"].images.path
    written = path.read_bytes()
    view = len(written) // 2
    path.write_bytes(bytes(view) + written[view:])
    keep_two_views(tmp_path)
    assert path.read_bytes() == bytes(view) + written[view:]
    path.write_bytes(bytes(view) + written[view:-1])
    keep_two_views(tmp_path)
    assert path.read_bytes() == bytes(view) + written[view:]
    path.write_bytes(written[: view - 1])
    keep_two_views(tmp_path)
    assert path.read_bytes() == written


def test_what_does_not_fit_into_half_of_the_room_is_not_kept_and_the_log_says_so(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(frozen.shutil, "disk_usage", lambda path: SimpleNamespace(free=100_000))
    outputs = {"features": (keras.Input((10,)), 100), "boundary": (keras.Input((8, 8, 4)), 100)}
    assert choose_kept(outputs, tmp_path, {}) == ["features"]
    assert "the outputs of boundary for 100 views would take 0 MB" in caplog.text
    (tmp_path / "train.boundary.kept").write_bytes(bytes(60_000))
    assert choose_kept(outputs, tmp_path, {}) == ["features", "boundary"]
    monkeypatch.setattr(frozen.shutil, "disk_usage", lambda path: SimpleNamespace(free=1))
    assert choose_kept(outputs, tmp_path, {}) == ["features", "boundary"], "what is there costs no room"
    (tmp_path / "train.boundary.kept").write_bytes(bytes(50_000))
    assert choose_kept(outputs, tmp_path, {}) == ["features"], "what is there in part does"


@pytest.mark.parametrize(
    ("options", "views"),
    [
        ({}, 5),
        ({"epochs": 2}, 2),
        ({"views": 12}, 12),
        ({"views": 0}, 0),
        ({"augmentation": OFF}, 1),
        ({"augmentation": OFF, "views": 3}, 1),
        ({"augmentation": AugmentationConfig(mixup=0.2), "views": 3}, 0),
    ],
)
def test_as_many_views_as_epochs_up_to_five_and_none_of_mixed_images(options, views):
    assert count_views(TrainerConfig(**options)) == views


def test_where_a_connection_leads_round_a_layer_the_base_is_split_before_it():
    image = keras.Input((8, 8, 3))
    first = keras.layers.Conv2D(4, 3, padding="same", name="first")(image)
    inner = keras.layers.Conv2D(4, 3, padding="same", name="inner")(first)
    base = keras.Model(image, keras.layers.ReLU()(keras.layers.Add(name="joined")([first, inner])))
    for name, expected in {"joined": "joined", "inner": "first", "first": "first"}.items():
        lower, upper = split_base(base, name)
        assert lower.layers[-1].name == expected
        images = np.ones((1, 8, 8, 3), np.float32)
        assert np.array_equal(upper(lower(images)), base(images))


def test_a_linear_head_starts_from_the_probe(tmp_path):
    config = TrainerConfig(**GIVEN)
    network, split = make_network(config), make_split(tmp_path)
    starters, kept = list_transfer_phases(network, split, split, config, tmp_path, None, {})
    assert kept == ["features", "boundary"]
    phase = starters[0]()
    assert (phase.views, phase.train.count, phase.model) == (1, split.count, network.head)
    rows = phase.train.images.read(np.arange(60))
    probe = fit_probe(rows, split.targets, "classification", 2)
    assert np.allclose(network.head({IMAGE: rows}), probe.predict(rows), atol=1e-5)
    assert (probe.predict(rows).argmax(axis=1) == split.targets).mean() > 0.9


@pytest.mark.parametrize("why", ["mixed", "no views", "no room"])
def test_a_linear_head_starts_from_the_probe_where_nothing_is_kept(tmp_path, monkeypatch, why):
    options = {"mixed": {"augmentation": AugmentationConfig(mixup=0.2)}, "no views": {"views": 0}, "no room": {}}
    config = TrainerConfig(**GIVEN, **options[why])
    if why == "no room":
        monkeypatch.setattr(frozen.shutil, "disk_usage", lambda path: SimpleNamespace(free=1))
    network, split = make_network(config), make_split(tmp_path)
    starters, kept = list_transfer_phases(network, split, split, config, tmp_path, None, {})
    assert not kept
    phase = starters[0]()
    assert (phase.train, phase.augmented, phase.learning_rate) == (split, True, config.fine_tune_learning_rate)
    images = split.images.read(np.arange(60))
    features = network.pooled(images).numpy().astype(np.float16)
    expected = fit_probe(features, split.targets, "classification", 2).predict(features)
    assert np.allclose(network.model({IMAGE: images}), expected, atol=1e-2)


@pytest.mark.parametrize("views", [1, 0])
def test_all_phases_compute_in_the_precision_of_the_network_by_which_losses_are_scaled(tmp_path, views):
    config = TrainerConfig(**GIVEN, augmentation=OFF, views=views)
    keras.config.set_dtype_policy("mixed_float16")
    try:
        network = make_network(config)
    finally:
        keras.config.set_dtype_policy("float32")
    split = make_split(tmp_path)
    starters, _ = list_transfer_phases(network, split, split, config, tmp_path, None, {})
    assert {start().model.dtype_policy.name for start in starters} == {"mixed_float16"}


def test_the_probe_that_a_linear_head_starts_from_knows_the_groups(tmp_path):
    config = TrainerConfig(**GIVEN)
    network, split = make_network(config), make_split(tmp_path)
    grouped = replace(split, groups=split.targets.astype(np.int64))  # nothing tells a class of another group
    phase = list_transfer_phases(network, grouped, split, config, tmp_path, None, {})[0][0]()
    rows = phase.train.images.read(np.arange(60))
    probe = fit_probe(rows, split.targets, "classification", 2, grouped.groups)
    assert np.allclose(network.head({IMAGE: rows}), probe.predict(rows), atol=1e-5)
    assert not np.allclose(probe.predict(rows), fit_probe(rows, split.targets, "classification", 2).predict(rows))


@pytest.mark.parametrize(("mean", "deviation"), [(0, 1), (1e8 + 4, 10), (0.1, 0)])
def test_a_linear_head_starts_as_well_whatever_the_unit_of_the_numbers(tmp_path, mean, deviation):
    config = TrainerConfig(**GIVEN)
    network, split = make_network(config, outputs=1), make_split(tmp_path)
    targets = (mean + deviation * np.random.default_rng(0).normal(size=(60, 1))).astype(np.float32)
    task = measure_targets(make_regression("mean_squared_error"), targets)
    features = np.concatenate([task.standardize(targets.astype(np.float64)), np.ones((60, 3))], axis=1)
    start_from_probe(network.head, replace(split, targets=targets, task=task), features.__getitem__, None)
    weights, bias = network.head.get_layer("logits").get_weights()
    assert np.allclose(features @ weights + bias, features[:, :1], atol=0.05)


def test_a_head_with_a_hidden_layer_starts_at_random_and_learns_from_all_views(tmp_path):
    config = TrainerConfig(**GIVEN, views=2)
    network, split = make_network(config, hidden=True), make_split(tmp_path)
    initial = network.head.get_layer("logits").get_weights()[0]
    starters, _ = list_transfer_phases(network, split, split, config, tmp_path, None, {})
    phase = starters[0]()
    assert (phase.views, phase.train.count) == (2, 2 * split.count)
    assert np.array_equal(initial, network.head.get_layer("logits").get_weights()[0])


def test_training_on_what_is_kept_is_training_through_the_whole_network_within_rounding(tmp_path, monkeypatch):
    config = TrainerConfig(**GIVEN, augmentation=OFF, warmup_epochs=0)
    split = make_split(tmp_path)
    options = {"dropout": 0, "lower_dropout": 0.5}  # the frozen layers drop nothing, kept or not
    initial = make_network(config, **options)
    networks = {}
    for name in ("kept", "whole"):
        if name == "whole":
            monkeypatch.setattr(transfer, "choose_kept", lambda *arguments: [])
        networks[name] = train(split, config, tmp_path / name, network=make_network(config, **options))
    (kept, kept_history), (whole, whole_history) = networks.values()
    assert (tmp_path / "kept" / "train.boundary.kept").exists()
    assert not list((tmp_path / "whole").glob("*.kept"))
    for name, start in copy_weights(initial.base).items():
        way = np.linalg.norm(copy_weights(whole.base)[name] - start)
        assert np.linalg.norm(copy_weights(kept.base)[name] - copy_weights(whole.base)[name]) <= 0.05 * way
    for one, other in zip(kept_history, whole_history, strict=True):
        assert one["val_loss"] == pytest.approx(other["val_loss"], abs=1e-2)
        assert one["loss"] == pytest.approx(other["loss"], abs=1e-2)


def test_a_refit_keeps_what_the_first_training_kept_on_a_disk_with_room_for_one_of_them(tmp_path, monkeypatch):
    config = TrainerConfig(**GIVEN, views=2)
    network, split, more = make_network(config), make_split(tmp_path), make_split(tmp_path, count=70)
    folder = tmp_path / "state"
    (folder / "refit").mkdir(parents=True)
    room = 130_000

    def measure(path):
        return SimpleNamespace(free=room - sum(file.stat().st_size for file in folder.rglob("*.kept")))

    monkeypatch.setattr(frozen.shutil, "disk_usage", measure)

    def keep(images, place) -> list[str]:
        starters, kept = list_transfer_phases(network, images, split, config, place, None, {})
        for start in starters:
            start()
        return kept

    assert keep(split, folder) == ["features", "boundary"]
    assert keep(more, folder / "refit") == ["features"]
    remove_kept(folder)
    assert keep(more, folder / "refit") == ["features", "boundary"]
    assert keep(split, folder) == ["features", "boundary"]  # as the first one's state says when it is read again
