# SPDX-License-Identifier: GPL-2.0-or-later
"""A lossless capture of an interface to a pcapng file, made by a process of its own (see `ring`).

with Sniffer("lo", path, ports=[4444]) as sniffer:
    ...                         # what is sent now is captured
print(sniffer.report)
"""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from verifier.capture.opening import CaptureError
from verifier.capture.socket_filter import PORTS_MAX

RING_BYTES = 128 << 20
_ANSWER_S = 30.0
_ROOT = Path(__file__).parents[2]


class SniffError(CaptureError):
    """The interface cannot be captured; the message names the remedy, when there is one."""


@dataclass(frozen=True, slots=True)
class SniffReport:
    """packets: in the file. dropped: matched, but not in the file: the kernel had no room, or the disk.
    bytes: of the packets in the file, as captured. complaint: "" or the sentence that says why writing
    stopped.
    """

    packets: int = 0
    bytes: int = 0
    dropped: int = 0
    complaint: str = ""


class Sniffer:
    """Captures TCP on `interface` into `path` between start() and stop().

    ports: only TCP from or to one of these, everything when empty. snap_bytes: how much of a packet is kept,
    0 for all. ring_bytes: memory in which packets wait for the disk. expected_bytes: so much of the file is
    made ahead by start(), which doubles the rate that is captured without loss.
    """

    def __init__(
        self,
        interface: str,
        path: str | os.PathLike[str],
        *,
        ports: Sequence[int] = (),
        snap_bytes: int = 0,
        ring_bytes: int = RING_BYTES,
        expected_bytes: int = 0,
    ) -> None:
        if len(ports) > PORTS_MAX:
            raise SniffError(f"a capture can be limited to {PORTS_MAX} ports at most, not {len(ports)}")
        self.report = SniffReport()
        self._order = json.dumps(
            {
                "interface": interface,
                "path": os.fspath(path),
                "ports": list(ports),
                "snap_bytes": snap_bytes,
                "ring_bytes": ring_bytes,
                "expected_bytes": expected_bytes,
            }
        )
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Returns when packets are being captured. Raises SniffError when they cannot be."""
        paths = [str(_ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
        self._process = subprocess.Popen(
            [sys.executable, "-m", "verifier.capture.ring", self._order],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
            start_new_session=True,  # Ctrl-C is for us: we then end it in order
        )
        try:
            answer = self._answer()
        except BaseException:
            self._end()
            raise
        if "refusal" in answer:
            self._end()
            raise SniffError(str(answer["refusal"]))

    def stop(self) -> SniffReport:
        """Ends the capture; what was sent before is in the file. Safe to call twice."""
        if self._process is None:
            return self.report
        try:
            assert self._process.stdin is not None
            self._process.stdin.close()
            self.report = SniffReport(**self._answer())
        finally:
            self._end()
        return self.report

    def __enter__(self) -> Sniffer:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _answer(self) -> dict[str, Any]:
        """The next line of the process: `ready`, `refusal`, or the fields of a report."""
        process = self._process
        assert process is not None
        assert process.stdout is not None
        if not select.select([process.stdout], [], [], _ANSWER_S)[0]:
            raise SniffError(f"the capturing process did not answer within {_ANSWER_S:.0f} s")
        line = process.stdout.readline()
        if not line:
            raise SniffError(f"the capturing process ended by itself with status {process.wait()}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _end(self) -> None:
        process, self._process = self._process, None
        assert process is not None
        for pipe in (process.stdin, process.stdout):
            assert pipe is not None
            pipe.close()
        try:
            process.wait(_ANSWER_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
