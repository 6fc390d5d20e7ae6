"""The planted bugs still fit the code they are planted in. Whether they are found: `make mutants`."""

from __future__ import annotations

import ast

import pytest

from tests.helpers.mutants import ROOT, Mutant, mutants, mutated

PLANTED = mutants()


def test_there_are_enough() -> None:
    assert len(PLANTED) >= 20


@pytest.mark.parametrize("mutant", PLANTED, ids=lambda mutant: mutant.name)
def test_it_fits(mutant: Mutant) -> None:
    """Where this fails, the code it changes was changed: write the patch anew."""
    for path, text in mutated(mutant).items():
        assert text != (ROOT / path).read_text()
        ast.parse(text)
    if "/" in mutant.seen_by:
        assert (ROOT / mutant.seen_by).exists()
