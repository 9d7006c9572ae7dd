# SPDX-License-Identifier: GPL-2.0-or-later
"""Two hosts on one machine: endpoints migrate between them, their link is shaped and cut, nothing stays.

As root (or with CAP_SYS_ADMIN) all of it happens; without, each test holds the sentence that says so.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from mockdev.clock import wall_offset_ns
from mockdev.faultspec import parse
from mockdev.journal import Mark, read
from mockdev.lab.netns import NetnsError, TwoHosts
from mockdev.lab.relay import RelayConfig, RelayProcess
from mockdev.runtime.config import EndpointConfig, MigrationConfig
from verifier.check import check_path

MB = 10**6
CAP_SYS_ADMIN = 1 << 21
MIGRATION = MigrationConfig(
    vfs=2, state_bytes=4 * MB, channels=2, ram_bytes=1 << 20, profile="unlimited", idle_timeout_s=20.0
)


def may() -> bool:
    """Whether this process may make namespaces."""
    status = Path("/proc/self/status").read_text()
    found = re.search(r"CapEff:\s*([0-9a-f]+)", status)
    return found is not None and bool(int(found[1], 16) & CAP_SYS_ADMIN)


def with_namespaces(test: Callable[..., None]) -> Callable[..., None]:
    """The test, or without the right to make namespaces the sentence that says so."""

    @functools.wraps(test)
    def run(**fixtures: Any) -> None:
        if may():
            test(**fixtures)
            return
        with pytest.raises(NetnsError, match=r"network namespaces need root \(CAP_SYS_ADMIN\)") as caught:
            TwoHosts()
        assert caught.value.environment

    return run


@contextlib.contextmanager
def two_hosts(**link: Any) -> Iterator[TwoHosts]:
    """Both hosts; nothing of them stays."""
    with TwoHosts(**link) as hosts:
        inodes = {os.fstat(host.namespace).st_ino for host in (hosts.source, hosts.target)}
        yield hosts
    assert not holders(inodes)


def holders(inodes: set[int]) -> set[str]:
    """What keeps namespaces alive: processes inside, and descriptors anywhere."""
    found = set()
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it has just ended
            for link in (process / "ns/net", *(process / "fd").iterdir()):
                with contextlib.suppress(OSError):
                    name = os.readlink(link)
                    if name.startswith("net:[") and int(name[5:-1]) in inodes:
                        found.add(f"{link}: {(process / 'cmdline').read_bytes()!r}")
    return found


class End:
    """An endpoint process in a host."""

    def __init__(self, inside: tuple[str, ...], config: EndpointConfig) -> None:
        self.process = subprocess.Popen(
            [*inside, sys.executable, "-m", "mockdev.lab.endpoint", config.role],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert self.process.stdin is not None
        self.process.stdin.write(msgspec.json.encode(config) + b"\n")
        self.process.stdin.flush()
        self.result: dict[str, Any] = {}

    def until(self, event: str, moved_bytes: int = 0) -> dict[str, Any]:
        """Read what it says until it says this."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            said = json.loads(line)
            if said["event"] == "result":
                self.result = said
            if said["event"] == event and said.get("moved_bytes", moved_bytes) >= moved_bytes:
                return dict(said)
        raise AssertionError(f"it never said {event}: {self.result}")

    def end(self) -> dict[str, Any]:
        """Its result, once it has ended."""
        if not self.result:
            self.until("result")
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.wait(60)
        self.process.stdin.close()
        self.process.stdout.close()
        return self.result


@contextlib.contextmanager
def migrating(
    hosts: TwoHosts, folder: Path, migration: MigrationConfig = MIGRATION, address: str = ""
) -> Iterator[tuple[End, End]]:
    """(source, target) that have begun to migrate. address: where the target listens behind a relay in its
    host; "": the source connects to it from the other host.
    """
    offset_ns = wall_offset_ns()

    def config(role: Any, address: str) -> EndpointConfig:
        return EndpointConfig(
            role=role, migration=migration, folder=str(folder), address=address, clock_offset_ns=offset_ns
        )

    ends = []
    try:
        target = End(hosts.target.inside, config("target", address or f"{hosts.target.address}:0"))
        ends.append(target)
        listens = target.until("ready")["address"]
        with contextlib.ExitStack() as stack:
            if address:
                relay = RelayConfig(
                    target=listens,
                    listen=f"{hosts.target.address}:0",
                    capture=str(folder / "capture.pcapng"),
                    clock_offset_ns=offset_ns,
                )
                listens = stack.enter_context(RelayProcess(relay, inside=hosts.target.inside)).address
            source = End(hosts.source.inside, config("source", listens))
            ends.append(source)
            yield source, target
            for end in ends:
                end.end()
    finally:
        for end in ends:
            if end.process.poll() is None:
                end.process.kill()
                end.process.wait()


def downtime_ns(folder: Path) -> int:
    """From the stop at the source to the resume at the target."""
    marks = {
        line.name: line.t
        for role in ("source", "target")
        for line in read(folder / f"{role}.jsonl")
        if isinstance(line, Mark)
    }
    return marks["resume"] - marks["stop"]


@with_namespaces
def test_a_migration_from_host_to_host_holds(tmp_path: Path) -> None:
    with two_hosts() as hosts, migrating(hosts, tmp_path) as (source, target):
        pass
    assert (source.result["outcome"], target.result["outcome"]) == ("completed", "completed")
    assert check_path(tmp_path).standing == "holds"


@with_namespaces
def test_a_relay_in_one_of_the_hosts_records_it(tmp_path: Path) -> None:
    migration = msgspec.structs.replace(MIGRATION, capture="none")
    with (
        two_hosts() as hosts,
        migrating(hosts, tmp_path, migration, address="127.0.0.1:0") as (source, target),
    ):
        pass
    assert (source.result["outcome"], target.result["outcome"]) == ("completed", "completed")
    assert check_path(tmp_path).standing == "holds"
    assert (tmp_path / "capture.pcapng").stat().st_size > 2 * MIGRATION.state_bytes


@with_namespaces
def test_the_link_has_the_rate_that_it_is_given(tmp_path: Path) -> None:
    times = []
    with two_hosts(rate_bytes_per_s=60 * MB) as hosts:
        for rate in (60 * MB, 15 * MB):
            folder = tmp_path / str(rate)
            folder.mkdir()
            hosts.shape(rate)
            with migrating(hosts, folder) as (source, target):
                pass
            assert (source.result["outcome"], target.result["outcome"]) == ("completed", "completed")
            times.append(downtime_ns(folder))
    assert 2.5 < times[1] / times[0] < 6  # 4, but for what a burst lets through


@with_namespaces
def test_a_cut_link_ends_both_ends_with_the_reason(tmp_path: Path) -> None:
    migration = msgspec.structs.replace(MIGRATION, idle_timeout_s=2.0)
    with (
        two_hosts(rate_bytes_per_s=4 * MB) as hosts,
        migrating(hosts, tmp_path, migration) as (source, target),
    ):
        source.until("progress", moved_bytes=2 * MB)
        hosts.strike(parse("link:down"))
    for end in (source, target):
        assert end.result["outcome"] == "failed"
        assert re.search(
            "silence on all connections for 2 s|unreachable|without a verdict", end.result["error"]
        )
    assert source.result["runs"]
    assert not target.result["runs"]


@with_namespaces
def test_a_link_that_comes_back_is_survived(tmp_path: Path) -> None:
    with two_hosts(rate_bytes_per_s=8 * MB) as hosts, migrating(hosts, tmp_path) as (source, target):
        source.until("progress", moved_bytes=2 * MB)
        hosts.strike(parse("link:flap=200ms"))
    assert (source.result["outcome"], target.result["outcome"]) == ("completed", "completed")
    assert check_path(tmp_path).standing == "holds"


@with_namespaces
def test_a_delay_is_had_or_its_lack_is_said() -> None:
    with two_hosts() as hosts:
        try:
            hosts.strike(parse("link:delay=20ms"))
        except NetnsError as error:
            said = str(error)
        else:
            said = round_trip(hosts)
        assert said in (
            "this kernel cannot delay a link: it has no netem (module sch_netem)",
            "40 ms or more",
        )
        hosts.strike(parse("link:rate=1MB"))


def round_trip(hosts: TwoHosts) -> str:
    """Whether an answer from the other host takes 40 ms."""
    program = (
        "import socket, sys, time\n"
        "t = time.monotonic()\n"
        "try: socket.create_connection((sys.argv[1], 1), 5)\n"
        "except ConnectionRefusedError: print(time.monotonic() - t)\n"
    )
    command = [*hosts.source.inside, sys.executable, "-c", program, hosts.target.address]
    took_s = float(subprocess.run(command, stdout=subprocess.PIPE, check=True, timeout=60).stdout)
    return "40 ms or more" if took_s >= 0.04 else f"{took_s * 1000:.0f} ms"


@with_namespaces
def test_a_rate_that_no_link_has() -> None:
    with (
        two_hosts() as hosts,
        pytest.raises(NetnsError, match="a link of 0 bytes/s; the kernel shapes 1 to "),
    ):
        hosts.shape(0)


@with_namespaces
def test_a_delay_that_no_link_has() -> None:
    with (
        two_hosts() as hosts,
        pytest.raises(NetnsError, match="delay of 1e\\+06 s; the kernel delays 0 to 275 s"),
    ):
        hosts.shape(None, 10**15)


@with_namespaces
def test_a_killed_owner_leaves_nothing() -> None:
    program = (
        "import os, signal, subprocess, sys\n"
        "from mockdev.lab.netns import TwoHosts\n"
        "hosts = TwoHosts()\n"
        "inside = subprocess.Popen([*hosts.source.inside, sys.executable, '-c', "
        "'import time; print(1, flush=True); time.sleep(600)'], stdout=subprocess.PIPE)\n"
        "inside.stdout.readline()\n"
        "inodes = [os.fstat(host.namespace).st_ino for host in (hosts.source, hosts.target)]\n"
        "print(inside.pid, *inodes, flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], stdout=subprocess.PIPE, timeout=60)
    assert done.returncode == -signal.SIGKILL
    pid, *inodes = map(int, done.stdout.split())
    waiting = threading.Event()
    for _ in range(2000):
        if not holders(set(inodes)):
            break
        waiting.wait(0.01)
    assert not holders(set(inodes))
    state = Path(f"/proc/{pid}/stat")
    assert not state.exists() or state.read_text().rpartition(")")[2].split()[0] == "Z"


@with_namespaces
def test_nothing_of_it_is_seen_outside() -> None:
    before = sorted(os.listdir("/sys/class/net"))
    with two_hosts(rate_bytes_per_s=MB):
        assert sorted(os.listdir("/sys/class/net")) == before


def test_without_the_right_it_says_what_lacks() -> None:
    program = (
        "import os\n"
        "from mockdev.lab.netns import NetnsError, TwoHosts\n"
        "if os.geteuid() == 0: os.setuid(65534)\n"
        "try: TwoHosts()\n"
        "except NetnsError as error: print(error, error.environment)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.stdout == (
        "network namespaces need root (CAP_SYS_ADMIN): run it with sudo, or leave --netns out True\n"
    ), done.stderr
