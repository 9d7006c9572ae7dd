# SPDX-License-Identifier: GPL-2.0-or-later
"""Many migrations in a row, mixed, in one process: what is left behind afterwards?

Run as `python -m tests.soak COUNT [SEED]`. It prints a line per hundred and what grew: processes, open files,
threads, memory, temporary files. Exit status 1 when something did, or a migration came out as it should not.
"""

from __future__ import annotations

import os
import random
import sys
import tempfile
import threading
from collections import Counter
from pathlib import Path

from mockdev.lab.migration import Hosts, Pair, run_migration
from mockdev.lab.qemu import BINARY
from mockdev.lab.qemu_end import Vm, versioned
from mockdev.runtime.config import MigrationConfig
from tests.test_interop import KNOWN_ABORT, NEWER

MIB = 1 << 20
WARM = 20  # migrations before anything is counted: imports, caches, the interpreter's own growth
GROWTH_BYTES_MAX = 24 * MIB
FAULTS = (
    (),
    (),
    ("target.vf0.load:eio@1MiB",),
    ("source.vf0.save:eio@1MiB",),
    ("channel.1:close@1MiB",),
    ("source.process:kill",),
    ("target.process:kill",),
    ("source.process:cancel",),
)


def left() -> dict[str, int]:
    """What there is now of each kind."""
    children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    resident = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    temporary = [name for name in os.listdir(tempfile.gettempdir()) if name.startswith("vfmig-")]
    return {
        "processes": len(children),
        "descriptors": len(os.listdir("/proc/self/fd")),
        "threads": threading.active_count(),
        "temporary files": len(temporary),
        "resident bytes": resident,
    }


def one(chance: random.Random, seed: int) -> str:
    """One migration of a random kind; how it came out, or what is wrong with that."""
    binaries = [chance.choice((None, BINARY, NEWER)) for _ in range(2)]
    named = [binary for binary in binaries if binary is not None]
    machine = versioned(chance.choice(("pc", "q35")), named) if named else "pc"
    vms = [None if binary is None else Vm(binary=binary, machine=machine, trace=False) for binary in binaries]
    faults = chance.choice(FAULTS)
    config = MigrationConfig(
        vfs=chance.choice((1, 2, 4)),
        state_bytes=chance.choice((3, 5)) * MIB,
        channels=chance.choice((2, 6)),
        transfer=chance.choice(("multifd", "main")),
        precopy_bytes=chance.choice((0, MIB)),
        profile="unlimited",
        capture=chance.choice(("none", "headers", "full")),
        seed=seed,
        faults=faults,
        idle_timeout_s=10,
    )
    hosts = Hosts() if os.getuid() == 0 and chance.random() < 0.1 else None
    pair = Pair(source=vms[0], target=vms[1], relay=chance.random() < 0.3, hosts=hosts)
    with tempfile.TemporaryDirectory() as folder:
        outcome = run_migration(config, Path(folder), pair=pair)
    if KNOWN_ABORT in outcome.source.error:
        return "QEMU's known abort"
    if not faults and (outcome.outcome, outcome.verified) != ("completed", True):
        return f"WRONG {config} {pair}: {outcome}"
    return f"{outcome.outcome}{' after a fault' if faults else ''}"


def main() -> int:
    """Migrate, and compare what there is before and after."""
    count = int(sys.argv[1])
    seed = int(sys.argv[2]) if len(sys.argv) > 2 else 0
    chance = random.Random(seed)
    outcomes: Counter[str] = Counter()
    before = left()
    for number in range(count):
        if number == WARM:
            before = left()
        how = one(chance, seed + number)
        outcomes[how.partition(" MigrationConfig")[0]] += 1
        if how.startswith("WRONG"):
            print(how, flush=True)
        if (number + 1) % 100 == 0:
            print(number + 1, dict(outcomes), left(), flush=True)
    after = left()
    grown = [kind for kind in before if after[kind] > before[kind] and kind != "resident bytes"]
    grown += (
        ["resident bytes"] if after["resident bytes"] > before["resident bytes"] + GROWTH_BYTES_MAX else []
    )
    print("before", before, "after", after, "grown:", ", ".join(grown) or "nothing")
    return int(bool(grown) or any(how.startswith("WRONG") for how in outcomes))


if __name__ == "__main__":
    sys.exit(main())
