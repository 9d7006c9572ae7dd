# SPDX-License-Identifier: GPL-2.0-or-later
"""A ConnectX-7's virtual functions.

Nobody has published what its commands cost. These figures were fitted, by the model in timing.py, to the
lowest downtimes published for 1, 2 and 4 VFs with 100 MiB of state each (verifier/bench/published.py: TALK).
How a cost is split between SAVE and LOAD, or between the arcs, no published figure tells.
"""

from __future__ import annotations

from mockdev.device.profile import Profile

_MS = 1_000_000

CONNECTX7 = Profile(
    "connectx7",
    save_fixed_ns=_MS // 2,
    save_mib_ns=_MS * 9 // 8,
    load_fixed_ns=_MS // 2,
    load_mib_ns=_MS * 9 // 8,
    gamma=0.5,
    eta=0.5,
    suspend_initiator_ns=7 * _MS,
    suspend_responder_ns=10 * _MS,
    resume_responder_ns=4 * _MS,
    resume_initiator_ns=6 * _MS,
    query_ns=_MS // 5,
    reset_ns=100 * _MS,
    config_per_function_ns=_MS * 35 // 2,
)
