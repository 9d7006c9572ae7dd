# SPDX-License-Identifier: GPL-2.0-or-later
"""Two hosts on one machine: two network namespaces with a link between them that can be shaped and cut.

    with TwoHosts(rate_bytes_per_s=1_000_000_000) as hosts:
        subprocess.Popen([*hosts.target.inside, "qemu-system-x86_64", ...])
        hosts.set_link(up=False)

The namespaces have no names: they live as long as the file descriptors that this process holds and the
processes that were started inside, which die with it. So a crash leaves nothing to clean up, and there is
nothing that two runs could share. The link's ends exist inside the namespaces only.

Needs root (CAP_SYS_ADMIN), or says so. Everything of netlink is done by pyroute2, in a thread that has moved
into the namespace; the rest of the process stays where it is.
"""

from __future__ import annotations

import ctypes
import errno
import os
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from types import TracebackType
from typing import Any, NamedTuple

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from mockdev.errors import VfmigError
from mockdev.faultspec import FaultSpec
from mockdev.lab.enter import CLONE_NEWNET, enter

_LINK = "link0"  # at either end
_PREFIX = 24
_ADDRESSES = {"source": "10.202.0.1", "target": "10.202.0.2"}
_RATE_MAX = 2**32 - 1  # bytes/s that tbf's parameters hold
_DELAY_NS_MAX = 2**32 * 64  # netem's parameters hold as many ticks of 64 ns
_BURST_BYTES_MIN = 256 << 10  # more than the largest segment that the link is given
_BURSTS_PER_S = 250  # how often the kernel lets a burst through at least, whatever its timers
_QUEUE_US = 50_000
_DELAYED_PACKETS_MAX = 100_000


class NetnsError(VfmigError):
    """The machine does not let us have two hosts, or shape their link; the message says what lacks."""

    environment = True


class Host(NamedTuple):
    """One of the two. address: where the other reaches it. inside: what goes before a command to begin it
    there; namespace: an open file descriptor."""

    name: str
    address: str
    namespace: int

    @property
    def inside(self) -> tuple[str, ...]:
        """Arguments that begin the command after them in this host; mockdev must be importable."""
        return sys.executable, "-m", "mockdev.lab.enter", f"/proc/{os.getpid()}/fd/{self.namespace}"


class TwoHosts:
    """Two namespaces, `source` and `target`, for a `with` block. NetnsError: not on this machine.

    rate_bytes_per_s: of the link, each way, None: as fast as it goes. delay_ns: of each way.
    """

    def __init__(self, rate_bytes_per_s: int | None = None, delay_ns: int = 0) -> None:
        self._timers: list[threading.Timer] = []
        self._shape = rate_bytes_per_s, delay_ns
        files: list[int] = []
        try:
            for _ in _ADDRESSES:
                files.append(_in_thread(_new_namespace))
            self.source, self.target = (
                Host(name, address, file)
                for (name, address), file in zip(_ADDRESSES.items(), files, strict=True)
            )
            _in(self.source, lambda netlink: _add_link(netlink, self.target.namespace))
            for host in (self.source, self.target):
                _in(host, partial(_set_up, address=host.address))
            if rate_bytes_per_s is not None or delay_ns:
                self.shape(rate_bytes_per_s, delay_ns)
        except BaseException:
            for file in files:
                os.close(file)
            raise

    def shape(self, rate_bytes_per_s: int | None, delay_ns: int = 0) -> None:
        """Give the link another rate and delay from now on."""
        if rate_bytes_per_s is not None and not 1 <= rate_bytes_per_s <= _RATE_MAX:
            raise NetnsError(f"a link of {rate_bytes_per_s} bytes/s; the kernel shapes 1 to {_RATE_MAX}")
        if not 0 <= delay_ns < _DELAY_NS_MAX:
            raise NetnsError(
                f"a link's delay of {delay_ns / 1e9:g} s; the kernel delays 0 to {_DELAY_NS_MAX / 1e9:.0f} s"
            )
        for host in (self.source, self.target):
            _in(host, lambda netlink: _shape(netlink, rate_bytes_per_s, delay_ns))
        self._shape = rate_bytes_per_s, delay_ns

    def set_link(self, *, up: bool) -> None:
        """Pull the cable out, or plug it in again."""
        _in(self.source, lambda netlink: _set_link(netlink, up))

    def strike(self, fault: FaultSpec) -> None:
        """Carry out a fault of the link, now."""
        if fault.what == "rate":
            self.shape(fault.value, self._shape[1])
        elif fault.what == "delay":
            self.shape(self._shape[0], fault.value)
        else:
            self.set_link(up=False)
        if fault.what == "flap":
            timer = threading.Timer(fault.value / 1e9, self._plug_in)
            self._timers.append(timer)
            timer.start()

    def close(self) -> None:
        """Let go of the namespaces; the kernel removes them and the link with the last process inside."""
        for timer in self._timers:
            timer.cancel()
            timer.join()
        for host in (self.source, self.target):
            os.close(host.namespace)

    def _plug_in(self) -> None:
        with suppress(NetnsError):
            self.set_link(up=True)

    def __enter__(self) -> TwoHosts:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


# -- threads -----------------------------------------------------------------------------------------


def _in_thread(work: Callable[[], Any]) -> Any:
    """Run in a thread of its own, for it may move to another namespace."""
    result: list[Any] = []
    failure: list[BaseException] = []

    def run() -> None:
        try:
            result.append(work())
        except BaseException as error:
            failure.append(error)

    thread = threading.Thread(target=run, name="netns")
    thread.start()
    thread.join()
    if failure:
        raise failure[0]
    return result[0]


def _in(host: Host, work: Callable[[IPRoute], None]) -> None:
    """Do something with the netlink of a host."""

    def run() -> None:
        enter(host.namespace)
        with IPRoute() as netlink:
            work(netlink)

    try:
        _in_thread(run)
    except NetlinkError as error:
        raise NetnsError(f"the kernel refuses to set up the network of {host.name}: {error}") from None
    except OSError as error:
        raise NetnsError(f"cannot enter the namespace of {host.name}: {error.strerror}") from None


def _new_namespace() -> int:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(CLONE_NEWNET):
        number = ctypes.get_errno()
        if number == errno.EPERM:
            raise NetnsError(
                "network namespaces need root (CAP_SYS_ADMIN): run it with sudo, or leave --netns out"
            )
        raise NetnsError(f"no network namespace can be had: {os.strerror(number)}")
    return os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)


# -- netlink -----------------------------------------------------------------------------------------


def _add_link(netlink: IPRoute, other: int) -> None:
    try:
        netlink.link("add", ifname=_LINK, kind="veth", peer={"ifname": _LINK, "net_ns_fd": other})
    except NetlinkError as error:
        if error.code == errno.EOPNOTSUPP:
            raise NetnsError("the kernel has no veth links: load or build the module veth") from None
        raise


def _set_up(netlink: IPRoute, address: str) -> None:
    netlink.link("set", index=netlink.link_lookup(ifname="lo")[0], state="up")
    index = _index(netlink)
    netlink.addr("add", index=index, address=address, prefixlen=_PREFIX)
    netlink.link("set", index=index, state="up")


def _set_link(netlink: IPRoute, up: bool) -> None:
    netlink.link("set", index=_index(netlink), state="up" if up else "down")


def _shape(netlink: IPRoute, rate_bytes_per_s: int | None, delay_ns: int) -> None:
    index = _index(netlink)
    with suppress(NetlinkError):  # there was none
        netlink.tc("del", index=index, parent=0xFFFFFFFF)
    parent: dict[str, Any] = {}
    if delay_ns:
        delay_us = delay_ns // 1000
        _queue(netlink, index, "netem", handle="1:", delay=delay_us, limit=_DELAYED_PACKETS_MAX)
        parent = {"parent": "1:1"}
    if rate_bytes_per_s is not None:
        burst = max(_BURST_BYTES_MIN, rate_bytes_per_s // _BURSTS_PER_S)
        shape = {"rate": rate_bytes_per_s, "burst": burst, "latency": _QUEUE_US}
        _queue(netlink, index, "tbf", handle="2:", **shape, **parent)


def _queue(netlink: IPRoute, index: int, kind: str, **options: Any) -> None:
    try:
        netlink.tc("add", kind, index, **options)
    except NetlinkError as error:
        if error.code in (errno.ENOENT, errno.EOPNOTSUPP):
            what = "delay" if kind == "netem" else "limit the rate of"
            raise NetnsError(
                f"this kernel cannot {what} a link: it has no {kind} (module sch_{kind})"
            ) from None
        raise


def _index(netlink: IPRoute) -> int:
    return int(netlink.link_lookup(ifname=_LINK)[0])
