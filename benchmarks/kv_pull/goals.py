"""Floors and aims of `kv_pull`."""

from __future__ import annotations

from benchmarks.figures import Goal

CASES = {"4to2": (4, 2), "4to1": (4, 1), "8to2": (8, 2), "2to4": (2, 4)}
"""(prefill, decode) tensor-parallel sizes of a model with 8 KV heads."""

GOALS = {
    **{f"hetero_over_contiguous_{case}": Goal(1.25, 1.07, at_least=False) for case in CASES},
    "local_over_memcpy": Goal(1.2, 1.5, at_least=True),
    "tcp_over_mooncake": Goal(1.0, 1.5, at_least=True),
    "cpu_over_mooncake": Goal(1.0, 0.4, at_least=False),
    "decode_tpot_inflation": Goal(1.05, 1.01, at_least=False),
}
