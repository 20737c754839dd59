"""Evaluator: TFX's, for a champion that may not exist and in a memory that stays bounded."""

import contextlib
from collections.abc import Iterator
from typing import Any

import tfx.components
from tfx.components.evaluator import executor
from tfx.dsl.components.base import executor_spec
from tfx.dsl.io import fileio
from tfx.types import artifact_utils, standard_component_specs
from tfx.utils import path_utils
from tfx_bsl.coders import batch_util

_BASELINE = standard_component_specs.BASELINE_MODEL_KEY
_BATCH_SIZE = 32  # from which on InceptionV3 gets no faster on a CPU


@contextlib.contextmanager
def _fixed_batches(size: int) -> Iterator[None]:
    """Makes TFXIO read batches of ``size`` Examples.

    By default Beam grows them to up to 1,000, whatever a second is enough for: with photos of some megabytes and
    decoded tensors of many more that is more than a worker's memory. TFX's Evaluator has no argument for it.
    """
    original = batch_util.GetBatchElementsKwargs
    batch_util.GetBatchElementsKwargs = lambda _batch_size, *args: original(size, *args)
    try:
        yield
    finally:
        batch_util.GetBatchElementsKwargs = original


class Executor(executor.Executor):
    """Evaluates and validates the candidate, against the champion if there is one."""

    def Do(self, input_dict: Any, output_dict: Any, exec_properties: dict[str, Any]) -> None:  # noqa: N802 (TFX's name)
        """Writes the evaluation and the blessing; see TFX's executor for the arguments."""
        champion = path_utils.serving_model_path(artifact_utils.get_single_uri(input_dict[_BASELINE]))
        if not fileio.exists(champion):
            input_dict = {key: value for key, value in input_dict.items() if key != _BASELINE}
        with _fixed_batches(_BATCH_SIZE):
            super().Do(input_dict, output_dict, exec_properties)


class Evaluator(tfx.components.Evaluator):
    """Takes what TFX's Evaluator takes; an empty ``baseline_model`` means that there is none."""

    EXECUTOR_SPEC = executor_spec.BeamExecutorSpec(Executor)
