# SPDX-License-Identifier: GPL-2.0-or-later
"""What was judged, put into the words of the report."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from verifier.capture.flows import Lane, Role
from verifier.capture.pcapng import Capture
from verifier.history.decode import FlowDecoder
from verifier.history.facts import DeviceJournal, Facts
from verifier.history.history import History
from verifier.invariants.judge import Judge
from verifier.verdict import (
    CaptureRow,
    DeviceRow,
    Exercised,
    FlowRow,
    InputRow,
    Report,
    RunRow,
    Standing,
    Timing,
    Unknown,
    merge_rows,
)

_NS_PER_MS = 1e6
_NOTHING = DeviceJournal()


@dataclass
class Found:
    """What the reading of an input came to, besides its history."""

    inputs: list[InputRow] = field(default_factory=list)
    unknown: list[Unknown] = field(default_factory=list)
    captures: list[CaptureRow] = field(default_factory=list)


def report_of(history: History, judges: dict[int, Judge], found: Found) -> Report:
    """The report on one input. The judges have heard all."""
    report = Report(inputs=found.inputs)
    exercised = report.exercised = Exercised(accounting=found.captures)
    report.unknown = [*found.unknown, *_doubts_of_input(history, found)]
    transfers = set()
    for number, judge in sorted(judges.items()):
        facts = judge.facts
        report.violations += judge.violations
        report.unknown += [*_doubts(facts), *judge.unknown]
        report.devices += device_rows(facts)
        report.channels += len(facts.channels) or _journalled_channels(facts)
        exercised.invariants = merge_rows(exercised.invariants, judge.rows)
        exercised.journal_lines += facts.lines
        exercised.log_lines += facts.log_lines
        exercised.unanswered += facts.unanswered
        transfers.add(transfer_of(facts))
        if len(judges) == 1:
            report.outcome = facts.outcome
            report.timing = timing_of(facts)
        if number == 0:
            report.run = run_row(facts)
    transfers.discard(None)
    report.transfer = transfers.pop() if len(transfers) == 1 else "mixed" if transfers else None
    dialects = {judge.facts.dialect.name for judge in judges.values() if judge.facts.dialect}
    report.dialect = dialects.pop() if len(dialects) == 1 else None
    _count(exercised, history, report)
    report.standing = standing_of(report)
    return report


def standing_of(report: Report) -> Standing:
    """Violated if anything is; unknown if anything relevant is, or nothing was exercised; else it holds."""
    if report.violations:
        return Standing.VIOLATED
    held = any(row.standing is Standing.HOLDS for row in report.exercised.invariants.values())
    return Standing.HOLDS if held and not report.unknown and not report.unreadable else Standing.UNKNOWN


def device_rows(facts: Facts) -> list[DeviceRow]:
    """One row per device of the migration, by name."""
    source, target = facts.said["source"], facts.said["target"]
    names = facts.images.keys() | facts.started | _with_state(source) | _with_state(target)
    return [
        _device_row(facts, name, source.get(name, _NOTHING), target.get(name, _NOTHING))
        for name in sorted(names)
    ]


def _with_state(devices: dict[str, DeviceJournal]) -> set[str]:
    return {name for name, said in devices.items() if said.payload_bytes or said.buffers or said.image}


def _device_row(facts: Facts, name: str, source: DeviceJournal, target: DeviceJournal) -> DeviceRow:
    row = DeviceRow(id=name, queued_bytes_max=target.queued_bytes_max)
    image = facts.images.get(name)
    if image is not None:
        row.buffers, row.payload_bytes = image.buffers, image.payload_bytes
        row.index_last, row.reorder_max = image.index_last, image.reorder_max
        row.config_seen = image.config_seen
        row.wire_digest = image.digest()
    elif not facts.lanes:
        said = target if target.buffers or not source.buffers else source
        row.buffers, row.payload_bytes, row.index_last = said.buffers, said.payload_bytes, said.index_last
        row.config_seen = said.config
    row.config_seen |= name in facts.main_config
    row.saved_digest = source.image.digest if source.image else None
    if target.image and not _broken_off(facts, source, target):
        row.loaded_digest = target.image.digest
    seen = row.wire_digest if _seen_whole(facts, row, source, target) else None
    digests = {d for d in (row.saved_digest, seen, row.loaded_digest) if d is not None}
    if len(digests) > 1:
        row.equal = False
    elif row.loaded_digest is not None and (row.saved_digest or seen):
        row.equal = True
    if target.equal is False:
        row.equal = False
    return row


def _seen_whole(facts: Facts, row: DeviceRow, source: DeviceJournal, target: DeviceJournal) -> bool:
    """Whether the capture can have all of a state: one that breaks off (a full disk) shows no difference."""
    sizes = [said.image.size for said in (source, target) if said.image]
    return facts.completed is not None or not sizes or row.payload_bytes >= min(sizes)


def _broken_off(facts: Facts, source: DeviceJournal, target: DeviceJournal) -> bool:
    """Whether what the target says it loaded is only what there was when it failed."""
    if facts.completed or source.image is None or target.image is None:
        return False
    return target.image.size < source.image.size


def run_row(facts: Facts) -> RunRow | None:
    """What the run's record adds."""
    record = facts.record
    if record is None:
        return None
    row = RunRow(
        endpoints=record.endpoints,
        faults=list(record.faults),
        struck=facts.fault_struck,
        failed_as_injected=facts.failed_as_injected,
    )
    if record.guest_ram is not None:
        row.guest_ram_equal, row.guest_ram_pages = record.guest_ram.equal, record.guest_ram.pages
    return row


def transfer_of(facts: Facts) -> str | None:
    """How device state travelled; without devices, how RAM did."""
    ways = {"multifd" if i.index_last is not None else "main" for i in facts.images.values()}
    for said in facts.said.values():
        ways |= {"main" if d.index_last is None else "multifd" for d in said.values() if d.buffers}
    if not ways and facts.lanes:
        ways = {"multifd" if facts.channels else "main"}
    return ways.pop() if len(ways) == 1 else "mixed" if ways else None


def timing_of(facts: Facts) -> Timing:
    """What can be said of times; None where it cannot. Downtime: by journals, else by the run's record."""
    timing = Timing()
    stop, resume = facts.marks.get(("source", "stop")), facts.marks.get(("target", "resume"))
    if stop is not None and resume is not None:
        timing.downtime_ms = (resume - stop) / _NS_PER_MS
    elif facts.record is not None:
        timing.downtime_ms = facts.record.downtime_ms
    first, last = facts.state_first_ns, facts.state_last_ns
    if first is not None and last is not None and last > first:
        timing.device_state_ms = (last - first) / _NS_PER_MS
        timing.throughput_bytes_per_s = facts.state_bytes / ((last - first) / 1e9)
    return timing


def capture_row(path: Path, capture: Capture, history: History) -> CaptureRow:
    """What one capture held, flow by flow."""
    accounting = history.accounting
    assert accounting is not None, "the capture was read"
    return CaptureRow(
        path=str(path),
        packets=accounting.packets,
        connections=accounting.connections,
        drops=capture.drops,
        unread=dict(accounting.unread),
        truncated=capture.truncated,
        flows=[_flow_row(decoder) for decoder in history.decoders],
    )


def _flow_row(decoder: FlowDecoder) -> FlowRow:
    lane = decoder.lane
    flow = lane.flow
    return FlowRow(
        flow=str(lane),
        role=lane.role.value,
        channel=lane.channel,
        migration=lane.migration,
        total_bytes=flow.delivered_bytes + flow.hole_bytes,
        decoded_bytes=decoder.decoded,
        lost_bytes=decoder.lost,
        undecodable_bytes=decoder.undecodable,
        frames=decoder.frames,
        ended=flow.ended,
        why=decoder.why or lane.why,
    )


def _count(exercised: Exercised, history: History, report: Report) -> None:
    members = [d for d in history.decoders if d.lane.migration is not None]
    exercised.frames = sum(d.frames for d in members)
    exercised.bytes = sum(d.decoded for d in members)
    exercised.flows = sum(1 for d in members if d.at)
    exercised.devices = len(report.devices)
    exercised.migrations = sum(1 for case in history.cases.values() if case.facts.lanes)


def _journalled_channels(facts: Facts) -> int:
    begin = facts.begins.get("source") or facts.begins.get("target")
    said = begin.config.get("channels") if begin is not None else None
    return said if isinstance(said, int) else 0


# --- what stands between a stream and "holds" ------------------------------------------------------


def _doubts_of_input(history: History, found: Found) -> list[Unknown]:
    out = []
    for row in found.captures:
        if row.truncated:
            out.append(Unknown(id="input", why=row.truncated))
    for decoder in history.decoders:
        lane = decoder.lane
        if lane.role is Role.NONE and decoder.at and not lane.foreign:
            out.append(Unknown(id="flow", why=f"{lane}: {decoder.why or lane.why}"))
        elif lane.migration is not None and decoder.why and lane.role is not Role.REVERSE:
            out.append(Unknown(id="flow", why=f"{lane.name}: cannot be read on: {decoder.why}"))
        if lane.flow.conflicts:
            why = f"{lane}: sent again with other content, first at offset {lane.flow.first_conflict}"
            out.append(Unknown(id="flow", why=why))
        if lane.flow.damaged_packet and not lane.foreign:
            which = f"packet {lane.flow.damaged_packet} has a wrong TCP checksum"
            why = f"{lane}: {which}, and bytes that it may have carried are not in the capture"
            out.append(Unknown(id="flow", why=why))
    if found.captures and not history.cases:
        out.append(Unknown(id="input", why="the capture holds no migration that can be recognised"))
    return out


def _doubts(facts: Facts) -> list[Unknown]:
    out = []
    for lane, hole in facts.holes.items():
        why = (
            f"{lane.name}: {hole.size} bytes are not in the capture ({hole.reason}), at offset {hole.offset}"
        )
        out.append(Unknown(id="flow", why=why))
    for lane in facts.channels if facts.completed else ():
        end = facts.ends.get(lane)
        if end is not None and end.inside and end.kind == "cut":
            out.append(Unknown(id="flow", why=f"{lane.name}: the capture ends inside a packet"))
    if not facts.failed_as_injected:
        told = _ends_not_completed(facts)
        if not told and not facts.completed:
            told = [_why_not_completed(facts)]
        out += [Unknown(id="outcome", why=why) for why in told]
    return out


def _ends_not_completed(facts: Facts) -> list[str]:
    """Why each end did not, as far as anybody says; the target first, for it often has the cause."""
    out = []
    for role in ("target", "source"):
        end = facts.endings.of(role)
        if end is None or end.outcome == "completed":
            continue
        if facts.record is not None and facts.record.outcome is not None:
            out.append(f"the {role} {end.outcome}: {end.error}")
        else:
            out.append(f"the {role} says that the migration {end.outcome}")
    if out and facts.record is not None and facts.record.faults and not facts.fault_struck:
        out.append("nothing says that a fault that was asked for struck")
    return out


def _why_not_completed(facts: Facts) -> str:
    if not facts.lanes:
        return _why_by_word(facts)
    main: Lane | None = facts.main
    if main is None:
        return "no main channel is in the capture, so nothing says whether the migration completed"
    if facts.shut:
        return f"the target said that the migration failed (SHUT {facts.shut})"
    if facts.reset:
        return "the main connection was reset, which is not how a migration ends well"
    if facts.eof is None:
        return (
            "the main channel ends before the end of its stream: the migration broke off, or the capture did"
        )
    if facts.return_path_opened and facts.shut is None:
        return "the target never said that it loaded everything (SHUT)"
    return "the capture does not show how the migration ended"


def _why_by_word(facts: Facts) -> str:
    for role in sorted(facts.journals):
        if role not in facts.outcomes:
            return f"the {role}'s journal has no end"
    return "nothing says how the migration ended"
