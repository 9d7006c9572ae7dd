# SPDX-License-Identifier: GPL-2.0-or-later
"""The judge's arcs and the mock devices' table are written apart, and agree."""

from __future__ import annotations

import pytest

from mockdev.errors import DeviceError
from mockdev.vfio.fsm import next_step
from mockdev.vfio.uapi import MigrationFlags, State
from verifier.invariants import INVARIANTS
from verifier.invariants.states import _ARCS, _ARCS_WITHOUT_P2P

_M = MigrationFlags


def table_arcs(flags: MigrationFlags) -> set[tuple[str, str]]:
    """Every single arc that a device with these flags can take on any way."""
    arcs = set()
    for here in State:
        for target in State:
            try:
                step = next_step(here, target, flags)
            except DeviceError:
                continue
            if step is not here:
                arcs.add((here.name, step.name))
    return arcs


@pytest.mark.parametrize(
    ("flags", "arcs"),
    [
        (_M.STOP_COPY | _M.P2P | _M.PRE_COPY, _ARCS),
        (_M.STOP_COPY | _M.PRE_COPY, _ARCS_WITHOUT_P2P),
    ],
)
def test_arcs_agree(flags: MigrationFlags, arcs: frozenset[tuple[str, str]]) -> None:
    assert table_arcs(flags) == arcs


def test_every_passport_is_filled_in() -> None:
    for invariant in INVARIANTS:
        passport = invariant.passport
        assert passport.statement.endswith(".")
        assert all((passport.id, passport.source.file, passport.source.symbol, invariant.kinds))
        family, _, number = passport.id.partition("-")
        assert family.isupper()
        assert number.isdigit()
