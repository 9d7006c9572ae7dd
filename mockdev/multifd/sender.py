# SPDX-License-Identifier: GPL-2.0-or-later
"""What each channel sends next: `SendPlan`.

A channel that is idle asks for work and gets a RAM packet, its SYNC packet, or a device's turn: the right
to read that device's next buffer and send it. A buffer gets its index at the end of the reading, when
a channel is ready to send it: indices claimed early travel far apart, and the target has to keep all
that overtake. One channel at a time has a device's turn, so its indices follow the order of its bytes.

Source: QEMU migration/multifd-device-state.c: multifd_queue_device_state; hw/vfio/migration-multifd.c:
vfio_multifd_save_complete_precopy_thread (there a thread per device claims the index and then waits for
an idle channel, so at most one buffer per device waits)
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

from mockdev.errors import LocalProtocolError


class RamPacket(NamedTuple):
    """Pages of one block, as byte offsets in it: those with data, those that are zero."""

    block: str
    normal: tuple[int, ...]
    zero: tuple[int, ...]


class SendRam(NamedTuple):
    """Send a RAM packet under this number."""

    packet_num: int
    packet: RamPacket


class SendSync(NamedTuple):
    """Send a SYNC packet under this number."""

    packet_num: int


class ReadDevice(NamedTuple):
    """Read the next buffer of this device; then say `claim` or `pause`."""

    device: int


Work = SendRam | SendSync | ReadDevice


class SendPlan:
    """Work for `channels` channels from `devices` devices and the RAM of one VM.

    in_flight_max: device buffers being sent at once, at most. ram_queued_max: RAM packets that may wait.
    Not safe from several threads at once; its owner locks it.
    """

    def __init__(
        self, devices: Sequence[str], channels: int, *, in_flight_max: int = 255, ram_queued_max: int = 64
    ) -> None:
        self.names = tuple(devices)
        self._idle = set(range(channels))
        self._channels = channels
        self._in_flight = 0
        self._in_flight_max = in_flight_max
        self._ready: deque[int] = deque()
        self._next_idx = [0] * len(self.names)
        self._ended = [False] * len(self.names)
        self._turns: set[int] = set()
        self._ram: deque[RamPacket] = deque()
        self._ram_queued_max = ram_queued_max
        self._sync_wanted: set[int] = set()
        self._sync_written = channels
        self._packet_num = 0
        self._work: dict[int, Work] = {}

    # -- what the main thread says -------------------------------------------------------------------

    def queue_ram(self, packet: RamPacket) -> bool:
        """Have a RAM packet sent by the next idle channel; False when too many wait: later again."""
        if len(self._ram) >= self._ram_queued_max:
            return False
        if not self.synced:
            raise LocalProtocolError("RAM pages queued before the last SYNC was written on every channel")
        self._ram.append(packet)
        return True

    def request_sync(self) -> None:
        """Have a SYNC sent on every channel, after all RAM packets queued so far."""
        if not self.synced:
            raise LocalProtocolError("a SYNC asked for before the last one was written on every channel")
        self._sync_wanted = set(range(self._channels))
        self._sync_written = 0

    @property
    def synced(self) -> bool:
        """Whether the last SYNC asked for is written on every channel."""
        return self._sync_written == self._channels

    @property
    def devices_sent(self) -> bool:
        """Whether the last buffer of every device is with a channel: written, or being written."""
        return all(self._ended)

    def has_ended(self, device: int) -> bool:
        """Whether the last buffer of this device is with a channel."""
        return self._ended[device]

    # -- what a device's owner says ------------------------------------------------------------------

    def readable(self, device: int) -> None:
        """The device may be read now: it has been opened, or its time has come."""
        if device in self._turns or device in self._ready or self._ended[device]:
            raise LocalProtocolError(f"{self.names[device]} became readable while it was")
        self._ready.append(device)

    # -- what a channel says -------------------------------------------------------------------------

    def take(self, channel: int) -> Work | None:
        """What this idle channel is to do now; None: nothing yet."""
        if channel not in self._idle:
            raise LocalProtocolError(f"channel {channel} asks for work while it has some")
        work: Work
        if self._ram:
            work = SendRam(self._number(), self._ram.popleft())
        elif channel in self._sync_wanted:
            self._sync_wanted.remove(channel)
            work = SendSync(self._number())
        elif self._ready and self._in_flight < self._in_flight_max:
            self._in_flight += 1
            work = ReadDevice(self._ready.popleft())
            self._turns.add(work.device)
        else:
            return None
        self._idle.remove(channel)
        self._work[channel] = work
        return work

    def next_idx(self, device: int) -> int:
        """The index that this device's next buffer gets: certain for the channel that has its turn."""
        return self._next_idx[device]

    def claim(self, channel: int, *, last: bool = False) -> int:
        """The turn gave a buffer: its index. The next turn of that device is free unless it was the last."""
        device = self._end_turn(channel)
        idx = self._next_idx[device]
        self._next_idx[device] = idx + 1
        if last:
            self._ended[device] = True
        else:
            self._ready.append(device)
        return idx

    def pause(self, channel: int) -> None:
        """The turn gave nothing: the device is not ready until its owner says `readable`."""
        self._end_turn(channel)
        self.written(channel)

    def written(self, channel: int) -> None:
        """The channel has written all of its work and is idle."""
        work = self._work.pop(channel)
        if isinstance(work, SendSync):
            self._sync_written += 1
        elif isinstance(work, ReadDevice):
            self._in_flight -= 1
        self._idle.add(channel)

    @property
    def has_work(self) -> bool:
        """Whether an idle channel that asked would (but for SYNCs of others) get something."""
        return bool(self._ram or self._sync_wanted or (self._ready and self._in_flight < self._in_flight_max))

    def _end_turn(self, channel: int) -> int:
        work = self._work.get(channel)
        if not isinstance(work, ReadDevice) or work.device not in self._turns:
            raise LocalProtocolError(f"channel {channel} has no device's turn")
        self._turns.remove(work.device)
        return work.device

    def _number(self) -> int:
        number = self._packet_num
        self._packet_num += 1
        return number
