"""A disk that is full while a training writes: one clear message, and nothing half done is taken for whole."""

import errno
import shutil

import numpy as np
import pytest
import tensorflow as tf

from imagepipe.base.errors import describe_error
from imagepipe.base.features import IMAGE, TARGET
from tests.trainer.test_schedule import CONFIGS, ONE_DEVICE, TASK, assert_same, make_network, make_split, read_progress
from trainer import transfer
from trainer.checkpoint import STATE
from trainer.inputs import load_split
from trainer.schedule import run_schedule

pytestmark = pytest.mark.slow


def fill(disk) -> None:
    """Leaves no room but for what is there already."""
    disk.resize(str(shutil.disk_usage(disk.folder).used))


def transform(serialized: tf.Tensor) -> dict[str, tf.Tensor]:
    numbers = tf.strings.to_number(serialized, tf.int64)
    pixels = tf.tile(tf.cast(tf.reshape(numbers, [-1, 1, 1, 1]), tf.uint8), [1, 64, 64, 3])
    return {IMAGE: tf.ensure_shape(pixels, [None, 64, 64, 3]), TARGET: numbers % 2}


@pytest.mark.parametrize("size", ["4k", "100k", "720k"])  # the last one has room for the pixels, not for the targets
def test_pixels_say_how_much_room_they_need_and_are_loaded_with_room(small_disk, size):
    disk = small_disk(size)
    records = tf.data.Dataset.from_tensor_slices([str(number) for number in range(60)])
    with pytest.raises(OSError, match="No space left on device for") as full:
        load_split(records, transform, TASK, disk.folder / "train.pixels")
    assert full.value.errno == errno.ENOSPC
    if size != "720k":
        assert "for the pixels, which take 0.7 MB in all; 0." in str(full.value)
    message = describe_error(full.value)
    assert message.startswith(f"{disk.folder}/train.pixels")
    assert message.endswith("Make room, then run it again")
    assert not list(disk.folder.glob("*.npz"))
    disk.resize("2m")
    split = load_split(records, transform, TASK, disk.folder / "train.pixels")
    assert split.images.read(np.arange(60))[:, 5, 5, 0].tolist() == list(range(60))
    assert split.targets.tolist() == [number % 2 for number in range(60)]


def test_without_room_for_the_outputs_of_frozen_layers_all_layers_run_in_each_epoch(small_disk, tmp_path, caplog):
    disk = small_disk("1m")
    config = CONFIGS["with weights"]
    (disk.folder / "other").write_bytes(bytes(900_000))
    split = make_split(tmp_path)
    history = run_schedule(make_network(config), TASK, split, split, config, disk.folder, ONE_DEVICE)
    assert [row["phase"] for row in history] == ["head"] * 2 + ["upper blocks"] * 4
    assert "the outputs of boundary for 300 views would take 0 MB, and half of the room" in caplog.text
    assert not list(disk.folder.glob("*boundary*"))


def test_a_disk_that_fills_while_outputs_are_kept_is_cleared_of_them_and_the_training_goes_on(
    small_disk, tmp_path, monkeypatch, caplog
):
    disk, split = small_disk("1m"), make_split(tmp_path)
    config = CONFIGS["with weights"].model_copy(update={"views": 12})
    (disk.folder / "other").write_bytes(bytes(885_000))  # leaves room for the outputs of one view, not of all
    (tmp_path / "roomy").mkdir()
    trained = []
    for chosen, folder in ((["features", "boundary"], disk.folder), (["features"], tmp_path / "roomy")):
        monkeypatch.setattr(transfer, "choose_kept", lambda *_, names=chosen: list(names))
        network = make_network(config)
        trained.append((network, run_schedule(network, TASK, split, split, config, folder, ONE_DEVICE)))
    assert_same(*trained)
    (warning,) = [
        record.getMessage() for record in caplog.records if record.levelname == "WARNING" and record.name == "trainer"
    ]
    assert warning.startswith("the outputs of boundary are not kept, and are computed in each epoch: [Errno 28]")
    assert "for the outputs of boundary, which take 0.2 MB in all" in warning
    assert sorted(path.name for path in disk.folder.glob("*.kept")) == [
        "train.features.kept",
        "validation.features.kept",
    ]
    assert not list(disk.folder.glob("*.partial"))


def test_a_state_that_finds_no_room_leaves_the_previous_one_from_which_the_training_continues(small_disk, tmp_path):
    disk = small_disk("2m")
    config = CONFIGS["from scratch"]
    split = make_split(tmp_path)

    def train(folder, on_epoch=lambda row: None):
        network = make_network(config)
        return network, run_schedule(network, TASK, split, split, config, folder, ONE_DEVICE, on_epoch=on_epoch)

    def fill_in_second_epoch(row):
        if row["epoch"] == 2:
            fill(disk)

    with pytest.raises(OSError, match=r"for the state of the training, which take \d"):
        train(disk.folder, fill_in_second_epoch)
    assert [file.name for file in disk.folder.iterdir()] == [STATE]
    assert len(read_progress(disk.folder).history) == 1
    disk.resize("2m")
    (tmp_path / "undisturbed").mkdir()
    assert_same(train(disk.folder), train(tmp_path / "undisturbed"))
