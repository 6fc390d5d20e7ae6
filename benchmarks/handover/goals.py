"""Floors and aims of `handover`."""

from __future__ import annotations

from benchmarks.figures import Goal

GOALS = {
    "order_over_watch_p50": Goal(2, 1.15, at_least=False),
    "order_over_watch_p99": Goal(3, 1.5, at_least=False),
    "order_over_watch_remote_p50": Goal(3, 2.1, at_least=False),
    "takeover_notice_over_ttl": Goal(0.1, 0.01, at_least=False),
    "takeover_lease_over_ttl": Goal(1.3, 1.05, at_least=False),
    "failover_over_ttl": Goal(1.3, 1.05, at_least=False),
    "transactions_per_switch": Goal(4, 3, at_least=False),
}
