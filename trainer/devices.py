"""Devices: how training is spread over them, and in which precision they compute."""

import contextlib
import json
import math
import os
from dataclasses import dataclass
from pathlib import Path

import tensorflow as tf

from imagepipe.base.errors import TrainingError
from trainer.config import Distribution, Precision

_TENSOR_CORES = 7  # NVIDIA's compute capability from which on there are tensor cores (Volta)
_CPU_FLAGS = Path("/proc/cpuinfo")


def strategy(distribution: Distribution) -> tf.distribute.Strategy:
    """Makes the strategy; call it before anything runs on a device.

    Args:
        distribution: ``none``; ``mirrored`` over all devices of this machine; ``multi_worker`` over the machines that
            the environment variable ``TF_CONFIG`` names; ``auto``: multi_worker where it names some, mirrored where
            there is more than one GPU, else none.
    """
    gpus = tf.config.list_physical_devices("GPU")
    for gpu in gpus:
        with contextlib.suppress(RuntimeError):  # it is in use already: by Transform, in the same process
            tf.config.experimental.set_memory_growth(gpu, True)
    if distribution == "auto":
        workers = json.loads(os.environ.get("TF_CONFIG", "{}")).get("cluster", {}).get("worker", [])
        distribution = "multi_worker" if len(workers) > 1 else "mirrored" if len(gpus) > 1 else "none"
    match distribution:
        case "multi_worker":
            return tf.distribute.MultiWorkerMirroredStrategy()
        case "mirrored":
            devices = tf.config.list_logical_devices("GPU") or tf.config.list_logical_devices("CPU")
            return tf.distribute.MirroredStrategy([device.name for device in devices])
        case _:
            return tf.distribute.get_strategy()


def worker(strategy: tf.distribute.Strategy) -> tuple[int, int]:
    """Which worker this process is, from 0, and how many there are; the first one is the chief."""
    resolver = strategy.cluster_resolver
    if not resolver or not resolver.task_type:
        return 0, 1
    tasks = resolver.cluster_spec().as_dict()
    chiefs = len(tasks.get("chief", ()))
    return resolver.task_id + (chiefs if resolver.task_type == "worker" else 0), chiefs + len(tasks.get("worker", ()))


def is_chief(strategy: tf.distribute.Strategy) -> bool:
    """Whether this process is the one that writes what training leaves behind."""
    return worker(strategy)[0] == 0


@dataclass(frozen=True)
class BatchSizes:
    """How a split is cut.

    Attributes:
        replica: examples that a device gets in a step.
        local: examples that this worker's devices get in a step.
        steps: of an epoch.
        examples: that this worker takes in an epoch.
    """

    replica: int
    local: int
    steps: int
    examples: int


def batch_sizes(strategy: tf.distribute.Strategy, count: int, batch_size: int) -> BatchSizes:
    """Cuts an epoch into steps.

    On one device the last step of an epoch is a smaller one where the split is no multiple. On several all steps are
    full, as they would come apart otherwise: what is left over another epoch will take.

    Args:
        strategy: over which a step is spread.
        count: examples of this worker.
        batch_size: of all devices of all workers together.

    Raises:
        TrainingError: if the batch can't be divided among the devices.
    """
    replicas = strategy.num_replicas_in_sync
    if replicas == 1:
        return BatchSizes(batch_size, batch_size, math.ceil(count / batch_size), count)
    if batch_size % replicas:
        raise TrainingError(
            f"trainer.batch_size: {batch_size} can't be divided among {replicas} devices. "
            f"Give a multiple, such as {math.ceil(batch_size / replicas) * replicas}."
        )
    _, workers = worker(strategy)
    here = replicas // workers
    shares = strategy.run(lambda: tf.constant(count / here, tf.float64))
    total = round(float(strategy.reduce(tf.distribute.ReduceOp.SUM, shares, axis=None)))
    local = batch_size // workers
    steps = max(1, total // batch_size)
    return BatchSizes(batch_size // replicas, local, steps, steps * local)


def policy(precision: Precision) -> str:
    """Keras's name of the precision to compute in; weights are float32 always.

    ``auto`` is mixed_float16 on GPUs with tensor cores, mixed_bfloat16 on TPUs and on CPUs that are faster in it, else
    float32.
    """
    if precision != "auto":
        return precision
    if gpus := tf.config.list_physical_devices("GPU"):
        capability = tf.config.experimental.get_device_details(gpus[0]).get("compute_capability", (0, 0))
        return "mixed_float16" if capability[0] >= _TENSOR_CORES else "float32"
    if tf.config.list_physical_devices("TPU"):
        return "mixed_bfloat16"
    return "mixed_bfloat16" if _bfloat16_is_faster(_cpu_flags()) else "float32"


def _bfloat16_is_faster(flags: set[str]) -> bool:
    """Whether a processor with these features computes faster in bfloat16 than in float32.

    Intel's processors with AMX do; where a virtual machine hides AMX, what is left of bfloat16 is slower: convolutions
    of oneDNN at 0.63 of float32's speed, training at 0.7 to 0.8 (measured on an Emerald Rapids without ``amx_bf16``;
    ``benchmarks/training.py``). They are known by ``avx512_fp16``, which came with AMX.
    """
    return "amx_bf16" in flags or ("avx512_bf16" in flags and "avx512_fp16" not in flags)


def _cpu_flags() -> set[str]:
    """The processor's features, as Linux names them."""
    try:
        lines = _CPU_FLAGS.read_text().splitlines()
    except OSError:
        return set()
    return set(next((line.partition(":")[2] for line in lines if line.startswith("flags")), "").split())
