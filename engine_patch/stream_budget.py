"""PURE: how many graphs an engine may capture with its share of a device's hardware streams (Ascend; docs/ascend.md).

A graph that is captured piece by piece takes a stream for each layer and one more, and as many again twice for each
group of ranks that communicates in it: what vllm-ascend reckoned with while it bounded captures itself
(`update_aclgraph_sizes`, until 0.17). What the engine needs besides graphs comes off first.
"""

from __future__ import annotations

from collections.abc import Sequence

from coordinator.errors import ConfigError

BESIDES = 40
"""Streams an engine needs without any graph, and as many for each group of ranks."""


def streams_of(sizes: int, layers: int, *, ranks: int) -> int:
    """Streams of an engine of `layers` decoder layers that captures `sizes` graphs, on each of `ranks` devices."""
    groups = 1 if ranks > 1 else 0
    return BESIDES * (1 + groups) + sizes * (layers + 1) * (1 + 2 * groups)


def sizes_within(budget: int, sizes: Sequence[int], layers: int, *, ranks: int) -> list[int]:
    """Those of `sizes` (ascending) that `budget` streams suffice for: the smallest and the largest, and evenly between.

    Raises:
        ConfigError: not even one.
    """
    count = next((n for n in range(len(sizes), 0, -1) if streams_of(n, layers, ranks=ranks) <= budget), 0)
    if not count:
        raise ConfigError(
            f"a budget of {budget} streams is not enough for one captured graph of {layers} layers, which takes "
            f"{streams_of(1, layers, ranks=ranks)}",
            remedy="raise `streams` of this model, or give --enforce-eager",
        )
    if count == 1:
        return [sizes[0]]
    step = (len(sizes) - 1) / (count - 1)
    return [sizes[round(i * step)] for i in range(count)]
