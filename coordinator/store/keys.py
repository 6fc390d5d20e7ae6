"""Every key under `/vnpu/v1/`, and how a key and its bytes become a fact.

Ids are percent-escaped, so that a model id may hold a slash. Each writer writes only under its own prefix, so that
etcd's RBAC can hold it to that (docs/protocol.md has the table).
"""

from __future__ import annotations

from functools import lru_cache
from urllib.parse import quote, unquote

ROOT = "/vnpu/v1/"
EPOCH = ROOT + "epoch"
HEARTBEAT = ROOT + "heartbeat"
ELECTION = ROOT + "coordinator/election/"
COORDINATORS = ROOT + "coordinators/"
DECISIONS = ROOT + "decisions/"


@lru_cache(maxsize=1024)  # the same few ids in every change that everybody reads
def escape(identifier: str) -> str:
    """Percent-escape everything but unreserved characters, so that an id is one path segment."""
    return quote(identifier, safe="")


def unescape(segment: str) -> str:
    return unquote(segment)


def daemon(node: str) -> str:
    return f"{ROOT}nodes/{escape(node)}/daemon"


def device(device_id: str) -> str:
    node, dev = split_device(device_id)
    return f"{ROOT}nodes/{escape(node)}/devices/{escape(dev)}"


def process(node: str, engine: str) -> str:
    """What the supervisor of `node` says of the process of `engine`."""
    return f"{ROOT}nodes/{escape(node)}/engines/{escape(engine)}"


def process_order(engine: str) -> str:
    return f"{ROOT}processes/{escape(engine)}"


def token(device_id: str) -> str:
    node, dev = split_device(device_id)
    return f"{ROOT}tokens/{escape(node)}/{escape(dev)}"


def seat(device_id: str) -> str:
    node, dev = split_device(device_id)
    return f"{ROOT}seats/{escape(node)}/{escape(dev)}"


def spec(engine: str) -> str:
    return f"{ROOT}engines/{escape(engine)}/spec"


def residency(engine: str) -> str:
    return f"{ROOT}engines/{escape(engine)}/residency"


def load(engine: str) -> str:
    return f"{ROOT}engines/{escape(engine)}/load"


def seed(engine: str, fingerprint: str) -> str:
    return f"{ROOT}engines/{escape(engine)}/seed/{escape(fingerprint)}"


def demand(gateway: str, model: str) -> str:
    return f"{ROOT}demand/{escape(gateway)}/{escape(model)}"


def refusal(model: str) -> str:
    return f"{ROOT}refusals/{escape(model)}"


def policy(model: str) -> str:
    return f"{ROOT}policy/{escape(model)}"


def decision(n: int) -> str:
    return f"{ROOT}decisions/{n:06d}"


def coordinator(identifier: str) -> str:
    return f"{ROOT}coordinators/{escape(identifier)}"


def split_device(device_id: str) -> tuple[str, str]:
    """`<node>/<device>` -> (node, device); the device part holds no slash."""
    node, _, dev = device_id.rpartition("/")
    return node, dev
