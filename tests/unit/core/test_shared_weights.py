"""What an engine needs of a device on which weights of its content lie."""

from __future__ import annotations

import pytest

from coordinator.core.events import DeviceSeen, SpecSeen
from coordinator.core.ledger import Ledger
from coordinator.core.model import Bytes, Device, DeviceId, EngineId, Holder, Owner, Shared, Spec

D = DeviceId("n/1")
FOOTPRINT = Bytes(weights=38, kv=7, overhead=3)
WHOLE, WITHOUT_WEIGHTS = 40 + 8 + 3, 8 + 3
"""In chunks of 4."""


def seen(digest: str, owned: Bytes) -> tuple[Ledger, EngineId]:
    """Engine `a` with that digest on its second device owns pages there; somebody offers the content `same`."""
    a, ledger = Holder("a", "1"), Ledger()
    spec = Spec(
        holder=a, model="m", url="http://a", devices=("n/0", D), pid=1, boot_id="b", footprint=FOOTPRINT, digest=digest
    )
    owners = (Owner(Holder("b", "1"), Bytes(weights=40, kv=8)), Owner(a, owned))
    shared = (Shared("other", 8), Shared("same", 40))
    device = Device(driver="host", capacity=100, chunk=4, epoch="e", owners=owners, shared=shared)
    ledger.apply(SpecSeen(EngineId("a"), spec, 1, 1), 0.0)
    ledger.apply(DeviceSeen(D, device, 2), 0.0)
    return ledger, EngineId("a")


@pytest.mark.parametrize(
    ("digest", "owned", "needs"),
    [
        ("first,same", Bytes(), WITHOUT_WEIGHTS),
        ("first,same", Bytes(kv=8), WITHOUT_WEIGHTS),  # it shares them now
        ("first,same", Bytes(weights=40, kv=8), WHOLE),  # they are its own
        ("same,second", Bytes(), WHOLE),  # of its other device
        ("same", Bytes(), WHOLE),  # it is not known of which device
        ("", Bytes(), WHOLE),
    ],
)
def test_weights_of_its_content_that_another_is_charged_for_are_not_needed(
    digest: str, owned: Bytes, needs: int
) -> None:
    ledger, engine = seen(digest, owned)
    assert ledger.need(ledger.engines[engine], D) == needs
