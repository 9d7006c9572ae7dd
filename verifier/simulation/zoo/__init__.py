# SPDX-License-Identifier: GPL-2.0-or-later
"""Faulty sources, targets and devices, each a declared variation of one decision; `BUGS` lists them all.

What the judge is worth is how many of them it sees: each was a real bug, or breaks a rule that a real
program keeps by one line of its code.
"""

from __future__ import annotations

from verifier.simulation.zoo.bug import Bug
from verifier.simulation.zoo.caps import CAPS
from verifier.simulation.zoo.devices import DEVICES
from verifier.simulation.zoo.lifecycle import LIFECYCLE
from verifier.simulation.zoo.loading import LOADING
from verifier.simulation.zoo.numbers import NUMBERS
from verifier.simulation.zoo.packets import PACKETS
from verifier.simulation.zoo.stream import STREAM

BUGS: tuple[Bug, ...] = (*NUMBERS, *PACKETS, *STREAM, *LOADING, *CAPS, *LIFECYCLE, *DEVICES)
