# SPDX-License-Identifier: GPL-2.0-or-later
"""Judges what is still being written: an evidence folder, a capture, a journal or a log of QEMU's that grows.

The same decoders and invariants as in `check` hear the same observations, as they come; what can only be told
at the end (`at_end`) is left to `check`. Each file is read in its own order. Between files there is no such
order: they are read one after the other, and a writer may be late. So no verdict of `on` may rest on which of
two files was ahead (tests/test_invariants_orders.py holds all invariants to that); lines and packets are
merged by time only so that witnesses come as they do offline.

The judging is done by a process of its own, so that it takes no time from whom it watches, and a file that
somebody shortens takes nobody else along. `Online` starts it, and hears from it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable
from contextlib import closing, suppress
from functools import partial
from pathlib import Path
from typing import Any

import msgspec

from mockdev.errors import VfmigError
from verifier.capture.growing import GrowingCapture, open_growing
from verifier.capture.opening import CaptureError
from verifier.check import CAPTURE_NAMES, JOURNAL_NAMES, LOG_NAMES, QMP_NAMES, evidence_of
from verifier.history.facts import Facts
from verifier.history.growing import GrowingFile, GrowingLines
from verifier.history.history import History
from verifier.history.qmp import QmpReader
from verifier.history.traces import TraceReader
from verifier.invariants import INVARIANTS
from verifier.invariants.judge import Judge
from verifier.invariants.passport import Invariant
from verifier.verdict import Violation

LOOK_S = 0.02  # between two looks at files that had nothing new
_NICE = 5  # on a busy machine whom it watches comes first


class Message(msgspec.Struct, omit_defaults=True):
    """A line from the process that judges.

    ready: it looks. violation: one that was found. complaint: why it judges no longer, or not all. ended:
    what it watches is over.
    """

    ready: bool = False
    violation: Violation | None = None
    complaint: str = ""
    ended: bool = False


class Enough(Exception):
    """The following is to end."""


def files_of(folder: Path) -> list[GrowingFile]:
    """The journals and logs of an evidence folder, there or still to come."""
    files = [GrowingFile(folder / name) for name in JOURNAL_NAMES]
    for names, reader in ((LOG_NAMES, TraceReader), (QMP_NAMES, QmpReader)):
        files += [GrowingFile(folder / name, partial(reader, role=name.partition(".")[0])) for name in names]
    return files


class Follower:
    """Follows one path. say: hears of each violation at once, of complaints, and of the end.

    wait: called again and again with the seconds that there is nothing to do for; it may raise Enough.
    """

    def __init__(
        self,
        path: Path,
        say: Callable[[Message], None],
        wait: Callable[[float], None],
        invariants: Iterable[type[Invariant[Any]]] = INVARIANTS,
    ) -> None:
        self._say = say
        self._wait = wait
        self._invariants = tuple(invariants)
        self._judges: list[Judge] = []
        self._told: dict[Judge, int] = {}
        self._complained: set[str] = set()
        self._quiet = 0  # looks in a row at which there was nothing new
        self._folder = path.is_dir()
        self._capture_path, files = self._parts(path)
        self._capture: GrowingCapture | None = None
        self._lines = GrowingLines(files)
        self._history = History(self._make, self._lines, one_target=self._folder, digests=False)

    def run(self) -> None:
        """Until `wait` raises, or all is over."""
        with closing(self._lines), suppress(Enough):
            while self._capture is None:
                self._turn(waiting=True)
                self._open()
            with self._capture as capture:
                self._history.read_capture(capture)
                raise CaptureError(capture.truncated)

    def _parts(self, path: Path) -> tuple[Path | None, list[GrowingFile]]:
        if self._folder:
            return path / CAPTURE_NAMES[0], files_of(path)
        while not path.stat().st_size:
            self._wait(LOOK_S)
        evidence = evidence_of(path)
        files = [GrowingFile(journal) for journal in evidence.journals]
        files += [GrowingFile(log, TraceReader) for log in evidence.logs.values()]
        files += [GrowingFile(log, QmpReader) for log in evidence.events.values()]
        return (path if evidence.captures else None), files

    def _open(self) -> None:
        path = self._capture_path
        if path is not None and path.exists():
            self._capture = open_growing(path, lambda waiting: self._turn(waiting=waiting))

    def _make(self, facts: Facts) -> Judge:
        judge = Judge(facts, str(self._capture_path or ""), self._invariants)
        self._judges.append(judge)
        return judge

    def _turn(self, *, waiting: bool) -> None:
        """Let the lines have their turn, and tell what was found."""
        if waiting:
            # What was read at the last look; what the capture says of that time has come meanwhile, mostly.
            self._history.finish()
        news = self._lines.poll()
        self._tell()
        self._quiet = 0 if news or not waiting else self._quiet + 1
        if self._quiet > 1 and self._over:
            self._say(Message(ended=True))
            raise Enough
        self._wait(LOOK_S if self._quiet else 0)

    def _tell(self) -> None:
        for judge in self._judges:
            for violation in judge.violations[self._told.get(judge, 0) :]:
                self._say(Message(violation=violation))
            self._told[judge] = len(judge.violations)
        for file in self._lines.files:
            if file.problem and file.problem not in self._complained:
                self._complained.add(file.problem)
                self._say(Message(complaint=file.problem))

    @property
    def _over(self) -> bool:
        """Whether all connections of a migration were closed, and all journals have their last line."""
        all_facts = [judge.facts for judge in self._judges]
        lanes = [lane for facts in all_facts for lane in facts.lanes]
        if self._capture is not None:
            if self._capture.behind or not any(facts.main for facts in all_facts):
                return False
            if not all(lane.ended for lane in lanes):
                return False
        journals = [(role, facts) for facts in all_facts for role in facts.journals]
        return bool(lanes or journals) and all(role in facts.outcomes for role, facts in journals)


# --- the process that judges -----------------------------------------------------------------------

_CHILD = "import json, sys; sys.path[:] = json.loads(sys.argv[1]); from verifier.online import serve; serve()"


def serve() -> None:
    """What that process does: follow the path in its arguments until that ends, or its standard input."""
    over = threading.Event()

    def listen() -> None:
        while os.read(sys.stdin.fileno(), 1 << 16):
            pass
        over.set()

    def say(message: Message) -> None:
        try:
            sys.stdout.buffer.write(msgspec.json.encode(message) + b"\n")
            sys.stdout.buffer.flush()
        except OSError:
            raise Enough from None

    def wait(seconds: float) -> None:
        if over.wait(seconds):
            raise Enough

    with suppress(OSError):
        os.nice(_NICE)
    threading.Thread(target=listen, daemon=True).start()
    with suppress(Enough):
        say(Message(ready=True))
        try:
            Follower(Path(json.loads(sys.argv[2])), say, wait).run()
        except VfmigError as error:
            say(Message(complaint=str(error)))
        except OSError as error:
            say(Message(complaint=f"{error.filename or 'a file'}: {error.strerror}"))


class Online:
    """A process that judges `path` while it grows.

    hear: called from a thread for each violation. complaint: "" or why it could not judge all.
    ended: whether what it watched is over.
    """

    def __init__(self, path: Path, hear: Callable[[Violation], None]) -> None:
        self.complaint = ""
        self.ended = False
        self._hear = hear
        self._closing = False
        arguments = [json.dumps(sys.path), json.dumps(str(path))]
        pipe = subprocess.PIPE
        # Ctrl-C on a terminal is for us: we then end it.
        self._process = subprocess.Popen(
            [sys.executable, "-c", _CHILD, *arguments], stdin=pipe, stdout=pipe, process_group=0
        )
        self.pid = self._process.pid
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._read, name="online judge", daemon=True)
        self._thread.start()

    def __enter__(self) -> Online:
        try:
            self._ready.wait()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def wait(self) -> None:
        """Until it has ended by itself."""
        while self._thread.is_alive():
            self._thread.join(1.0)  # a signal is heard in between

    def close(self) -> None:
        """End it, and wait for its end."""
        self._closing = True
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._thread.join()

    def _read(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as output:
            for line in output:
                message = msgspec.json.decode(line, type=Message)
                self._ready.set()
                self.ended |= message.ended
                self.complaint = self.complaint or message.complaint
                if message.violation is not None:
                    self._hear(message.violation)
        status = self._process.wait()
        if status and not self.complaint:
            self.complaint = f"the process that judged while the run went on ended with status {status}"
        self._ready.set()
