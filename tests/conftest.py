"""What holds for every test: property tests draw the same examples each time, except in a campaign."""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("suite", deadline=None, derandomize=True)
settings.register_profile("campaign", deadline=None, max_examples=5000, print_blob=True)
settings.load_profile("suite")
