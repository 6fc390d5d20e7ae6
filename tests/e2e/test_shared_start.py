"""A model that starts on the device of another of its path lies in the same pages from its start on, and copies none of
them. Two engine starts."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from coordinator.core.model import Residency, Spec
from coordinator.picture import Picture
from coordinator.weights import weight_bytes
from tests.e2e.test_netloader import complete
from tests.e2e.test_shared_weights import FIRST, KV, SECOND, both_are_in, configuration, owners_of_weights, watched
from tests.helpers.engine_file import made

pytestmark = [pytest.mark.engine, pytest.mark.system, pytest.mark.timeout(1800)]


def joined(picture: Picture) -> set[str]:
    return {name for name, told in picture.of(Residency).items() if told.joined}


async def test_an_engine_starts_in_the_pages_of_another(tmp_path: Path) -> None:
    await made(tmp_path / "model", "qwen3", "small")
    capacity = (weight_bytes(tmp_path / "model") + KV) * 5 // 2  # who starts needs a whole place until it has moved in
    written = configuration(tmp_path, capacity)
    written["models"][SECOND] = {**written["models"][SECOND], "start": "lazy", "load_from": "peers"}
    async with watched(tmp_path, written) as (found, mirror):
        tokens = await complete(found, FIRST)
        assert len(set(tokens)) > 2
        assert await complete(found, SECOND) == tokens
        await mirror.until(
            lambda picture: (
                both_are_in(picture) and joined(picture) == {SECOND} and owners_of_weights(picture) == {FIRST}
            )
        )
        specs = {spec.holder.engine: spec for spec in mirror.picture.of(Spec).values()}
        assert specs[FIRST].digest == specs[SECOND].digest
        assert specs[FIRST].footprint.weights == specs[SECOND].footprint.weights
        assert await complete(found, FIRST) == tokens
        os.kill(specs[FIRST].pid, signal.SIGKILL)
        await mirror.until(lambda picture: owners_of_weights(picture) == {SECOND})
        assert await complete(found, SECOND) == tokens
