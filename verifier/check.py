# SPDX-License-Identifier: GPL-2.0-or-later
"""Judges captures, evidence folders, journals and logs of QEMU: `check_path` one, `check_paths` any mix.

An evidence folder is one input: its capture, its journals, and QEMU's trace logs and QMP events are put on
one time line, with what its run.json says of the ends. Every other file is judged on its own. What cannot be
read becomes an entry of the report, never an exception.
"""

from __future__ import annotations

import json
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import xxhash

from mockdev.errors import VfmigError
from mockdev.wire.seal import SEAL_BYTES, find_seal
from verifier import worker
from verifier.capture.opening import CaptureError, open_file
from verifier.capture.pcapng import Capture, open_capture
from verifier.history.facts import Facts
from verifier.history.history import History
from verifier.history.journals import is_journal, read_journal
from verifier.history.merge import Lines
from verifier.history.observation import Observation, Said
from verifier.history.qmp import is_qmp_log, read_events
from verifier.history.record import NAME, RecordError, RunRecord, read_record
from verifier.history.traces import HEAD_BYTES, is_trace_log, read_traces
from verifier.invariants import INVARIANTS
from verifier.invariants.judge import Accompanied, Judge
from verifier.invariants.passport import Invariant
from verifier.invariants.reporting import Found, capture_row, report_of
from verifier.verdict import InputRow, Report, Unknown, merge

CAPTURE_NAMES = ("capture.pcapng", "capture.pcapng.gz", "capture.pcapng.zst", "capture.pcap")
JOURNAL_NAMES = ("source.jsonl", "target.jsonl")
LOG_NAMES = ("source.log", "target.log")
QMP_NAMES = ("source.qmp.jsonl", "target.qmp.jsonl")
_DIGEST_PIECE = 1 << 24

Path_ = str | PathLike[str]
Invariants = Iterable[type[Invariant[Any]]]

# Who else wants to hear of a migration that was found (a picture of it, say); None: nobody.
Watch = Callable[[Facts], Callable[[Observation], None] | None]


class Evidence(NamedTuple):
    """What there is to judge. captures: none or one; logs, events: of trace events, of QMP events, by the end
    that wrote them.

    complaint: why there is no record, where there should be one; else "".
    """

    captures: list[Path]
    journals: list[Path]
    logs: dict[str, Path]
    events: dict[str, Path]
    record: RunRecord | None = None
    complaint: str = ""


def check_paths(paths: Sequence[Path_], jobs: int = 1) -> Report:
    """Judge all inputs, each on its own, in up to `jobs` processes; one report on them all."""
    return merge(check_each(paths, jobs))


def check_each(paths: Sequence[Path_], jobs: int = 1) -> list[Report]:
    """One report per input, in their order."""
    if jobs <= 1 or len(paths) <= 1:
        return [check_path(path) for path in paths]
    # This process takes its share, so that the others' start-up costs nothing while there is work for it.
    workers = [_Worker() for _ in range(min(jobs, len(paths)) - 1)]
    left = deque(enumerate(paths))
    reports: dict[int, Report] = {}

    def work(check: Callable[[Path], Report]) -> None:
        while True:
            try:
                number, path = left.popleft()
            except IndexError:
                return
            reports[number] = check(Path(path))

    with ThreadPoolExecutor(len(workers)) as pool:
        try:
            others = [pool.submit(work, worker.check) for worker in workers]
            work(check_path)
            for other in others:
                other.result()
            return [reports[number] for number in range(len(paths))]
        except BaseException:  # Ctrl-C, say: nobody waits for what is under way
            pool.shutdown(wait=False, cancel_futures=True)
            for worker in workers:
                worker.kill()
            raise
        finally:
            pool.shutdown()
            for worker in workers:
                worker.close()


def check_path(path: Path_, invariants: Invariants = INVARIANTS, watch: Watch | None = None) -> Report:
    """Judge one capture, evidence folder, journal, trace log or QMP log. watch: who listens along."""
    where = Path(path)
    try:
        str(where).encode()
    except UnicodeEncodeError:  # no report could name it
        shown = os.fsencode(where).decode("utf-8", "backslashreplace")
        return _unreadable(Path(shown), f"{shown}: its name is not UTF-8, so it cannot be reported on")
    try:
        evidence = evidence_of(where)
        report = _judge(evidence, invariants, watch, one_target=where.is_dir())
    except OSError as error:
        return _unreadable(where, f"{where}: {error.strerror or error}")
    except VfmigError as error:
        return _unreadable(where, str(error))
    report.seed = evidence.record.seed if evidence.record else None
    return report


def evidence_of(path: Path) -> Evidence:
    """What there is to judge in a file or an evidence folder. CaptureError: nothing.

    A file that is neither a journal nor a log of QEMU's counts as a capture.
    """
    if path.is_dir():
        return _files_of(path)
    with open_file(path) as file:
        head = file.read(HEAD_BYTES)
    if is_qmp_log(head):
        return Evidence([], [], {}, {"": path})
    if is_journal(head):
        return Evidence([], [path], {}, {})
    return Evidence([], [], {"": path}, {}) if is_trace_log(head) else Evidence([path], [], {}, {})


def _files_of(folder: Path) -> Evidence:
    captures = [folder / name for name in CAPTURE_NAMES if (folder / name).is_file()]
    journals = [folder / name for name in JOURNAL_NAMES if (folder / name).is_file()]
    logs = {name.partition(".")[0]: folder / name for name in LOG_NAMES if _has_traces(folder / name)}
    events = {name.partition(".")[0]: folder / name for name in QMP_NAMES if (folder / name).is_file()}
    if not captures and not journals and not logs and not events:
        names = f"{CAPTURE_NAMES[0]}, {' or '.join(JOURNAL_NAMES)}"
        raise CaptureError(f"{folder} is a folder without {names}")
    try:
        return Evidence(captures[:1], journals, logs, events, read_record(folder / NAME))
    except RecordError as error:
        return Evidence(captures[:1], journals, logs, events, complaint=str(error))


def _has_traces(path: Path) -> bool:
    """Whether a log holds trace events of QEMU; a mock endpoint's holds what it printed."""
    if not path.is_file():
        return False
    with open_file(path) as file:
        return is_trace_log(file.read(HEAD_BYTES))


def _judge(
    evidence: Evidence, invariants: Invariants, watch: Watch | None, *, one_target: bool = False
) -> Report:
    file = str(evidence.captures[0]) if evidence.captures else ""
    judges: dict[int, Judge] = {}

    def make(facts: Facts) -> Judge | Accompanied:
        judge = judges[facts.number] = Judge(facts, file, invariants)
        listener = watch(facts) if watch is not None else None
        return judge if listener is None else Accompanied(judge, listener)

    inputs: list[InputRow] = []
    lines, unknown = _lines(evidence, inputs)
    found = Found(inputs=inputs, unknown=unknown)
    with closing(History(make, lines, one_target=one_target, record=evidence.record)) as history:
        for path in evidence.captures:
            found.captures += _read_capture(path, history, found)
        history.finish()
        for judge in judges.values():
            judge.at_end()
        return report_of(history, judges, found)


def _read_capture(path: Path, history: History, found: Found) -> list[Any]:
    """Feed a capture to the history, and say what it held; a file that is none becomes an entry."""
    try:
        capture = open_capture(path)
    except CaptureError as error:
        found.inputs.append(InputRow(path=str(path), error=str(error)))
        return []
    with capture:
        history.read_capture(capture)
        row = capture_row(path, capture, history)
        # The digests of images read the mapped file, so they are made while it is open.
        for case in history.cases.values():
            for image in case.facts.images.values():
                image.digest()
        digest, broken = _digest(path, capture)
        found.inputs.append(InputRow(path=str(path), size=path.stat().st_size, digest=digest))
        if broken:
            found.unknown.append(Unknown(id="input", why=broken))
    return [row]


def _lines(evidence: Evidence, inputs: list[InputRow]) -> tuple[Lines, list[Unknown]]:
    """Journals, logs and record on one line, read as they are needed. What one lacks is known at its end."""
    unknown: list[Unknown] = []
    readable: list[Iterator[Said]] = []
    for path in evidence.journals:
        row = InputRow(path=str(path), size=path.stat().st_size, digest=digest_of(path))
        inputs.append(row)
        readable.append(_tolerant(path, read_journal(path), "a journal", row, unknown))
    for role, path in evidence.logs.items():
        row = InputRow(path=str(path), size=path.stat().st_size, digest=digest_of(path))
        inputs.append(row)
        readable.append(_tolerant(path, read_traces(path, role), "a trace log", row, unknown))
    for role, path in evidence.events.items():
        row = InputRow(path=str(path), size=path.stat().st_size, digest=digest_of(path))
        inputs.append(row)
        readable.append(_tolerant(path, read_events(path, role), "a QMP log", row, unknown))
    if evidence.complaint:
        unknown.append(Unknown(id="input", why=evidence.complaint))
    if evidence.record is not None:
        readable.append(iter(evidence.record.ends))
    return Lines(readable), unknown


def _tolerant(
    path: Path, lines: Iterator[Said], what: str, row: InputRow, unknown: list[Unknown]
) -> Iterator[Said]:
    """A file's lines. One that turns bad in the middle counts up to there; one without any is an error."""
    count = 0
    error = f"{path} holds no whole line of {what}"
    try:
        for said in lines:
            count += 1
            yield said
    except (VfmigError, OSError) as failure:
        error = str(failure)
        if count:
            unknown.append(Unknown(id="input", why=error))
    if not count:
        row.error = error


def digest_of(path: Path) -> str:
    """The digest of a whole file, as reports name it."""
    hasher = xxhash.xxh3_128()
    with path.open("rb") as file:
        while piece := file.read(_DIGEST_PIECE):
            hasher.update(piece)
    return f"xxh3-128:{hasher.hexdigest()}"


def _digest(path: Path, capture: Capture) -> tuple[str, str]:
    """The digest of a capture's file, and a sentence if it has a seal that its bytes do not match.

    Mapped pages are digested many times faster than a file is read; the seal is looked at on the way.
    """
    with path.open("rb") as file:
        packed = file.read(4) != capture.data[:4]
    size = len(capture.data)
    found = find_seal(capture.data[-SEAL_BYTES:], size)
    hasher, broken = xxhash.xxh3_128(), ""
    with memoryview(capture.data) as view:
        if found is not None:
            hasher.update(view[: found.at])
            if hasher.digest() != found.digest:
                broken = (
                    f"{path} was altered or damaged after it was written: its seal names the digest "
                    f"{found.digest.hex()}, its bytes have {hasher.hexdigest()}"
                )
            hasher.update(view[found.at :])
        elif not packed:
            hasher.update(view)
    return digest_of(path) if packed else f"xxh3-128:{hasher.hexdigest()}", broken


def _unreadable(path: Path, why: str) -> Report:
    return Report(inputs=[InputRow(path=str(path), error=why)], unknown=[Unknown(id="input", why=why)])


# --- other processes -------------------------------------------------------------------------------


def serve() -> None:
    """What a worker does: judge each path that comes as a line of JSON, and answer with a report's line."""
    worker.serve(lambda line: msgspec.json.encode(check_path(json.loads(line))))


class _Worker:
    """A process that judges one input after another; one that dies takes only its input's verdict along."""

    def __init__(self) -> None:
        self._worker = worker.Worker(__name__)
        self.kill = self._worker.kill
        self.close = self._worker.close

    def check(self, path: Path) -> Report:
        """Judge a path there."""
        answer = self._worker.ask(json.dumps(str(path)))
        if answer:
            return msgspec.json.decode(answer, type=Report)
        if self._worker.killed:
            return _unreadable(path, f"{path}: called off")
        return _unreadable(
            path, f"{path}: the process that judged it ended with status {self._worker.status}"
        )
