# SPDX-License-Identifier: GPL-2.0-or-later
"""What must hold of every migration, one small class each; `INVARIANTS` lists them all."""

from __future__ import annotations

from typing import Any

from verifier.invariants.caps import CAPS
from verifier.invariants.equality import EQUALITY
from verifier.invariants.framing import FRAMING
from verifier.invariants.lifecycle import LIFECYCLE
from verifier.invariants.ordering import ORDERING
from verifier.invariants.packets import PACKETS
from verifier.invariants.passport import Invariant
from verifier.invariants.ram import RAM
from verifier.invariants.setup import SETUP
from verifier.invariants.states import STATES

INVARIANTS: tuple[type[Invariant[Any]], ...] = (
    *SETUP,
    *FRAMING,
    *PACKETS,
    *RAM,
    *ORDERING,
    *CAPS,
    *LIFECYCLE,
    *STATES,
    *EQUALITY,
)
