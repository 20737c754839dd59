"""Distribution, for real, over two devices of one process; and precision."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from imagepipe.base import processor
from imagepipe.base.errors import TrainingError
from trainer import devices

SCRIPT = Path(__file__).parent / "train_distributed.py"


def train(folder: Path, distribution: str) -> dict:
    command = [sys.executable, str(SCRIPT), distribution, str(folder)]
    process = subprocess.run(command, capture_output=True, text=True, timeout=240)  # noqa: S603
    assert process.returncode == 0, process.stderr[-3000:]
    return json.loads((folder / "result.json").read_text())


@pytest.mark.slow
def test_two_devices_learn_what_one_does_with_the_same_global_batch(tmp_path):
    for folder in (tmp_path / "one", tmp_path / "two"):
        folder.mkdir()
    one_device, mirrored = train(tmp_path / "one", "none"), train(tmp_path / "two", "mirrored")
    assert (one_device["replicas"], mirrored["replicas"]) == (1, 2)
    assert mirrored["loss"] == pytest.approx(one_device["loss"], abs=1e-3)
    assert mirrored["val_loss"] == pytest.approx(one_device["val_loss"], abs=1e-3)
    assert np.allclose(mirrored["weights"], one_device["weights"], atol=1e-4)


ONE_MACHINE = '{"cluster": {"chief": ["host-0:2222"]}, "task": {"type": "chief", "index": 0}}'  # as Vertex AI sets it


@pytest.mark.parametrize("tf_config", [None, "", "{}", ONE_MACHINE])
def test_without_a_gpu_nothing_is_distributed(monkeypatch, tf_config):
    if tf_config is None:
        monkeypatch.delenv("TF_CONFIG", raising=False)
    else:
        monkeypatch.setenv("TF_CONFIG", tf_config)
    assert devices.set_up_process("auto").num_replicas_in_sync == 1


@pytest.mark.parametrize(
    "cluster",
    [{"worker": ["a:1", "b:1"]}, {"chief": ["a:1"], "worker": {"2": "b:1"}}, {"worker": ["a:1"], "ps": ["b:1"]}],
)
def test_several_machines_are_refused_with_what_to_use_instead(monkeypatch, cluster):
    monkeypatch.setenv("TF_CONFIG", json.dumps({"cluster": cluster, "task": {"type": "worker", "index": 0}}))
    with pytest.raises(
        TrainingError, match=r"TF_CONFIG names 2 machines .*one machine.*trainer\.distribution: mirrored"
    ):
        devices.set_up_process("auto")


@pytest.mark.parametrize("damaged", ["{", "[]", '{"cluster": ["a:1"]}', '{"cluster": {"worker": 2}}'])
def test_a_damaged_tf_config_is_named(monkeypatch, damaged):
    monkeypatch.setenv("TF_CONFIG", damaged)
    with pytest.raises(TrainingError, match="TF_CONFIG can't be read"):
        devices.set_up_process("none")


def test_a_batch_that_cannot_be_divided_among_the_devices_is_refused():
    strategy = type("Strategy", (), {"num_replicas_in_sync": 4})()
    with pytest.raises(TrainingError, match=r"30 can't be divided among 4 devices\. Give a multiple, such as 32"):
        devices.divide_epoch(strategy, 100, 30)


def test_an_epoch_on_one_device_ends_with_a_smaller_batch():
    assert devices.divide_epoch(tf.distribute.get_strategy(), 100, 30) == devices.BatchSizes(30, 4, 100)


@pytest.mark.parametrize(
    ("flags", "policy"),
    [
        ("fpu avx512f avx512_bf16", "mixed_bfloat16"),
        ("fpu amx_bf16", "mixed_bfloat16"),
        ("fpu avx512_bf16 avx512_fp16 amx_bf16", "mixed_bfloat16"),
        ("fpu avx512_bf16 avx512_fp16", "float32"),  # AMX is hidden
        ("fpu avx2", "float32"),
        (None, "float32"),
    ],
)
def test_a_cpu_computes_in_bfloat16_if_it_can(tmp_path, monkeypatch, flags, policy):
    cpuinfo = tmp_path / "cpuinfo"
    if flags:
        cpuinfo.write_text(f"processor : 0\nflags\t\t: {flags}\n\nprocessor : 1\nflags\t\t: {flags}\n")
    monkeypatch.setattr(processor, "_CPU_INFO", cpuinfo)
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: [])
    assert devices.choose_precision("auto") == policy
    assert devices.choose_precision("auto", is_depthwise=True) == "float32"
    assert devices.choose_precision("mixed_float16", is_depthwise=True) == "mixed_float16"


@pytest.mark.parametrize(("capability", "policy"), [((7, 0), "mixed_float16"), ((6, 1), "float32")])
def test_a_gpu_computes_in_float16_if_it_has_tensor_cores(monkeypatch, capability, policy):
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: ["gpu"] if kind == "GPU" else [])
    monkeypatch.setattr(tf.config.experimental, "get_device_details", lambda gpu: {"compute_capability": capability})
    assert devices.choose_precision("auto") == policy
