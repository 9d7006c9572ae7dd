# SPDX-License-Identifier: GPL-2.0-or-later
"""Real QEMU's own multifd, as a measure: guest RAM that is all non-zero, between two stopped machines."""

from __future__ import annotations

import os
import socket
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from mockdev.lab.qemu import Qemu, QemuError, find_qemu
from verifier.bench.sample import Sample

_MIB = 1 << 20
_SHM = Path("/dev/shm")


@contextmanager
def ram_image(size: int) -> Iterator[Path]:
    """A file in memory with `size` bytes that no page of which is zero, nor like its neighbour."""
    piece = os.urandom(_MIB)
    with tempfile.NamedTemporaryFile(dir=_SHM if _SHM.is_dir() else None, prefix="vfmig-ram-") as file:
        for _ in range(size // _MIB):
            file.write(piece)
        file.flush()
        yield Path(file.name)


def _machine(binary: str, size: int, memory: str, *more: str) -> Qemu:
    arguments = ["-accel", "tcg", "-machine", "pc,memory-backend=ram", "-m", f"{size // _MIB}M", "-S"]
    arguments += ["-nodefaults", "-display", "none", "-vga", "none", "-net", "none"]
    arguments += ["-object", f"{memory},id=ram,size={size // _MIB}M,prealloc=on", *more]
    return Qemu(binary, arguments)


def migrate_ram(image: Path, channels: int) -> Sample:
    """One migration of the machine whose RAM is `image`, over `channels` multifd channels."""
    binary = find_qemu()
    size = image.stat().st_size
    with socket.create_server(("127.0.0.1", 0)) as free:
        uri = f"tcp:127.0.0.1:{free.getsockname()[1]}"
    with ExitStack() as stack:
        backend = f"memory-backend-file,mem-path={image},share=off"
        source = stack.enter_context(_machine(binary, size, backend))
        target = stack.enter_context(_machine(binary, size, "memory-backend-ram", "-incoming", "defer"))
        capabilities = [{"capability": name, "state": True} for name in ("multifd", "return-path")]
        for end in (source, target):
            end.execute("migrate-set-capabilities", capabilities=capabilities)
            end.execute("migrate-set-parameters", multifd_channels=channels, max_bandwidth=0)
        target.execute("migrate-incoming", uri=uri)
        cpu_s = source.cpu_s() + target.cpu_s()
        source.execute("migrate", uri=uri)
        while (state := source.execute("query-migrate"))["status"] != "completed":
            if state["status"] in ("failed", "cancelled"):
                raise QemuError(f"QEMU's own migration {state['status']}: {state.get('error-desc', '')}")
            time.sleep(0.005)
        cpu_s = source.cpu_s() + target.cpu_s() - cpu_s
        seconds = (state["total-time"] - state["setup-time"]) / 1000
        return Sample(state["ram"]["transferred"], seconds, cpu_s)
