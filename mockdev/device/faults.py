# SPDX-License-Identifier: GPL-2.0-or-later
"""What is to go wrong in a device, as a value that it is made with.

A fault stays: whatever hits its place fails, each time. errno: positive Linux numbers.
"""

from __future__ import annotations

from dataclasses import dataclass

from mockdev.vfio.uapi import State


@dataclass(frozen=True)
class ArcFault:
    """The single arc that leads to `to` fails.

    after: the arc's work is done and the state has changed, but its file is lost (as when no fd is free).
    to_error: the device ends in ERROR, which the interface allows and mlx5 never does.
    """

    to: State
    errno: int
    after: bool = False
    to_error: bool = False


@dataclass(frozen=True)
class ByteFault:
    """Something fails at a byte. offset: see where it is used."""

    offset: int
    errno: int


@dataclass(frozen=True)
class SaveFault:
    """The SAVE command whose image holds byte `offset` of the state fails.

    bad_resource: with firmware's "bad resource state", and only before the stop: the device can still be
    saved in STOP_COPY, as a whole.
    """

    offset: int
    bad_resource: bool = False


@dataclass(frozen=True)
class Faults:
    """All faults of one device.

    read: offset in the stream of the save file; what lies before can be read.
    load: offset in the state being loaded; the LOAD of the record that holds it fails.
    config: errno of loading the PCI config. precopy: errno of the question for PRE_COPY's sizes.
    """

    arcs: tuple[ArcFault, ...] = ()
    read: ByteFault | None = None
    save: SaveFault | None = None
    load: ByteFault | None = None
    config: int | None = None
    precopy: int | None = None

    def arc(self, to: State) -> ArcFault | None:
        """The fault of the arc that leads to this state."""
        return next((fault for fault in self.arcs if fault.to is to), None)


NO_FAULTS = Faults()
