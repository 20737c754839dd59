"""The walk from raw Examples to a trained network: which files it goes through, in which order."""

from types import SimpleNamespace

import pytest

from tests.walks import walk
from trainer import run_fn as entry

FILES = [
    "trainer/run_fn.py",
    "trainer/config.py",
    "trainer/devices.py",
    "trainer/checkpoint.py",
    "trainer/data.py",
    "transform/examples.py",
    "trainer/tasks.py",
    "trainer/inputs.py",
    "trainer/network.py",
    "trainer/schedule.py",
    "trainer/steps.py",
    "trainer/augmentation.py",
]


@pytest.mark.slow  # each of Keras's calls is traced: 20 s
def test_the_walk_to_a_trained_network_goes_through_at_most_12_files_in_this_order(arguments, tmp_path, monkeypatch):
    trained = []
    monkeypatch.setattr(entry, "_export", lambda *export_arguments: trained.append(export_arguments[-1]))
    given = SimpleNamespace(**arguments(tmp_path, backbone="mobilenet_v3_small", epochs=1))
    assert walk(lambda: entry.run_fn(given)) == FILES
    assert len(FILES) <= 12
    assert len(trained[0].history) == 1
