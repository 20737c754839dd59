"""Distribution, for real: two devices of one process, and two processes on loopback. And precision."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from imagepipe.base.errors import TrainingError
from trainer import devices

SCRIPT = Path(__file__).parent / "train_distributed.py"
STEPS = 3


def train(folder: Path, distribution: str, cluster: dict | None = None) -> list[subprocess.Popen]:
    workers = len(cluster["worker"]) if cluster else 1
    processes = []
    for index in range(workers):
        environment = dict(os.environ)
        if cluster:
            environment["TF_CONFIG"] = json.dumps({"cluster": cluster, "task": {"type": "worker", "index": index}})
        command = [sys.executable, str(SCRIPT), distribution, str(folder), str(index)]
        processes.append(subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True))  # noqa: S603
    return processes


def results(folder: Path, processes: list[subprocess.Popen]) -> list[dict]:
    for process in processes:
        _, errors = process.communicate(timeout=240)
        assert process.returncode == 0, errors[-3000:]
    return [json.loads((folder / f"{index}.json").read_text()) for index in range(len(processes))]


def free_address() -> str:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{listening.getsockname()[1]}"


@pytest.fixture(scope="module")
def one_device(tmp_path_factory):
    folder = tmp_path_factory.mktemp("one")
    (result,) = results(folder, train(folder, "none"))
    return result


@pytest.mark.slow
def test_two_devices_learn_what_one_does_with_the_same_global_batch(one_device, tmp_path):
    (mirrored,) = results(tmp_path, train(tmp_path, "mirrored"))
    assert mirrored["replicas"] == 2
    assert mirrored["loss"] == pytest.approx(one_device["loss"], abs=1e-3)
    assert mirrored["val_loss"] == pytest.approx(one_device["val_loss"], abs=1e-3)
    assert np.allclose(mirrored["weights"], one_device["weights"], atol=1e-4)


@pytest.mark.slow
def test_two_processes_learn_what_one_does_and_only_the_chief_leaves_a_state(one_device, tmp_path):
    cluster = {"worker": [free_address(), free_address()]}
    first, second = results(tmp_path, train(tmp_path, "multi_worker", cluster))
    assert first["replicas"] == second["replicas"] == 2
    assert [first["chief"], second["chief"]] == [True, False]
    assert first["weights"] == second["weights"]
    assert first["loss"] == pytest.approx(one_device["loss"], abs=1e-3)
    assert first["val_loss"] == pytest.approx(one_device["val_loss"], abs=1e-3)
    assert (tmp_path / "state-0" / "state.npz").exists()
    assert not (tmp_path / "state-1" / "state.npz").exists()


def test_without_a_cluster_and_a_gpu_nothing_is_distributed(monkeypatch):
    monkeypatch.delenv("TF_CONFIG", raising=False)
    chosen = devices.make_strategy("auto")
    assert chosen.num_replicas_in_sync == 1
    assert devices.is_chief(chosen)


def test_a_batch_that_cannot_be_divided_among_the_devices_is_refused():
    strategy = type("Strategy", (), {"num_replicas_in_sync": 4})()
    with pytest.raises(TrainingError, match=r"30 can't be divided among 4 devices\. Give a multiple, such as 32"):
        devices.divide_epoch(strategy, 100, 30)


def test_an_epoch_on_one_device_ends_with_a_smaller_batch():
    assert devices.divide_epoch(tf.distribute.get_strategy(), 100, 30) == devices.BatchSizes(30, 30, 4, 100)


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
    monkeypatch.setattr(devices, "_CPU_INFO", cpuinfo)
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: [])
    assert devices.choose_precision("auto") == policy
    assert devices.choose_precision("mixed_float16") == "mixed_float16"


@pytest.mark.parametrize(("capability", "policy"), [((7, 0), "mixed_float16"), ((6, 1), "float32")])
def test_a_gpu_computes_in_float16_if_it_has_tensor_cores(monkeypatch, capability, policy):
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: ["gpu"] if kind == "GPU" else [])
    monkeypatch.setattr(tf.config.experimental, "get_device_details", lambda gpu: {"compute_capability": capability})
    assert devices.choose_precision("auto") == policy
