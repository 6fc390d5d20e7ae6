"""A real etcd for the tests of each file."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.helpers.etcd import RealEtcd, running_etcd


@pytest.fixture(scope="module")
def etcd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealEtcd]:
    with running_etcd(tmp_path_factory.mktemp("etcd")) as running:
        yield running
