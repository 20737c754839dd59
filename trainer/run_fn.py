"""The ``run_fn`` that TFX's Trainer calls: from raw Examples to a trained network and its SavedModel."""

import json
import logging
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf
import tensorflow_transform as tft

from imagepipe.base.features import IMAGE, parse_features
from imagepipe.base.names import CALIBRATION, NOVELTY, OPTIMIZED, THRESHOLDS, TRAINING_FOLDER
from imagepipe.deploy.openvino_form import FOLDER
from trainer.augmentation import make_augmentation
from trainer.checkpoint import make_state_folder
from trainer.config import NO_WEIGHTS, AugmentationConfig, FnArgs, ServingConfig, TrainerConfig, override_settings
from trainer.data import PixelStatistics, TrainingData, compute_class_weights, compute_pixel_statistics, load_data
from trainer.devices import check_engine, choose_training_precision, set_up_process
from trainer.export.forms import choose_forms
from trainer.export.novelty import explain_few, save_novelty
from trainer.export.signatures import save_model
from trainer.frozen import remove_kept
from trainer.inputs import LoadedSplit, make_batches
from trainer.network import Network, build_network, get_head_units, scale_outputs
from trainer.phase import Chosen
from trainer.pictures import draw_curves, draw_preview
from trainer.schedule import History, count_chosen, run_schedule

_PREVIEW_IMAGES, _PREVIEW_VARIANTS = 6, 7

_log = logging.getLogger("trainer")


class Trained(NamedTuple):
    """The result of a training.

    Attributes:
        network: the network, with the weights of its best epoch, or those that it was given on the whole train split.
        chosen: the same, or the one of the best epoch, which has seen no image that it was chosen on.
        statistics: see ``network.build_network``.
        history: see ``schedule.run_schedule``.
    """

    network: Network
    chosen: Network
    statistics: PixelStatistics | None
    history: History


def run_fn(fn_args: FnArgs) -> None:
    """Trains and exports a model.

    Args:
        fn_args: see ``FnArgs``.

    Raises:
        TrainingError: if there is nothing to learn, training fails for a reason that the user can fix, or the graph for
            serving differs too much from the network.
        WeightsError: if the weights to start from are not available or don't fit.
    """
    custom = fn_args.custom_config
    searched = fn_args.hyperparameters["values"] if fn_args.hyperparameters else {}
    config = override_settings(TrainerConfig(**custom["trainer"]), searched)
    strategy = set_up_process(config.distribution)
    check_engine(ServingConfig(**custom["serving"]))
    state_folder = make_state_folder(fn_args, __name__)
    data = load_data(fn_args, config, state_folder.parent)
    _log.info("%d images to train on, and %d to choose on", data.train.count, data.validation.count)
    precision, devices = choose_training_precision(config), strategy.num_replicas_in_sync
    _log.info("computing in %s, on %d device(s)", precision, devices)
    writer = tf.summary.create_file_writer(fn_args.model_run_dir)
    trained = train(data, config, state_folder, strategy, lambda row: _write_to_tensorboard(writer, row))
    _export(fn_args, config, data, trained)
    _log.info("exported to %s", fn_args.serving_model_dir)
    shutil.rmtree(state_folder.parent)


def train(
    data: TrainingData,
    config: TrainerConfig,
    folder: Path,
    strategy: tf.distribute.Strategy,
    on_epoch: Callable[[dict[str, Any]], None] = lambda row: None,
) -> Trained:
    """Builds a network and trains it, once for the Trainer and once per trial for the Tuner.

    The same data and configuration give the same weights.

    Args:
        data: the task and the splits.
        config: the settings.
        folder: see ``schedule.run_schedule``.
        strategy: the strategy that distributes training.
        on_epoch: see ``schedule.run_schedule``.

    Raises:
        TrainingError: if training fails for a reason that the user can fix.
        WeightsError: if the weights to start from are not available or don't fit.
    """
    statistics = None
    if config.normalization == "featurewise":
        batches = make_batches(data.train, config.batch_size)
        statistics = compute_pixel_statistics(batch[IMAGE] for batch, _ in batches)

    def fit(images: LoadedSplit, state: Path, **options: Any) -> tuple[Network, History]:
        # Layers are unfrozen by name, and the numbers in these names would go on from an earlier training.
        keras.utils.clear_session()
        keras.utils.set_random_seed(config.seed)
        with strategy.scope(), _use_precision(choose_training_precision(config)):
            network = build_network(data.image_size, data.task, data.side, config, statistics)
        weights = compute_class_weights(config.class_weights, data.output_names, images.targets)
        return network, run_schedule(
            network, data.task, images, data.validation, config, state, strategy, weights, **options
        )

    network, history = fit(data.train, folder, on_epoch=on_epoch)
    if not (config.refit and data.is_set_aside):
        return Trained(network, network, statistics, history)
    remove_kept(folder)  # to make room for as much of the next one
    whole, chosen = data.train.join(data.validation), Chosen(count_chosen(history), data.train.count)
    _log.info(
        "training once more, on all %d images of the train split, for as many steps in as many epochs: %s; val_ is of "
        "images among them",
        *(whole.count, ", ".join(f"{phase} {count}" for phase, count in chosen.epochs.items())),
    )
    (folder / "refit").mkdir(exist_ok=True)
    return Trained(fit(whole, folder / "refit", chosen=chosen)[0], network, statistics, history)


@contextmanager
def _use_precision(precision: str) -> Iterator[None]:
    """Lets layers that are created in the meantime compute in a precision."""
    previous = keras.config.dtype_policy()
    keras.config.set_dtype_policy(precision)
    try:
        yield
    finally:
        keras.config.set_dtype_policy(previous)


def _write_to_tensorboard(writer: tf.summary.SummaryWriter, row: dict[str, Any]) -> None:
    with writer.as_default(step=row["epoch"]):
        for name, value in row.items():
            if isinstance(value, float):
                split, metric = ("validation", name[4:]) if name.startswith("val_") else ("train", name)
                tf.summary.scalar(f"{split}/{metric}", value)
    writer.flush()


def _export(fn_args: FnArgs, config: TrainerConfig, data: TrainingData, trained: Trained) -> None:
    """Writes the SavedModel and, beside it, the folder of training's other results."""
    network = rebuild_network(data, config, trained)
    custom = fn_args.custom_config
    folder = Path(fn_args.serving_model_dir).parent / TRAINING_FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "history.json").write_text(json.dumps(trained.history, indent=1) + "\n", encoding="utf-8")
    draw_curves(trained.history, next(iter(data.task.make_metrics())), folder / "curves.png")
    if config.augmentation.is_on:
        _draw_preview(data.train, config.augmentation, folder / "augmentation.png")
    chosen_on = {"split": "train" if data.is_set_aside else "eval", "images": data.validation.count}
    serving = ServingConfig(**custom["serving"])
    if doubt := explain_few(data.validation.count):
        doubt += ". serving.unknown is not applied: all images get a label" if serving.unknown else ""
        serving = serving.model_copy(update={"unknown": None})
        _log.warning("%s", doubt)
    used_config = custom | {
        "trainer": config.model_dump(mode="json"),
        "serving": serving.model_dump(mode="json"),
        "chosen_on": chosen_on,
        "novelty_doubt": doubt,
    }
    (folder / "config.json").write_text(json.dumps(used_config, indent=1) + "\n", encoding="utf-8")
    with (folder / "summary.txt").open("w", encoding="utf-8") as file:
        for part in (network.base, network.head, network.model):
            part.summary(print_fn=lambda line: file.write(f"{line}\n"))
    network.base.save_weights(folder / "base.weights.h5")

    # Without a refit both are the same; then the network in float32 answers for it.
    chosen = network.served if trained.chosen is trained.network else trained.chosen.served
    forms = choose_forms(network.served, chosen, config, serving, data)
    (folder / CALIBRATION).write_text(json.dumps(forms.saved.fitted.facts, indent=1) + "\n", encoding="utf-8")
    (folder / OPTIMIZED).write_text(json.dumps(forms.facts, indent=1) + "\n", encoding="utf-8")
    if forms.thresholds:
        (folder / THRESHOLDS).write_text(
            json.dumps(forms.thresholds, indent=1, ensure_ascii=False) + "\n", encoding="utf-8"
        )
    transform_output, features = tft.TFTransformOutput(fn_args.transform_graph_path), parse_features(custom["features"])
    around = (transform_output, features, data.task.name)
    save_model(forms.saved.network, forms.saved.fitted.answers, *around, fn_args.serving_model_dir)
    if form := forms.openvino:
        from trainer.export.openvino import save_form

        folder_of_form = Path(fn_args.serving_model_dir) / FOLDER
        save_form(form.network, form.precision, form.fitted.answers, *around, form.facts, folder_of_form)
    # Last: novelty is of the logits without it.
    save_novelty(forms.fitted.novelty, forms.fitted.calibration, folder / NOVELTY)
    scale_outputs(network.head.get_layer("logits"), *forms.fitted.calibration)
    network.model.save(folder / "model.keras")


def rebuild_network(data: TrainingData, config: TrainerConfig, trained: Trained) -> Network:
    """Returns the trained network in float32 and for one device, whatever it was trained in and on."""
    units = get_head_units(config, bool(data.side))
    from_scratch = config.model_copy(update={"weights": NO_WEIGHTS, "head_units": units})  # replaced anyway
    network = build_network(data.image_size, data.task, data.side, from_scratch, trained.statistics)
    network.model.set_weights(trained.network.model.get_weights())
    return network


def _draw_preview(train_split: LoadedSplit, config: AugmentationConfig, path: Path) -> None:
    """Draws augmented variants of the first images."""
    images = train_split.images.read(np.arange(min(_PREVIEW_IMAGES, train_split.count)))
    targets = train_split.task.encode(tf.constant(train_split.targets[: len(images)]))
    augment = make_augmentation(config)
    variants = [augment(tf.constant(images), targets, tf.constant([0, n]))[0].numpy() for n in range(_PREVIEW_VARIANTS)]
    draw_preview(images, np.stack(variants, axis=1), path)
