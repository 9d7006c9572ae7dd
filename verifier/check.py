# SPDX-License-Identifier: GPL-2.0-or-later
"""Judges captures, evidence folders and journals: `check_path` one, `check_paths` any mix of them.

An evidence folder is one input: its capture and its journals are put on one time line. Every other
file is judged on its own. What cannot be read becomes an entry of the report, never an exception.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from os import PathLike
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import msgspec
import xxhash

from mockdev.errors import VfmigError
from verifier.capture.opening import CaptureError, open_file
from verifier.capture.pcapng import Capture, open_capture
from verifier.history.facts import Facts
from verifier.history.history import History
from verifier.history.journals import is_journal, is_trace_log, read_journal
from verifier.history.merge import Lines
from verifier.history.observation import Said
from verifier.invariants import INVARIANTS
from verifier.invariants.judge import Judge
from verifier.invariants.passport import Invariant
from verifier.invariants.reporting import Found, capture_row, report_of
from verifier.verdict import InputRow, Report, Unknown, merge

CAPTURE_NAMES = ("capture.pcapng", "capture.pcapng.gz", "capture.pcapng.zst", "capture.pcap")
JOURNAL_NAMES = ("source.jsonl", "target.jsonl")
_DIGEST_PIECE = 1 << 24

Path_ = str | PathLike[str]
Invariants = Iterable[type[Invariant[Any]]]


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


def check_path(path: Path_, invariants: Invariants = INVARIANTS) -> Report:
    """Judge one capture, evidence folder or journal."""
    where = Path(path)
    try:
        str(where).encode()
    except UnicodeEncodeError:  # no report could name it
        shown = os.fsencode(where).decode("utf-8", "backslashreplace")
        return _unreadable(Path(shown), f"{shown}: its name is not UTF-8, so it cannot be reported on")
    try:
        if where.is_dir():
            return _check_folder(where, invariants)
        return _check_file(where, invariants)
    except OSError as error:
        return _unreadable(where, f"{where}: {error.strerror or error}")
    except VfmigError as error:
        return _unreadable(where, str(error))


def files_of(folder: Path) -> tuple[list[Path], list[Path]]:
    """The capture (none or one) and the journals of an evidence folder. CaptureError: it has neither."""
    captures = [folder / name for name in CAPTURE_NAMES if (folder / name).is_file()]
    journals = [folder / name for name in JOURNAL_NAMES if (folder / name).is_file()]
    if not captures and not journals:
        names = f"{CAPTURE_NAMES[0]}, {' or '.join(JOURNAL_NAMES)}"
        raise CaptureError(f"{folder} is a folder without {names}")
    return captures[:1], journals


def _check_folder(folder: Path, invariants: Invariants) -> Report:
    captures, journals = files_of(folder)
    report = _judge(captures, journals, invariants, one_target=True)
    report.seed = _seed(folder / "run.json")
    return report


def _check_file(path: Path, invariants: Invariants) -> Report:
    with open_file(path) as file:
        head = file.read(4096)
    if is_journal(head):
        return _judge([], [path], invariants)
    if is_trace_log(head):
        return _unreadable(path, f"{path} is a log of QEMU's trace events; such logs cannot be judged yet")
    return _judge([path], [], invariants)


def _judge(
    captures: list[Path], journals: list[Path], invariants: Invariants, *, one_target: bool = False
) -> Report:
    file = str(captures[0]) if captures else ""
    judges: dict[int, Judge] = {}

    def make(facts: Facts) -> Judge:
        judges[facts.number] = Judge(facts, file, invariants)
        return judges[facts.number]

    inputs: list[InputRow] = []
    lines, unknown = _lines(journals, inputs)
    found = Found(inputs=inputs, unknown=unknown)
    with closing(History(make, lines, one_target=one_target)) as history:
        for path in captures:
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
        found.inputs.append(InputRow(path=str(path), size=path.stat().st_size, digest=_digest(path, capture)))
    return [row]


def _lines(journals: list[Path], inputs: list[InputRow]) -> tuple[Lines, list[Unknown]]:
    """The journals on one line, read as they are needed. What one of them lacks is known at its end."""
    unknown: list[Unknown] = []
    readable = []
    for path in journals:
        row = InputRow(path=str(path), size=path.stat().st_size, digest=digest_of(path))
        inputs.append(row)
        readable.append(_tolerant(path, row, unknown))
    return Lines(readable), unknown


def _tolerant(path: Path, row: InputRow, unknown: list[Unknown]) -> Iterator[Said]:
    """A journal's lines. One that turns bad in the middle counts up to there; one without any is an error."""
    count = 0
    error = f"{path} holds no whole line of a journal"
    try:
        for said in read_journal(path):
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


def _digest(path: Path, capture: Capture) -> str:
    """The digest of a capture's file. Mapped pages are digested many times faster than a file is read."""
    with path.open("rb") as file:
        packed = file.read(4) != capture.data[:4]
    return digest_of(path) if packed else f"xxh3-128:{xxhash.xxh3_128_hexdigest(capture.data)}"


def _seed(path: Path) -> int | None:
    try:
        seed = json.loads(path.read_bytes()).get("seed")
    except (OSError, ValueError, AttributeError):
        return None
    return seed if isinstance(seed, int) else None


def _unreadable(path: Path, why: str) -> Report:
    return Report(inputs=[InputRow(path=str(path), error=why)], unknown=[Unknown(id="input", why=why)])


# --- other processes -------------------------------------------------------------------------------

# The search path goes along, so that a worker finds this package wherever the caller found it.
_WORKER = "import json, sys; sys.path[:] = json.loads(sys.argv[1]); from verifier.check import serve; serve()"


def serve() -> None:
    """What a worker does: judge each path that comes as a line of JSON, and answer with a report's line.

    The end of its input (its parent's death, too) ends it, whatever it is doing.
    """
    lines: SimpleQueue[str] = SimpleQueue()

    def listen() -> None:
        for line in sys.stdin:
            lines.put(line)
        os._exit(0)

    threading.Thread(target=listen, daemon=True).start()
    while True:
        report = check_path(json.loads(lines.get()))
        with suppress(BrokenPipeError):
            sys.stdout.write(msgspec.json.encode(report).decode() + "\n")
            sys.stdout.flush()


class _Worker:
    """A process that judges one input after another; one that dies takes only its input's verdict along."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None
        self._killed = False

    def check(self, path: Path) -> Report:
        """Judge a path there."""
        if self._killed:
            return _unreadable(path, f"{path}: called off")
        process = self._process or self._start()
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdin.write(json.dumps(str(path)) + "\n")
            process.stdin.flush()
            answer = process.stdout.readline()
        except BrokenPipeError:
            answer = ""
        if answer:
            return msgspec.json.decode(answer, type=Report)
        self.close()
        return _unreadable(path, f"{path}: the process that judged it ended with status {process.returncode}")

    def kill(self) -> None:
        """End the process at once, from any thread; there will be no other."""
        self._killed = True
        process = self._process
        if process is not None:
            process.kill()

    def close(self) -> None:
        """End the process, if there is one."""
        process, self._process = self._process, None
        if process is not None:
            with suppress(BrokenPipeError):
                process.communicate()

    def _start(self) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", _WORKER, json.dumps(sys.path)]
        pipe = subprocess.PIPE
        # Ctrl-C on a terminal is for us: we then end it.
        self._process = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, process_group=0)
        if self._killed:  # while we started it
            self._process.kill()
        return self._process
