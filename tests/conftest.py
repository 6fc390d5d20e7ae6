"""What holds for every test: property tests draw the same examples each time, except in a campaign; processes take the
etcd that is at hand, which is for development only."""

from __future__ import annotations

import os

from hypothesis import settings

from coordinator.store.floor import VARIABLE, Check

settings.register_profile("suite", deadline=None, derandomize=True)
settings.register_profile("campaign", deadline=None, max_examples=5000, print_blob=True)
settings.load_profile("suite")
os.environ[VARIABLE] = Check.DEVELOPMENT.value
