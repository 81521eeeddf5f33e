"""The list of mutants fits the code: `make mutants` can try each of them (and takes minutes, so it is no test)."""

from __future__ import annotations

import pytest
from mutants.run import ROOT, Mutant, fault, read_table

MUTANTS = read_table()


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_every_mutant_has_its_line_once_and_its_tests(mutant: Mutant) -> None:
    assert fault(ROOT, mutant) == ""


def test_there_are_forty() -> None:
    assert len({mutant.name for mutant in MUTANTS}) == len(MUTANTS) >= 40
