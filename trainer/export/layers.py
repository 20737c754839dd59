"""Compares layers of a network by the harm that a lower precision does in each.

Some layers may spoil the rest, such as depthwise convolutions, whose channels have very different ranges: the effect of
each is measured, by taking it alone back to float32.
"""

import logging
import time
from collections.abc import Callable, Sequence

import numpy as np

_MAX_SECONDS = 120  # of measuring the layers' effects

_log = logging.getLogger("trainer")


def rank_layers(names: Sequence[str], measure_error: Callable[[Sequence[str]], float]) -> list[str]:
    """Returns the names of layers, those first whose lower precision changes the outputs most.

    Where time runs out these are not all: those that were measured until then lie anywhere in the network.

    Args:
        names: of all layers that have the lower precision.
        measure_error: from the names of layers that are taken back to float32 to how far the outputs are from the
            network's.
    """
    effects: dict[str, float] = {}
    start, error = time.monotonic(), measure_error([])
    for number in np.random.default_rng(0).permutation(len(names)):
        if time.monotonic() - start > _MAX_SECONDS:
            _log.warning(
                "the effect of %d of %d layers was measured: the others are not taken back", len(effects), len(names)
            )
            break
        effects[names[number]] = error - measure_error([names[number]])
    return sorted(effects, key=lambda name: -effects[name])
