# SPDX-License-Identifier: GPL-2.0-or-later
"""CH, MP, RS, DS: what the ends were set up with, by their journals or the run's record, against the wire."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

from mockdev.journal import Connected
from mockdev.wire.frames import DeviceStateFrame, InitFrame, RamBlocksItem, RamFrame
from verifier.history.facts import Facts
from verifier.history.observation import Said, Seen
from verifier.invariants.passport import (
    DEVICE,
    MIGRATION,
    Finding,
    Invariant,
    Need,
    Passport,
    Severity,
    qemu,
)

_MAIN_RAM = "pc.ram"  # the block of -m on QEMU's x86 machines
_MEMORY = re.compile(r"(\d{1,9})([MG])")
_SHIFT = {"M": 20, "G": 30}


def _setting(facts: Facts, role: str, name: str) -> Any:
    """What this end's journal says that it was set up with; None when it does not."""
    begin = facts.begins.get(role)
    return begin.config.get(name) if begin is not None else None


class ChannelCount(Invariant[InitFrame | Connected]):
    """Sound: both numbers are the ends' own; a capture that lacks a connection which the source's journal has
    made is told from a source that made too few.

    Misses: a source and a target that were set up with different numbers and whose record names one only
    (with `vfmig run` both get the same); fewer channels from a QEMU, of whose connections no journal tells.
    """

    passport = Passport(
        "CH-2",
        "A completed migration has as many multifd connections as its ends were set up with.",
        Severity.CORRUPTS,
        qemu("migration/multifd.c", "multifd_recv_all_channels_created"),
        MIGRATION,
        (Need.CHANNELS,),
    )
    kinds = (InitFrame, Connected)

    def __init__(self, facts: Facts) -> None:
        super().__init__(facts)
        self.exercised = False
        self.last: Seen | Said | None = None
        self.made = 0  # by the source's journal

    def on(self, seen: Seen | Said, event: InitFrame | Connected) -> Iterator[Finding]:
        self.last = seen
        if isinstance(seen, Said) and isinstance(event, Connected):
            self.made += seen.role == "source" and event.channel != "main"
        return iter(())

    def at_end(self) -> Iterator[Finding]:
        record = self.facts.record
        told = [_setting(self.facts, role, "channels") for role in ("source", "target")]
        wanted = {n for n in (*told, record.channels if record else None) if isinstance(n, int)}
        count = len(self.facts.channels)
        self.exercised = bool(wanted)
        if not self.complete or not wanted or wanted == {count} or self.last is None:
            return
        if count < min(wanted) and self.made != count:
            self.unknown = "the capture may lack a connection"
            return
        names = ", ".join(map(str, sorted(wanted)))
        yield Finding(f"{count} multifd connections, set up were {names}", (self.last,))


class BlockLength(Invariant[RamBlocksItem]):
    """Sound: the target's RAM is what its journal says (a mock's configuration, or the -m of the QEMU that a
    supervisor started), and a block of that name has no other source on a PC.

    Misses: all blocks but pc.ram, and targets whose RAM comes from a memory backend or from a peer's machine:
    there a refused load (SHUT 1, or the target's error) shows it.
    """

    passport = Passport(
        "RS-2",
        "The block pc.ram is as long as the RAM that the target was set up with.",
        Severity.ABORTS,
        qemu("migration/ram.c", "parse_ramblock"),
        MIGRATION,
        (Need.TARGET,),
    )
    kinds = (RamBlocksItem,)

    def __init__(self, facts: Facts) -> None:
        super().__init__(facts)
        self.exercised = False
        self.blocks: Seen | None = None
        self.length: int | None = None

    def on(self, seen: Seen, event: RamBlocksItem) -> Iterator[Finding]:
        if self.blocks is None:
            self.length = next((length for name, length, _ in event.blocks if name == _MAIN_RAM), None)
            self.blocks = seen
        return iter(())

    def at_end(self) -> Iterator[Finding]:
        wanted = self._wanted()
        self.exercised = wanted is not None and self.length is not None
        if self.exercised and self.length != wanted and self.blocks is not None:
            yield Finding(f"{_MAIN_RAM} has {self.length} bytes, the target {wanted}", (self.blocks,))

    def _wanted(self) -> int | None:
        if _setting(self.facts, "target", "peer") == "mock":
            size = _setting(self.facts, "target", "ram_bytes")
            return size if isinstance(size, int) else None
        words = _setting(self.facts, "target", "command")
        if not isinstance(words, list) or any("memory-backend" in str(word) for word in words):
            return None
        sizes = [_MEMORY.fullmatch(str(size)) for word, size in pairwise(words) if word == "-m"]
        if len(sizes) != 1 or sizes[0] is None:
            return None
        return int(sizes[0][1]) << _SHIFT[sizes[0][2]]


class ZeroPagesFound(Invariant[RamFrame]):
    """Sound: a mock source's configuration, in its own journal, holds for its whole run.

    Misses: a QEMU's zero-page-detection, which no evidence names; a list of its migration parameters would.
    """

    passport = Passport(
        "MP-14",
        "A source whose zero-page-detection is legacy or none names no zero page in a multifd packet.",
        Severity.SLOWS,
        qemu("migration/multifd-zero-page.c", "multifd_send_zero_page_detect", "9.0"),
        MIGRATION,
        (Need.SOURCE,),
    )
    kinds = (RamFrame,)

    def __init__(self, facts: Facts) -> None:
        super().__init__(facts)
        self.first: Seen | None = None

    def on(self, seen: Seen, event: RamFrame) -> Iterator[Finding]:
        if event.head.zero_pages and self.first is None:
            self.first = seen
        return iter(())

    def at_end(self) -> Iterator[Finding]:
        setting = _setting(self.facts, "source", "zero_pages")
        self.exercised = isinstance(setting, str)
        if setting in ("legacy", "none") and self.first is not None:
            yield Finding(f"a packet with zero pages, zero-page-detection is {setting}", (self.first,))


class MainDeviceOnMain(Invariant[DeviceStateFrame]):
    """Sound: a run's record and a mock's journal name the transfer that both ends were started with.

    Misses: a QEMU that was set up otherwise by its user's own arguments and left to `auto`; DS-11 sees a
    device that has its state on both ways.
    """

    passport = Passport(
        "DS-12",
        "A device that was set up without multifd transfer has no device-state packet.",
        Severity.ABORTS,
        qemu("hw/vfio/migration-multifd.c", "vfio_multifd_load_state_buffer"),
        DEVICE,
    )
    kinds = (DeviceStateFrame,)

    def __init__(self, facts: Facts) -> None:
        super().__init__(facts)
        self.exercised = False
        self.first: Seen | None = None

    def on(self, seen: Seen, event: DeviceStateFrame) -> Iterator[Finding]:  # noqa: ARG002
        if self.first is None:
            self.first = seen
        return iter(())

    def at_end(self) -> Iterator[Finding]:
        record = self.facts.record
        told = [_setting(self.facts, role, "transfer") for role in ("source", "target")]
        told.append(record.transfer if record is not None else None)
        self.exercised = any(isinstance(transfer, str) for transfer in told)
        if "main" in told and self.first is not None:
            yield Finding("device state over multifd, set up was the main channel", (self.first,))


AGREED = (ChannelCount, BlockLength, ZeroPagesFound, MainDeviceOnMain)
