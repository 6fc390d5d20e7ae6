"""Is this etcd fit for use? All of its members are asked at a start, so that one start names every fault.

A channel asks again before its first call to a member (`Channel.admit`): one that was away now may be another version.
"""

from __future__ import annotations

import asyncio
import logging

from coordinator.errors import StoreUnavailable
from coordinator.store.etcd import EtcdStore
from coordinator.store.floor import judge, refusal

log = logging.getLogger(__name__)


async def preflight(store: EtcdStore) -> dict[str, str]:
    """Version by endpoint URL, of those that answer; warnings are logged.

    Raises `ConfigError` naming every member that must not be used, `StoreUnavailable` when none answers.
    """
    channel = store.channel
    answers = await asyncio.gather(*map(channel.version, channel.endpoints), return_exceptions=True)
    versions: dict[str, str] = {}
    for endpoint, answer in zip(channel.endpoints, answers, strict=True):
        if isinstance(answer, str):
            versions[endpoint.url] = answer
        elif isinstance(answer, StoreUnavailable):
            log.warning("etcd member %s does not answer: %s", endpoint.url, answer)
        else:
            raise answer
    if not versions:
        raise StoreUnavailable("no etcd endpoint answers", remedy="check VNPU_ETCD_ENDPOINTS and that etcd runs")
    verdicts = {url: judge(v, auth=channel.authenticates, check=channel.check) for url, v in versions.items()}
    if (error := refusal(verdicts)) is not None:
        raise error
    return versions
