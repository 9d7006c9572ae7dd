# SPDX-License-Identifier: GPL-2.0-or-later
"""Processes that may do less: what a container or a policy can take away.

Each is a command that begins another one: [*WITHOUT_MEMORY, "vfmig", "doctor"].
"""

from __future__ import annotations

import sys

_LISTENED = """
import os, sys
from mockdev.attach.launcher import launch
child = launch(sys.argv[1:], 10000, 1)
child.start()
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child.pid, 0)[1]))
"""

# A filter that answers process_vm_readv and process_vm_writev, whose numbers follow each other, with EPERM.
_WITHOUT_MEMORY = """
import ctypes, os, platform, struct, sys
first = {"x86_64": 310, "aarch64": 270}[platform.machine()]
step = struct.Struct("=HBBI").pack
steps = [step(0x20, 0, 0, 0), step(0x15, 1, 0, first), step(0x15, 0, 1, first + 1), step(6, 0, 0, 0x50001),
         step(6, 0, 0, 0x7FFF0000)]
area = ctypes.create_string_buffer(b"".join(steps))
libc = ctypes.CDLL(None, use_errno=True)
assert libc.prctl(38, 1, 0, 0, 0) == 0
assert libc.prctl(22, 2, struct.pack("=H6xQ", len(steps), ctypes.addressof(area)), 0, 0) == 0
os.execvp(sys.argv[1], sys.argv[1:])
"""

LISTENED = [sys.executable, "-c", _LISTENED]  # a listener for seccomp notifications is there already
WITHOUT_MEMORY = [sys.executable, "-c", _WITHOUT_MEMORY]  # other processes' memory cannot be had
FEW_FILES = ["/bin/sh", "-c", 'ulimit -n 260; exec "$@"', "sh"]
