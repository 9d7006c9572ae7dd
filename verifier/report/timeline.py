# SPDX-License-Identifier: GPL-2.0-or-later
"""One migration as lanes on one time line, collected while it is judged, so that a capture is read once.

    timelines = Timelines()
    report = check_path(path, watch=timelines.watch)
    for timeline in timelines.all:
        picture_of(timeline, ITEMS_MAX)

It judges nothing. However long the input, what is kept is bounded: see `lanes`, and `Picture.left_out`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from mockdev.journal import (
    Begin,
    End,
    Failure,
    Loaded,
    Mark,
    Read,
    Received,
    Reset,
    Saved,
    State,
    Unanswered,
    Verified,
    Wrote,
)
from mockdev.wire.frames import (
    CommandItem,
    ConfigurationItem,
    DescriptionItem,
    DeviceStateFrame,
    EofItem,
    FooterItem,
    HeaderItem,
    InitFrame,
    OpaqueItem,
    RamBlocksItem,
    RamFrame,
    RamRecordItem,
    ReturnPathItem,
    SectionItem,
    TrailingItem,
    VfioItem,
)
from mockdev.wire.structs import VFIO_DEVICE_STATE_CONFIG, Command, MultifdFlag, ReturnPath, VfioTag
from verifier.capture.flows import Lane, Role
from verifier.history.facts import Facts
from verifier.history.observation import (
    Broken,
    BufferDone,
    FlowEnd,
    Hole,
    LoadTrace,
    Observation,
    Seen,
    StatusTrace,
    ThreadTrace,
    VmTrace,
)
from verifier.report.lanes import LANES_MAX, LAST_NS, LOADS, SAVES, SOURCE, TARGET, TEXT_MAX, THREADS, Lanes

TIMELINES_MAX = 8  # migrations of one input
_WAITING_MAX = 1 << 16  # buffers that were received and not loaded, of all devices
_STATE_TEXT_MAX = 40
_CONTROL = (
    CommandItem, ConfigurationItem, DescriptionItem, EofItem, FooterItem, HeaderItem, OpaqueItem,
    RamBlocksItem, SectionItem,
)  # fmt: skip


class Moments:
    """The edges that the parts of a downtime are made of; None where no evidence has one. ns since the epoch.

    stop: of the VM at the source; load_first: what the target's devices were given after a source's device
    began to save (all that it was given, where nobody says); config_*: the same of the config state.
    """

    def __init__(self) -> None:
        self.stop: int | None = None
        self.saved_last: int | None = None
        self.load_first: int | None = None
        self.load_last: int | None = None
        self.config_first: int | None = None
        self.config_last: int | None = None
        self.resume: int | None = None
        self.sent_first: int | None = None
        self.received_last: int | None = None

    def saving(self) -> None:
        """The first device began to save: what was loaded before it belongs to no downtime."""
        self.load_first = self.load_last = self.sent_first = self.received_last = None

    def loads(self, start: int, end: int, *, config: bool) -> None:
        """The target gave a device something."""
        if config:
            self.config_first = start if self.config_first is None else min(self.config_first, start)
            self.config_last = max(self.config_last or 0, end)
        else:
            self.load_first = start if self.load_first is None else min(self.load_first, start)
            self.load_last = max(self.load_last or 0, end)


class Timelines:
    """Those of all migrations of one input, by their number. left_out: how many have none."""

    def __init__(self) -> None:
        self.by_number: dict[int, Timeline] = {}
        self.left_out = 0

    def watch(self, facts: Facts) -> Callable[[Observation], None] | None:
        """Who wants to hear of this migration; None: nobody."""
        if len(self.by_number) >= TIMELINES_MAX:
            self.left_out += 1
            return None
        timeline = self.by_number[facts.number] = Timeline(facts)
        return timeline.on

    @property
    def all(self) -> list[Timeline]:
        """In order of their number."""
        return [timeline for _, timeline in sorted(self.by_number.items())]


class Timeline:
    """Collects one migration: `on` what was seen, into its lanes."""

    def __init__(self, facts: Facts) -> None:
        self.facts = facts
        self.moments = Moments()
        self.lanes = Lanes()
        self._begun: dict[Lane, tuple[int, int, int, int, int]] = {}  # a buffer on its way
        self._received: dict[tuple[str, int, bool], int] = {}
        self._loaded: dict[str, int] = {}
        self._loading: dict[tuple[str, int | None], int] = {}
        self._waiting: dict[str, int] = {}  # buffers, by a QEMU's log
        self._threads: dict[tuple[str, str], int] = {}
        self._readers: dict[type, Callable[[Any, Any], None]] = {
            DeviceStateFrame: self._device_state,
            BufferDone: self._buffer_done,
            RamFrame: self._ram,
            InitFrame: self._init,
            VfioItem: self._vfio,
            ReturnPathItem: self._return_path,
            RamRecordItem: self._ram_record,
            TrailingItem: self._bad,
            Broken: self._bad,
            Hole: self._bad,
            FlowEnd: self._flow_end,
            State: self._state,
            Saved: self._saved,
            Read: self._read,
            Received: self._receive,
            Loaded: self._load,
            Wrote: self._wrote,
            Mark: self._mark,
            Failure: self._failure,
            Begin: self._begin,
            End: self._end,
            Verified: self._verified,
            Unanswered: self._unanswered,
            Reset: self._reset,
            LoadTrace: self._load_trace,
            ThreadTrace: self._thread_trace,
            StatusTrace: self._status,
            VmTrace: self._vm,
        }
        self._readers |= dict.fromkeys(_CONTROL, self._control)

    def on(self, seen: Observation) -> None:
        """One observation. What has no time (a line of a log without one), or an absurd one, is left out."""
        event = seen.event if type(seen) is Seen else seen.line  # type: ignore[union-attr]
        reader = self._readers.get(type(event))
        if reader is None:
            return
        if (0 if type(seen) is Seen else 1) <= seen.time_ns < LAST_NS:
            reader(seen, event)
        else:
            self.lanes.drop("frames and lines without a usable time")

    # --- frames -------------------------------------------------------------------------------------

    def _device_state(self, seen: Seen, frame: DeviceStateFrame) -> None:
        vfio = frame.vfio
        if vfio is None:
            self.lanes.frame(seen, seen.time_ns, self.lanes.word("bad", "device state without a VFIO header"))
            return
        config = bool(vfio.flags & VFIO_DEVICE_STATE_CONFIG)
        word = self.lanes.word(
            "config" if config else "buffer", "config" if config else "buffer", seen.device
        )
        self._begun[seen.lane] = (seen.time_ns, frame.size, word, vfio.idx, frame.offset)

    def _buffer_done(self, seen: Seen, _: BufferDone) -> None:
        begun = self._begun.pop(seen.lane, None)
        if begun is not None:
            start, size, word, idx, offset = begun
            self.lanes.frame_at(seen.lane, start, seen.time_ns, size, word, idx, offset)

    def _ram(self, seen: Seen, frame: RamFrame) -> None:
        sync = bool(frame.head.flags & MultifdFlag.SYNC)
        word = self.lanes.word("sync", "SYNC packet") if sync else self.lanes.word("ram", "RAM packet")
        self.lanes.frame(seen, seen.time_ns, word, frame.head.packet_num)

    def _init(self, seen: Seen, _: InitFrame) -> None:
        self.lanes.frame(seen, seen.time_ns, self.lanes.word("control", "init packet"))

    def _control(self, seen: Seen, item: object) -> None:
        if isinstance(item, CommandItem):
            known = item.command in Command._value2member_map_
            text = f"command {Command(item.command).name if known else item.command}"
        elif isinstance(item, SectionItem):
            text = f"section {item.idstr}"[:TEXT_MAX]
        else:
            text = type(item).__name__.removesuffix("Item").lower()
        self.lanes.frame(seen, seen.time_ns, self.lanes.word("control", text))

    def _vfio(self, seen: Seen, item: VfioItem) -> None:
        if item.tag == VfioTag.DEV_DATA_STATE:
            word = self.lanes.word("buffer", "data block", seen.device)
        elif item.tag == VfioTag.DEV_CONFIG_STATE:
            word = self.lanes.word("config", "config", seen.device)
        else:
            word = self.lanes.word("control", VfioTag(item.tag).name, seen.device)
        self.lanes.frame(seen, seen.time_ns, word)

    def _return_path(self, seen: Seen, item: ReturnPathItem) -> None:
        self.lanes.frame(seen, seen.time_ns, self.lanes.word("control", ReturnPath(item.type).name))

    def _ram_record(self, seen: Seen, _: RamRecordItem) -> None:
        self.lanes.frame(seen, seen.time_ns, self.lanes.word("ram", "RAM record"))

    def _bad(self, seen: Seen, event: object) -> None:
        texts: dict[type, str] = {Broken: "what cannot be read", Hole: "bytes missing from the capture"}
        self.lanes.frame(
            seen, seen.time_ns, self.lanes.word("bad", texts.get(type(event), "bytes behind the end"))
        )

    def _flow_end(self, seen: Seen, end: FlowEnd) -> None:
        begun = self._begun.pop(seen.lane, None)
        if begun is not None:
            start, _, _, idx, offset = begun
            word = self.lanes.word("bad", "a buffer that breaks off", seen.device)
            self.lanes.frame_at(seen.lane, start, seen.time_ns, end.offset - offset, word, idx, offset)
        if seen.lane.role is Role.REVERSE and seen.lane not in self.lanes.flows:
            return  # no byte came, as it should be
        style = "control" if end.kind == "fin" else "bad"
        self.lanes.frame(seen, seen.time_ns, self.lanes.word(style, f"end of the flow ({end.kind})"))

    # --- lines of journals --------------------------------------------------------------------------

    def _begin(self, said: Any, _: Begin) -> None:
        self.lanes.say(said.role, said.time_ns, "begins")

    def _end(self, said: Any, line: End) -> None:
        self.lanes.say(
            said.role, line.t, f"ends: {line.outcome}, {'may' if line.runs else 'may not'} run the VM"
        )

    def _mark(self, said: Any, line: Mark) -> None:
        self.lanes.say(said.role, line.t, f"{line.name} {line.value}" if line.value else line.name)
        if (said.role, line.name) == (SOURCE, "stop"):
            self.moments.stop = line.t
        elif (said.role, line.name) == (TARGET, "resume"):
            self.moments.resume = line.t

    def _failure(self, said: Any, line: Failure) -> None:
        where = " on ".join(part for part in (line.device, line.channel) if part)
        self.lanes.say(said.role, line.t, f"failure{f' of {where}' if where else ''}: {line.message}")

    def _verified(self, said: Any, line: Verified) -> None:
        if not line.equal:
            wrong = "" if line.wrong_at is None else f", first at byte {line.wrong_at}"
            self.lanes.say(said.role, line.t, f"{line.device} is not what was saved{wrong}")

    def _reset(self, said: Any, line: Reset) -> None:
        self.lanes.say(said.role, line.t, f"{line.device} is reset")

    def _unanswered(self, said: Any, line: Unanswered) -> None:
        self.lanes.say(said.role, line.t, f"unanswered ioctl {line.request:#x} on {line.on}")

    def _state(self, said: Any, line: State) -> None:
        bands = self.lanes.bands(self.lanes.states, said.role, line.device)
        if bands is None:
            return
        if not len(bands):
            begin = self.facts.begins.get(said.role)
            bands.add(
                min(begin.t, line.t) if begin is not None and begin.t > 0 else line.t,
                line.old[:_STATE_TEXT_MAX],
            )
        if line.errno:
            text = f"{line.device}: {line.old} to {line.new} failed, errno {line.errno}"
            self.lanes.say(said.role, line.t, text)
            return
        bands.add(line.t, line.new[:_STATE_TEXT_MAX])
        if said.role == SOURCE and line.new == "STOP_COPY":
            self.moments.saving()

    def _saved(self, said: Any, line: Saved) -> None:
        word = self.lanes.word("config" if line.config else "buffer", "saved", line.device)
        self.lanes.bar(said.role, line.device, SAVES, line.t, line.t, line.size, word, line.idx)
        self.moments.saved_last = line.t
        self.moments.sent_first = self.moments.sent_first or line.t

    def _read(self, said: Any, line: Read) -> None:
        word = self.lanes.word("buffer", "read", line.device)
        self.lanes.bar(said.role, line.device, SAVES, line.t, line.t, line.size, word)
        self.moments.saved_last = line.t

    def _receive(self, said: Any, line: Received) -> None:
        if len(self._received) < _WAITING_MAX:
            self._received[line.device[:TEXT_MAX], line.idx, line.config] = line.t
        self.lanes.step(said.role, line.device, line.t, line.queued_bytes)
        self.moments.received_last = line.t

    def _load(self, said: Any, line: Loaded) -> None:
        device = line.device[:TEXT_MAX]
        received = self._received.pop((device, line.idx, line.config), line.t)
        start = min(line.t, max(received, self._loaded.get(device, 0)))
        if device in self._loaded or len(self._loaded) < LANES_MAX:
            self._loaded[device] = line.t
        word = self.lanes.word("config" if line.config else "buffer", "loaded", line.device)
        self.lanes.bar(said.role, line.device, LOADS, start, line.t, line.size, word, line.idx)
        self.lanes.step(said.role, line.device, line.t, line.queued_bytes)
        self.moments.loads(start, line.t, config=line.config)

    def _wrote(self, said: Any, line: Wrote) -> None:
        word = self.lanes.word("buffer", "written", line.device)
        self.lanes.bar(said.role, line.device, LOADS, line.t, line.t, line.size, word)
        self.moments.loads(line.t, line.t, config=False)

    # --- lines of QEMU's trace logs -----------------------------------------------------------------

    def _load_trace(self, said: Any, line: LoadTrace) -> None:
        event, config = (
            line.event.removeprefix("vfio_load_"),
            line.event.startswith("vfio_load_device_config"),
        )
        if event == "state_device_buffer_incoming":
            self._queued(said.role, line, 1)
        elif event.endswith(("buffer_load_start", "config_state_start")):
            if len(self._loading) < _WAITING_MAX:
                self._loading[line.name, line.idx] = line.t
        elif event.endswith(("buffer_load_end", "config_state_end")):
            start = self._loading.pop((line.name, line.idx), line.t)
            word = self.lanes.word("config" if config else "buffer", "loaded", line.name)
            index = -1 if line.idx is None else line.idx
            self.lanes.bar(said.role, line.name, LOADS, start, line.t, 0, word, index)
            self.moments.loads(start, line.t, config=config)
            if not config:
                self._queued(said.role, line, -1)

    def _queued(self, role: str, line: LoadTrace, change: int) -> None:
        if line.name in self._waiting or len(self._waiting) < LANES_MAX:
            self.lanes.counted.add(line.name)
            value = self._waiting[line.name] = max(0, self._waiting.get(line.name, 0) + change)
            self.lanes.step(role, line.name, line.t, value)

    def _thread_trace(self, said: Any, line: ThreadTrace) -> None:
        name = f"{'send' if '_send_' in line.event else 'receive'} thread {line.channel}"
        if line.packets is None:
            if len(self._threads) < LANES_MAX:
                self._threads[said.role, name] = line.t
            return
        start = self._threads.pop((said.role, name), line.t)
        word = self.lanes.word("thread", f"multifd thread, {line.packets} packets")
        self.lanes.bar(said.role, name, THREADS, start, line.t, 0, word)

    def _status(self, said: Any, line: StatusTrace) -> None:
        self.lanes.say(said.role, line.t, f"migration status {line.status}")

    def _vm(self, said: Any, line: VmTrace) -> None:
        bands = self.lanes.bands(self.lanes.traced, said.role, line.name)
        if bands is not None:
            bands.add(line.t, line.state[:_STATE_TEXT_MAX])

    def flush(self) -> None:
        """Take what had begun when the evidence ended."""
        for lane, (start, size, word, idx, offset) in self._begun.items():
            self.lanes.frame_at(lane, start, start, size, word, idx, offset)
        self._begun.clear()
