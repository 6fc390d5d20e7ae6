"""A request of a model that is served by two groups: its prompt goes to a prefill engine first, whose ticket then goes
with the request to a decode engine.

The parameters of the transfer are made here; a client's own never get so far (`gateway.body`). Whatever goes wrong with
the prefill engine costs time only: the decode engine then computes the prompt itself.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping

import msgspec

from coordinator.gateway.body import Ask
from coordinator.gateway.call import Call
from coordinator.gateway.dispatch import Dispatcher
from coordinator.gateway.problem import Problem

log = logging.getLogger(__name__)

PARAM, OFFER = "vnpu", "offer"
"""What a prefill engine is asked with, and answers under (docs/kv-transfer.md)."""
WAIT_S = 10.0
"""How long a prefill engine that is away is waited for; it costs less to compute a prompt elsewhere."""
ANSWER_S = 120.0
MAX_TICKET = 8 << 20


class _Params(msgspec.Struct):
    vnpu: str = ""


class _Answer(msgspec.Struct):
    kv_transfer_params: _Params | None = None


_decode = msgspec.json.Decoder(_Answer).decode


class Prefill:
    """`groups`: the prefill group of each model that has one."""

    def __init__(self, groups: Mapping[str, str], dispatcher: Dispatcher, clock: Callable[[], float]) -> None:
        self.groups = groups
        self._dispatcher = dispatcher
        self._clock = clock

    def groups_of(self, model: str) -> tuple[str, ...]:
        """The groups that serve it: itself, and its prefill group where it has one."""
        group = self.groups.get(model)
        return (model,) if group is None else (model, group)

    async def through(self, call: Call, ask: Ask) -> Call:
        """The call as it goes to the decode engine: with a ticket where there is one. Meanwhile the decode engine is
        wanted too, so that it is woken beside the prefill engine. Raises Problem (503) where too many wait for it."""
        group = self.groups.get(call.model)
        if group is None or not self._dispatcher.is_there(group):
            return call
        body = ask.first_token(group, {PARAM: OFFER})
        if body is None:
            return call
        first = msgspec.structs.replace(call, model=group, body=body, deadline=self._deadline(call))
        with self._dispatcher.wanting(call.model):
            ticket = await self._ticket(first)
        if not ticket:
            return call
        return msgspec.structs.replace(call, body=ask.encode(call.model, {PARAM: ticket}))

    async def _ticket(self, call: Call) -> str:
        """Empty: there is none."""
        try:
            async with asyncio.timeout(ANSWER_S):
                answer = await self._dispatcher.ask(call, MAX_TICKET)
            params = _decode(answer).kv_transfer_params
        except (Problem, TimeoutError, msgspec.MsgspecError) as error:
            log.info("request %s is prefilled where it is decoded: %s", call.engine_id, error or "no answer in time")
            return ""
        return params.vnpu if params is not None else ""

    def _deadline(self, call: Call) -> float:
        return min(call.deadline, self._clock() + WAIT_S)
