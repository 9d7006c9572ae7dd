# SPDX-License-Identifier: GPL-2.0-or-later
"""What must hold of every migration, one small class each; `INVARIANTS` lists them all."""

from __future__ import annotations

from typing import Any

from verifier.invariants.agreed import AGREED
from verifier.invariants.boundaries import BOUNDARIES
from verifier.invariants.caps import CAPS
from verifier.invariants.closing import CLOSING
from verifier.invariants.end_of_stream import END_OF_STREAM
from verifier.invariants.equality import EQUALITY
from verifier.invariants.framing import FRAMING
from verifier.invariants.liveness import LIVENESS
from verifier.invariants.loading import LOADING
from verifier.invariants.ordering import ORDERING
from verifier.invariants.outcome import OUTCOME
from verifier.invariants.packets import PACKETS
from verifier.invariants.pages import PAGES
from verifier.invariants.passport import Invariant
from verifier.invariants.ram import RAM
from verifier.invariants.records import RECORDS
from verifier.invariants.return_path import RETURN_PATH
from verifier.invariants.sessions import SESSIONS
from verifier.invariants.setup import SETUP
from verifier.invariants.states import STATES
from verifier.invariants.statuses import STATUSES
from verifier.invariants.switchover import SWITCHOVER
from verifier.invariants.traces import TRACES

INVARIANTS: tuple[type[Invariant[Any]], ...] = (
    *SETUP,
    *FRAMING,
    *PACKETS,
    *RAM,
    *PAGES,
    *ORDERING,
    *RECORDS,
    *LOADING,
    *CAPS,
    *SWITCHOVER,
    *RETURN_PATH,
    *END_OF_STREAM,
    *BOUNDARIES,
    *STATES,
    *EQUALITY,
    *OUTCOME,
    *TRACES,
    *AGREED,
    *CLOSING,
    *SESSIONS,
    *STATUSES,
    *LIVENESS,
)
