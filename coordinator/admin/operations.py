"""The operators' API as one table: what is served and what the OpenAPI document says is read from here."""

from __future__ import annotations

import msgspec

from coordinator.admin import answers
from coordinator.admin.policies import Patch
from coordinator.reload import Report

MODEL = "/v1/models/{model}"


class Query(msgspec.Struct, frozen=True):
    """A query parameter, never required."""

    name: str
    about: str
    type: str = "integer"


class Operation(msgspec.Struct, frozen=True):
    """One route. `handler` names a method of `Handlers`; `answer` None: server-sent events. Whatever is no GET needs
    the role `operate`."""

    method: str
    path: str
    handler: str
    about: str
    answer: type[msgspec.Struct] | None
    body: type[msgspec.Struct] | None = None
    query: tuple[Query, ...] = ()
    status: int = 200

    @property
    def route(self) -> str:
        """As aiohttp's router spells it: a model's id may hold slashes."""
        return self.path.replace("{model}", "{model:.+}")


_LIMIT = Query("limit", "how many, the newest first")
_OF = Query("model", "only those about this model, for its requests, or in which one of its engines stayed", "string")
OPERATIONS = (
    Operation("GET", "/v1/state", "state", "everything this coordinator knows", answers.Whole),
    Operation("GET", "/v1/devices", "devices", "devices, who holds what on them, what is going on", answers.Devices),
    Operation("GET", "/v1/tokens", "tokens", "each device's token: holder, fence, whether it is over", answers.Tokens),
    Operation("GET", "/v1/engines", "engines", "engines: phase, queue, bytes, errors", answers.Engines),
    Operation("GET", "/v1/models", "models", "models: settings, engines, who waits", answers.Models),
    Operation("GET", "/v1/policy", "eviction", "the policy, its shadow, and where they differed", answers.Eviction),
    Operation("GET", "/v1/history", "history", "device memory over time, and the latest switches", answers.History),
    Operation(
        "GET", "/v1/decisions", "decisions", "decisions with every candidate's score", answers.Decisions,
        query=(_LIMIT, _OF),
    ),
    Operation("GET", "/v1/events", "events", "what happens, as it happens (server-sent)", None),
    Operation(
        "GET", f"{MODEL}/why", "why", "why a model came, stayed or left, in sentences", answers.WhyAnswer,
        query=(_LIMIT,),
    ),
    Operation("GET", MODEL, "model", "one model: as configured, overridden, and as it is", answers.OneModel),
    Operation("POST", f"{MODEL}/sleep", "order", "ask once for an offload", answers.OrderAnswer, status=202),
    Operation("POST", f"{MODEL}/wake", "order", "ask once for a restore", answers.OrderAnswer, status=202),
    Operation("POST", f"{MODEL}/pin", "named_policy", "never a victim from now on", answers.PolicyAnswer),
    Operation("POST", f"{MODEL}/unpin", "named_policy", "may be a victim again", answers.PolicyAnswer),
    Operation("POST", f"{MODEL}/drain", "named_policy", "take nothing new, end what runs, leave", answers.PolicyAnswer),
    Operation("POST", f"{MODEL}/resume", "named_policy", "end a drain", answers.PolicyAnswer),
    Operation(
        "PATCH", f"{MODEL}/policy", "policy", "pin, priority, keep-alive, objective, limits", answers.PolicyAnswer,
        body=Patch,
    ),
    Operation("POST", "/v1/config/reload", "reload", "read the configuration file again", Report),
)  # fmt: skip
