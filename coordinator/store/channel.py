"""Calls to an etcd cluster: one deadline each, every endpoint tried, a token renewed when it has run out."""

from __future__ import annotations

import asyncio
import logging
from typing import NoReturn, TypeVar

import msgspec

from coordinator.errors import Ambiguous, ConfigError, StoreError, StoreUnavailable
from coordinator.store import wire
from coordinator.store.access import Access, Endpoint
from coordinator.store.floor import Check, Verdict, judge, refusal
from coordinator.store.transport import NotSent, Refused, ReplyLost, Transport

log = logging.getLogger(__name__)
T = TypeVar("T")

ATTEMPT_TIMEOUT_S = 2.0
"""Of a call that may be repeated: then another endpoint gets its turn."""
PAUSE_S = 0.05
PAUSE_MAX_S = 0.5

UNAUTHENTICATED = 16
FAILED_PRECONDITION = 9
_PASSING = frozenset({1, 2, 4, 13, 14})
"""gRPC: cancelled, unknown, deadline exceeded, internal, unavailable. etcd is not well; it may be better elsewhere."""
DECIDED = frozenset({3, 5, 7, 9, 11, 12, 16})
"""gRPC codes after which a write certainly was not applied."""
_NEVER_BEGUN = ("no leader", "too many requests", "Error while dialing", "there is no address available")
"""Texts that etcd and its gateway answer before they propose a write. Others of code 14 (`request timed out`,
`server stopped`) may come after it, and so may `database space exceeded`: the quota is checked once more after apply.
(server/etcdserver/api/v3rpc/rpctypes/error.go, apply.go)"""


class Channel:
    """A cluster behind one `Transport`. After a failure the next endpoint is the preferred one for everybody. No member
    is called before its version was seen to be fit (`check`)."""

    def __init__(self, transport: Transport, access: Access, *, call_timeout: float, check: Check = Check.OFF) -> None:
        self.transport = transport
        self.check = check
        self.endpoints = access.endpoints
        self.authenticates = bool(access.user)
        self._credentials = msgspec.json.encode({"name": access.user, "password": access.password})
        self._call_timeout = call_timeout
        self._unseen = set(access.endpoints) if check is not Check.OFF else set()
        self._unfit: dict[str, Verdict] = {}
        """By URL. They are done without, and asked again: a member may have been upgraded."""
        self._preferred = 0
        self._token = ""
        self._login = asyncio.Lock()

    @property
    def endpoint(self) -> Endpoint:
        """The one to try first."""
        return self.endpoints[self._preferred]

    def avoid(self, endpoint: Endpoint) -> None:
        """It failed: prefer the next, unless another call has found that out already."""
        if endpoint == self.endpoint:
            self._preferred = (self._preferred + 1) % len(self.endpoints)

    async def rpc(self, path: str, body: wire.Json, reply: type[T], *, repeatable: bool = True) -> T:
        """POST and decode. A call that is not `repeatable` is sent again only when it certainly was not applied.

        Raises `Ambiguous` when a call that is not repeatable may or may not have been applied, `StoreUnavailable` when
        no endpoint answered in time, `Refused` when etcd said no.
        """
        encoded = msgspec.json.encode(body)
        deadline = asyncio.get_running_loop().time() + self._call_timeout
        answer = await self._until_answered(path, encoded, deadline, repeatable)
        try:
            return msgspec.json.decode(answer, type=reply, strict=False)
        except msgspec.DecodeError as error:
            raise StoreError(
                f"etcd's answer to {path} does not decode: {error}", remedy="is this etcd >= 3.4?"
            ) from None

    async def version(self, endpoint: Endpoint) -> str:
        """Raises `StoreUnavailable`."""
        try:
            return await self.transport.version(endpoint, timeout=self._call_timeout)
        except (NotSent, ReplyLost) as error:
            raise StoreUnavailable(str(error)) from error

    async def admit(self, endpoint: Endpoint, limit: float = ATTEMPT_TIMEOUT_S) -> None:
        """Before each call: a member's version is asked for once, within `limit` seconds. Raises `NotSent` where it
        does not say or must not be used, so that another has its turn; `ConfigError` where none at all may be used."""
        if endpoint not in self._unseen:
            return
        try:
            version = await self.transport.version(endpoint, timeout=limit)
        except ReplyLost as error:
            raise NotSent(str(error)) from error
        verdict = judge(version, auth=self.authenticates, check=self.check)
        if (refused := refusal({endpoint.url: verdict})) is not None:
            self._do_without(endpoint, verdict, refused)
        self._unfit.pop(endpoint.url, None)
        if endpoint in self._unseen:  # no other call has warned of it meanwhile
            self._unseen.discard(endpoint)
            for warning in verdict.warnings:
                log.warning("%s: %s", endpoint.url, warning)

    def _do_without(self, endpoint: Endpoint, verdict: Verdict, refused: ConfigError) -> NoReturn:
        if self._unfit.get(endpoint.url) != verdict:
            log.error("%s", refused)
        self._unfit[endpoint.url] = verdict
        if len(self._unfit) == len(self.endpoints):
            raise refusal(self._unfit) or refused
        raise NotSent(str(refused)) from refused

    async def token(self, endpoint: Endpoint) -> str:
        """The token to send, handed out by `endpoint`, who was admitted; empty without a user.

        Raises `NotSent` where it hands none out, `Refused` for a wrong user or password."""
        if not self.authenticates:
            return ""
        try:
            async with asyncio.timeout(ATTEMPT_TIMEOUT_S), self._login:
                if not self._token:
                    self._token = await self._authenticate(endpoint)
                return self._token
        except (TimeoutError, ReplyLost) as error:
            raise NotSent(f"etcd at {endpoint.url} did not answer a login: {error}") from error

    def distrust(self, token: str) -> None:
        """etcd did not take this token: the next call gets a new one."""
        if token == self._token:
            self._token = ""

    async def close(self) -> None:
        await self.transport.close()

    async def _until_answered(self, path: str, body: bytes, deadline: float, repeatable: bool) -> bytes:
        clock = asyncio.get_running_loop().time
        problem: StoreError | None = None
        attempt = 0
        relogins = 1
        while (left := deadline - clock()) > 0:
            endpoint, token = self.endpoint, ""
            try:
                await self.admit(endpoint, min(left, ATTEMPT_TIMEOUT_S))
                token = await self.token(endpoint)
                if (left := deadline - clock()) <= 0:
                    break
                limit = min(left, ATTEMPT_TIMEOUT_S) if repeatable else left
                return await self.transport.post(endpoint, path, body, timeout=limit, token=token)
            except Refused as error:
                if stale_token(error) and token and relogins:
                    relogins -= 1
                    self.distrust(token)
                    continue
                problem = _to_repeat(error, repeatable)
            except ReplyLost as error:
                self.avoid(endpoint)
                if not repeatable:
                    raise Ambiguous(f"{path}: {error}", remedy="read back what it wrote, do not resend") from error
                problem = error
            except NotSent as error:
                problem = error
            self.avoid(endpoint)
            attempt += 1
            await self._pause(attempt, deadline)
        raise StoreUnavailable(f"no etcd endpoint answered {path} in {self._call_timeout:g} s: {problem}") from problem

    async def _pause(self, attempt: int, deadline: float) -> None:
        """Only once every endpoint had its turn, and longer each time round."""
        if attempt % len(self.endpoints) == 0:
            pause = min(PAUSE_S * 2 ** (attempt // len(self.endpoints) - 1), PAUSE_MAX_S)
            left = deadline - asyncio.get_running_loop().time()
            await asyncio.sleep(min(pause, max(left, 0)))

    async def _authenticate(self, endpoint: Endpoint) -> str:
        path, limit = "/auth/authenticate", ATTEMPT_TIMEOUT_S
        try:
            answer = await self.transport.post(endpoint, path, self._credentials, timeout=limit, token="")
        except Refused as error:
            if error.code == FAILED_PRECONDITION:
                log.warning("a user for etcd is configured, but etcd's authentication is off")
                self.authenticates = False
                return ""
            if error.code in _PASSING:
                raise NotSent(str(error)) from error
            raise
        return _decode(path, answer, wire.AuthReply).token


def _decode(path: str, answer: bytes, reply: type[T]) -> T:
    try:
        return msgspec.json.decode(answer, type=reply, strict=False)
    except msgspec.DecodeError as error:
        raise StoreError(f"etcd's answer to {path} does not decode: {error}", remedy="is this etcd >= 3.4?") from None


def stale_token(error: Refused) -> bool:
    return error.code == UNAUTHENTICATED or "revision of auth store is old" in error.text


def _to_repeat(error: Refused, repeatable: bool) -> StoreError:
    """The refusal, where the call may be sent again. Raises what the caller is to see otherwise."""
    if error.code in DECIDED:
        raise error
    if any(text in error.text for text in _NEVER_BEGUN):
        return error
    if not repeatable:
        raise Ambiguous(str(error), remedy="read back what it wrote, do not resend") from error
    if error.code not in _PASSING:
        raise error
    return error
