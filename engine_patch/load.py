"""`vllm.stat_logger_plugins`: from vLLM's own statistics how full the KV cache is, for the load key, and how long
prompts took, for `kv_worth`."""

from __future__ import annotations

from typing import Any

from vllm.v1.metrics.loggers import StatLoggerBase

from engine_patch.settings import endpoints


class KvUse(StatLoggerBase):  # type: ignore[misc]  # vLLM is not followed
    """Runs in the API server after every step. Does nothing where no agent runs."""

    def __init__(self, vllm_config: Any, engine_index: int = 0) -> None:
        self._agent = None
        if endpoints():
            from engine_patch import start

            self._agent = start.agent_of_this_process()

    def record(
        self, scheduler_stats: Any, iteration_stats: Any, mm_cache_stats: Any = None, engine_idx: int = 0
    ) -> None:
        if self._agent is not None and scheduler_stats is not None:
            self._agent.kv_use(scheduler_stats.kv_cache_usage)
        if self._agent is not None and iteration_stats is not None:
            for one in iteration_stats.finished_requests:
                self._agent.prefilled(one.num_prompt_tokens - one.num_cached_tokens, one.prefill_time)

    def log_engine_initialized(self) -> None:
        if self._agent is not None:
            self._agent.expect_gate()
