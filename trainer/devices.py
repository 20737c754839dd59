"""Devices: how training is distributed over them, and in which precision they compute."""

import contextlib
import importlib.util
import json
import logging
import math
import os
from dataclasses import dataclass

import tensorflow as tf

from imagepipe.base.errors import TrainingError
from imagepipe.base.processor import read_cpu_flags
from imagepipe.deploy.openvino_form import get_core
from trainer.config import Distribution, Precision, ServingConfig, TrainerConfig, find_backbone

_MIN_TENSOR_CORES = 7  # NVIDIA's compute capability since which there are tensor cores (Volta)

_log = logging.getLogger("trainer")


def set_up_process(distribution: Distribution) -> tf.distribute.Strategy:
    """Prepares this process for training, and returns the strategy that distributes it.

    Call it before anything else runs on a device.

    Raises:
        TrainingError: if the environment asks for a training on several machines.
    """
    _refuse_several_machines(os.environ.get("TF_CONFIG") or "{}")
    strategy = make_strategy(distribution)
    _log.setLevel(logging.INFO)  # the log is where people look for the epochs
    if tf.config.list_physical_devices("GPU"):
        tf.config.experimental.enable_op_determinism()  # on CPUs the same seed gives the same weights without it
    return strategy


def check_engine(serving: ServingConfig) -> None:
    """Checks that what is configured can be written on this machine, before the training.

    Raises:
        TrainingError: a package is missing, or the processor computes in another precision.
    """
    is_int8 = serving.precision == "int8"
    for package, is_needed in (("openvino", serving.engine == "openvino" or is_int8), ("nncf", is_int8)):
        if is_needed and importlib.util.find_spec(package) is None:
            raise TrainingError(
                f"serving.engine: {serving.engine} with serving.precision: {serving.precision} needs {package}, which "
                "is not installed: pip install 'imagepipe-tfx[openvino]'"
            )
    if serving.engine == "openvino" and serving.precision == "bfloat16" and not has_openvino_bfloat16():
        raise TrainingError(
            "serving.engine: openvino with serving.precision: bfloat16 needs a processor with bfloat16 (AVX512-BF16, "
            "AMX); here OpenVINO would emulate it, slowly. Try precision: auto, or int8."
        )


def has_openvino_bfloat16() -> bool:
    """Returns whether OpenVINO, which has to be installed, computes in bfloat16 here without emulating it."""
    return "BF16" in get_core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


def make_strategy(distribution: Distribution) -> tf.distribute.Strategy:
    """Returns the strategy; call it before anything runs on a device.

    Args:
        distribution: ``none``; ``mirrored`` over all devices of this machine; ``auto``: mirrored if there is more than
            one GPU, else none.
    """
    gpus = tf.config.list_physical_devices("GPU")
    for gpu in gpus:
        with contextlib.suppress(RuntimeError):  # in use already: by Transform, in the same process
            tf.config.experimental.set_memory_growth(gpu, True)
    if distribution == "mirrored" or (distribution == "auto" and len(gpus) > 1):
        devices = tf.config.list_logical_devices("GPU") or tf.config.list_logical_devices("CPU")
        return tf.distribute.MirroredStrategy([device.name for device in devices])
    return tf.distribute.get_strategy()


def _refuse_several_machines(tf_config: str) -> None:
    """Refuses a ``TF_CONFIG`` that names several machines: each would train on all images and write the same files."""
    try:
        cluster = json.loads(tf_config).get("cluster", {})
        machines = sum(len(addresses) for addresses in cluster.values())
    except (ValueError, AttributeError, TypeError) as error:
        raise TrainingError(
            f"TF_CONFIG can't be read ({type(error).__name__}: {error}): {tf_config[:100]!r}. Remove the variable; a "
            "training runs on one machine and doesn't need it."
        ) from error
    if machines > 1:
        raise TrainingError(
            f"TF_CONFIG names {machines} machines ({', '.join(cluster)}): a training runs on one machine, on all of "
            "its GPUs (trainer.distribution: mirrored). Start it on one, without the variable."
        )


@dataclass(frozen=True)
class BatchSizes:
    """How an epoch is divided.

    Attributes:
        replica: examples per device and step.
        steps: steps per epoch.
        examples: examples that are read per epoch.
    """

    replica: int
    steps: int
    examples: int


def divide_epoch(strategy: tf.distribute.Strategy, count: int, batch_size: int) -> BatchSizes:
    """Divides an epoch into steps.

    On one device the last batch of an epoch is smaller if the split is no multiple of the batch size. On several, every
    replica gets a full batch in each step, as all must take the same number of steps; leftovers are used in a later
    epoch.

    Args:
        strategy: the strategy that distributes a step.
        count: number of examples.
        batch_size: examples per step, over all devices.

    Raises:
        TrainingError: if the batch can't be divided among the devices.
    """
    replicas = strategy.num_replicas_in_sync
    if replicas == 1:
        return BatchSizes(batch_size, math.ceil(count / batch_size), count)
    if batch_size % replicas:
        raise TrainingError(
            f"trainer.batch_size: {batch_size} can't be divided among {replicas} devices. "
            f"Give a multiple, such as {math.ceil(batch_size / replicas) * replicas}."
        )
    steps = max(1, count // batch_size)
    return BatchSizes(batch_size // replicas, steps, steps * batch_size)


def choose_precision(precision: Precision, is_depthwise: bool = False) -> str:
    """Returns Keras's name of the dtype policy to compute in; weights are always float32.

    Args:
        precision: ``auto`` is mixed_float16 on GPUs with tensor cores, mixed_bfloat16 on TPUs and on CPUs that are
            faster in it, else float32.
        is_depthwise: see ``backbones.Backbone``. On CPUs such a network is trained in float32: a MobileNetV2 that was
            fine-tuned on 450 flowers in bfloat16 lost two points of accuracy, and was no faster.
    """
    if precision != "auto":
        return precision
    if gpus := tf.config.list_physical_devices("GPU"):
        capability = tf.config.experimental.get_device_details(gpus[0]).get("compute_capability", (0, 0))
        return "mixed_float16" if capability[0] >= _MIN_TENSOR_CORES else "float32"
    if tf.config.list_physical_devices("TPU"):
        return "mixed_bfloat16"
    return "mixed_bfloat16" if not is_depthwise and _is_bfloat16_faster(read_cpu_flags()) else "float32"


def choose_training_precision(config: TrainerConfig) -> str:
    """Returns Keras's name of the dtype policy to train in, see ``choose_precision``."""
    return choose_precision(config.precision, find_backbone(config.backbone).is_depthwise)


def _is_bfloat16_faster(flags: set[str]) -> bool:
    """Returns whether a processor with these features computes faster in bfloat16 than in float32.

    Intel's processors with AMX do; if a virtual machine hides AMX, what remains of bfloat16 is slower: convolutions of
    oneDNN at 0.63 of float32's speed, training at 0.7 to 0.8 (measured on an Emerald Rapids without ``amx_bf16``;
    ``benchmarks/training.py``). Such machines are recognized by ``avx512_fp16``, which came with AMX.
    """
    return "amx_bf16" in flags or ("avx512_bf16" in flags and "avx512_fp16" not in flags)
