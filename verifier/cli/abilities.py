# SPDX-License-Identifier: GPL-2.0-or-later
"""What this machine can do for us, found out by trying it, and how to get what is missing."""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import re
import select
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path

import msgspec

from mockdev.attach.filter import AttachError
from mockdev.attach.launcher import base_fd, launch, placeholder
from mockdev.attach.memory import ProcessMemory
from mockdev.attach.notify import GoneError, Listener
from mockdev.errors import DeviceError, VfmigError
from mockdev.lab.qemu import ALLOW_MEMORY, BINARY, INSTALL, find_qemu
from mockdev.lab.qemu_end import check_release
from mockdev.runtime.config import MigrationConfig
from verifier.cli.room import available_bytes, needed_bytes
from verifier.report.sizes import size_text

RUN, QEMU = "vfmig run", "vfmig run --source qemu --target qemu"
JOBS = (RUN, QEMU)

_KERNEL_MIN = (5, 19)
_PYTHON_MIN = (3, 11)
_SECOND_QEMU = Path(".qemu", BINARY)
_DESCRIPTORS = 1 + 3 * MigrationConfig().vfs  # what a supervisor reserves
_PROBE_S = 10.0
_WORD = b"lent\n"
_CLONE_NEWNET = 0x40000000


class Ability(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that a machine has or has not. found: what there is, or why there is none.

    needed_by: those of JOBS that cannot do without; remedy: what to do, "" where it is there.
    """

    name: str
    there: bool
    found: str
    purpose: str
    needed_by: tuple[str, ...] = ()
    remedy: str = ""


def abilities(qemu: str | None = None) -> list[Ability]:
    """All of them. qemu: the binary to ask about. Forks: call it before there are other threads."""
    seccomp, memory = _lending()
    found = [_python(), _memory_free(), _open_files(), _kernel(), seccomp, memory, _pidfd()]
    return [*found, *_qemu(qemu), _second_qemu(), _kvm(), _tshark(), _raw_sockets(), _namespaces()]


def missing(found: list[Ability], job: str) -> list[str]:
    """Names of what this job needs and the machine has not."""
    return [ability.name for ability in found if job in ability.needed_by and not ability.there]


# -- for every run -----------------------------------------------------------------------------------


def _python() -> Ability:
    return Ability(
        name="Python",
        there=sys.version_info >= _PYTHON_MIN,
        found=f"{platform.python_implementation()} {platform.python_version()}",
        purpose="everything",
        needed_by=JOBS,
        remedy="" if sys.version_info >= _PYTHON_MIN else "apt install python3 (3.11 or newer)",
    )


def _memory_free() -> Ability:
    needed, free = needed_bytes(MigrationConfig()), available_bytes()
    enough = free is None or free >= needed
    return Ability(
        name="free memory",
        there=enough,
        found="not known" if free is None else f"{size_text(free)}, {size_text(needed)} wanted",
        purpose="a run of 4 VFs with 100 MiB each",
        needed_by=JOBS,
        remedy="" if enough else "end other programs, or take --state-size 10MiB",
    )


# -- to lend devices to a QEMU -----------------------------------------------------------------------


def _open_files() -> Ability:
    try:
        base_fd(_DESCRIPTORS)
        error = ""
    except AttachError as refused:
        error = str(refused)
    return Ability(
        name="open files",
        there=not error,
        found=error or f"room for {_DESCRIPTORS} reserved descriptors",
        purpose="mock devices in a QEMU",
        needed_by=(QEMU,),
        remedy="ulimit -Hn 20000 (as root), or LimitNOFILE=20000 in a systemd unit" if error else "",
    )


def _kernel() -> Ability:
    numbers = re.match(r"(\d+)\.(\d+)", platform.release())
    enough = platform.system() == "Linux" and (
        numbers is None or (int(numbers[1]), int(numbers[2])) >= _KERNEL_MIN
    )
    return Ability(
        name="kernel",
        there=enough,
        found=f"{platform.system()} {platform.release()}",
        purpose="seccomp notifications that wait killably",
        needed_by=(QEMU,),
        remedy="" if enough else "apt install linux-image-amd64 (5.19 or newer), and reboot",
    )


def _lending() -> tuple[Ability, Ability]:
    """Seccomp user notification and another process's memory, by lending a shell its standard input."""
    refused = denied = ""
    script = f'read -r word && [ "$word" = {_WORD.decode().strip()} ]'
    try:
        child = launch(["/bin/sh", "-c", script], 0, 1)
    except (AttachError, OSError) as error:
        refused = str(error)
    else:
        listener = Listener(child.listener)
        try:
            child.start()
            denied = _lend_word(listener, child.pid)
        except (AttachError, OSError) as error:
            refused = str(error)
        finally:
            with suppress(ProcessLookupError):
                os.kill(child.pid, signal.SIGKILL)
            listener.close()
            os.waitpid(child.pid, 0)
    seccomp = Ability(
        name="seccomp user notification",
        there=not refused,
        found=refused or "a call was answered",
        purpose="mock devices in a QEMU",
        needed_by=(QEMU,),
        remedy="run outside of the container, or with --security-opt seccomp=unconfined" if refused else "",
    )
    memory = Ability(
        name="memory of a child",
        there=not refused and not denied,
        found="not tried: no call came" if refused else denied or "written and read back",
        purpose="mock devices in a QEMU",
        needed_by=(QEMU,),
        remedy=ALLOW_MEMORY if denied else "",
    )
    return seccomp, memory


def _lend_word(listener: Listener, pid: int) -> str:
    """Answer the child's reads with a word; "" or why its memory cannot be had.

    AttachError: it does not go on as it must then.
    """
    deadline = time.monotonic() + _PROBE_S
    word = memoryview(_WORD)
    with ExitStack() as stack:
        ended = os.pidfd_open(pid)
        stack.callback(os.close, ended)
        while time.monotonic() < deadline and not select.select([ended], [], [], 0)[0]:
            select.select([listener.fd, ended], [], [], max(0.0, deadline - time.monotonic()))
            try:
                call = listener.receive()
                if call is None:
                    continue
                size = min(call.args[2], len(word))
                memory = ProcessMemory(call.pid)
                memory.write_from([word[:size]], call.args[1])
                if memory.read(call.args[1], size) != word[:size]:
                    return "what was written there was not found again"
                with placeholder() as inert:
                    listener.give_fd(call, inert.fileno(), call.fd)
                listener.answer(call, size)
                word = word[size:]
            except DeviceError as error:
                return f"refused ({errno.errorcode.get(error.errno, error.errno)})"
            except GoneError:
                select.select([ended], [], [], max(0.0, deadline - time.monotonic()))
    status = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    if status is None or status.si_status != 0:
        raise AttachError("a call was answered, but the program that made it did not go on as it must")
    return ""


def _pidfd() -> Ability:
    why = ""
    try:
        os.close(os.pidfd_open(os.getpid()))
    except OSError as error:
        why = error.strerror or "refused"
    return Ability(
        name="pidfd",
        there=not why,
        found=why or "opened",
        purpose="seeing a QEMU end",
        needed_by=(QEMU,),
        remedy="Linux 5.3 or newer, outside of a container that forbids pidfd_open" if why else "",
    )


def _qemu(path: str | None) -> list[Ability]:
    """The QEMU itself, and whether it has what devices are lent through."""
    binary = path or BINARY
    try:
        release = check_release(binary)
        why = ""
    except VfmigError as error:
        release, why = "", str(error).removesuffix(INSTALL).rstrip(" ;:,")
    found = [
        Ability(
            name="QEMU",
            there=not why,
            found=why or f"{release}, {find_qemu(binary)}",
            purpose="mock devices in a real QEMU",
            needed_by=(QEMU,),
            remedy=INSTALL if why else "",
        )
    ]
    for option, name in (("-device", "vfio-pci"), ("-object", "iommufd")):
        there = not why and _has(binary, option, name)
        found.append(
            Ability(
                name=f"{name} in QEMU",
                there=there,
                found="listed" if there else "not asked: no QEMU" if why else f"not in {option} help",
                purpose="mock devices in a real QEMU",
                needed_by=(QEMU,),
                remedy="" if there else "that of QEMU" if why else f"a QEMU built with VFIO: {INSTALL}",
            )
        )
    return found


def _has(binary: str, option: str, name: str) -> bool:
    """Whether QEMU lists it."""
    arguments = [find_qemu(binary), "-machine", "none", option, "help"]
    with suppress(OSError, subprocess.TimeoutExpired):
        done = subprocess.run(arguments, capture_output=True, stdin=subprocess.DEVNULL, timeout=_PROBE_S)
        return (
            re.search(rf"(?<![\w-]){re.escape(name)}(?![\w-])", done.stdout.decode(errors="replace"))
            is not None
        )
    return False


# -- for more ----------------------------------------------------------------------------------------


def _second_qemu() -> Ability:
    try:
        release = check_release(str(_SECOND_QEMU.absolute()))
        why = ""
    except VfmigError:
        release, why = "", f"none in {_SECOND_QEMU.parent}"
    return Ability(
        name="second QEMU",
        there=not why,
        found=why or f"{release}, {_SECOND_QEMU}",
        purpose="migrations between two releases",
        remedy="make qemu (needs: apt install mmdebstrap)" if why else "",
    )


def _kvm() -> Ability:
    device = Path("/dev/kvm")
    why = ""
    try:
        os.close(os.open(device, os.O_RDWR | os.O_CLOEXEC))
    except OSError as error:
        why = error.strerror or "refused"
    remedy = "allow virtualization (in the firmware, or nested in the host of this VM)"
    if why and device.exists():
        remedy = "adduser $USER kvm, and log in again"
    return Ability(
        name="/dev/kvm",
        there=not why,
        found=why or "opened",
        purpose="--accel kvm; without it --accel tcg",
        remedy=remedy if why else "",
    )


def _tshark() -> Ability:
    path = shutil.which("tshark")
    return Ability(
        name="tshark",
        there=path is not None,
        found=path or "not installed",
        purpose="the tests, and bench check",
        remedy="" if path else "apt install tshark",
    )


def _raw_sockets() -> Ability:
    why = _refusal(lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW).close())
    return Ability(
        name="raw sockets",
        there=not why,
        found=why or "opened",
        purpose="--sniff",
        remedy=f"run as root, or: sudo setcap cap_net_raw+ep {shlex.quote(os.path.realpath(sys.executable))}"
        if why
        else "",
    )


def _namespaces() -> Ability:
    why = _refusal(_new_network)
    return Ability(
        name="network namespaces",
        there=not why,
        found=why or "made one",
        purpose="--netns",
        remedy="run as root, in a container with --privileged" if why else "",
    )


def _new_network() -> None:
    """In a child, for who has left a namespace cannot always come back."""
    pid = os.fork()
    if pid == 0:
        libc = ctypes.CDLL(None, use_errno=True)
        os._exit(ctypes.get_errno() & 0xFF if libc.unshare(_CLONE_NEWNET) else 0)
    number = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if number:
        raise OSError(number, os.strerror(number))


def _refusal(attempt: Callable[[], None]) -> str:
    try:
        attempt()
    except OSError as error:
        return error.strerror or str(error)
    return ""
