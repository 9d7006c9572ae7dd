# SPDX-License-Identifier: GPL-2.0-or-later
"""Processes of ours that answer one line with one line, and end with their parent."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from queue import SimpleQueue

# The search path goes along, so that a worker finds this package wherever the caller found it.
_PROGRAM = "import json, sys; sys.path[:] = json.loads(sys.argv[1]); from {module} import serve; serve()"


def serve(answer: Callable[[str], bytes]) -> None:
    """What a worker does: answer each line of its input with one, which `answer` makes.

    The end of its input (its parent's death, too) ends it, whatever it is doing.
    """
    lines: SimpleQueue[str] = SimpleQueue()

    def listen() -> None:
        for line in sys.stdin:
            lines.put(line)
        os._exit(0)

    threading.Thread(target=listen, daemon=True).start()
    while True:
        said = answer(lines.get())
        with suppress(BrokenPipeError):
            sys.stdout.write(said.decode() + "\n")
            sys.stdout.flush()


class Worker:
    """A process in which `serve` of a module runs: started when it is first asked, and anew when it died."""

    def __init__(self, module: str) -> None:
        self._module = module
        self._process: subprocess.Popen[str] | None = None
        self.killed = False
        self.status = 0  # of the process that died last

    def ask(self, line: str) -> str:
        """The answer to a line; "" when the process died of it or was killed."""
        if self.killed:
            return ""
        process = self._process or self._start()
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdin.write(line + "\n")
            process.stdin.flush()
            answer = process.stdout.readline()
        except BrokenPipeError:
            answer = ""
        if not answer:
            self.close()
            self.status = process.returncode
        return answer

    def kill(self) -> None:
        """End the process at once, from any thread; there will be no other."""
        self.killed = True
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
        program = _PROGRAM.format(module=self._module)
        command = [sys.executable, "-c", program, json.dumps(sys.path)]
        pipe = subprocess.PIPE
        # Ctrl-C on a terminal is for us: we then end it.
        self._process = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, process_group=0)
        if self.killed:  # while we started it
            self._process.kill()
        return self._process
