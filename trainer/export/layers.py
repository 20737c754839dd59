"""Chooses layers of a network that stay in float32 where all of them in a lower precision do harm.

Some layers may spoil the rest, such as depthwise convolutions, whose channels have very different ranges: the effect of
each is measured, by taking it alone back.
"""

import logging
import math
import time
from collections.abc import Callable, Sequence

_MAX_SECONDS = 120  # of measuring the layers' effects

_log = logging.getLogger("trainer")


def rank_layers(names: Sequence[str], measure_error: Callable[[Sequence[str]], float]) -> list[str]:
    """Returns the names of layers, those first whose lower precision changes the outputs most.

    Args:
        names: of all layers that have the lower precision.
        measure_error: from the names of layers that are taken back to float32 to how far the outputs are from the
            network's.
    """
    effects: dict[str, float] = {}
    start, error = time.monotonic(), measure_error([])
    for name in names:
        if time.monotonic() - start > _MAX_SECONDS:
            _log.warning(
                "the effect of %d of %d layers was measured: the others are not taken back", len(effects), len(names)
            )
            break
        effects[name] = error - measure_error([name])
    return sorted(effects, key=lambda name: -effects[name])


def choose_layers(ranked: Sequence[str], share: float) -> list[str]:
    """Returns the first ``share`` of them, one at least."""
    return list(ranked[: math.ceil(share * len(ranked))])
