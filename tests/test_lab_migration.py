# SPDX-License-Identifier: GPL-2.0-or-later
"""Runs as processes: they end, whatever ends them, leave no process, and leave a readable folder."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import msgspec
import pytest

from mockdev.journal import Begin, End, Failure, read
from mockdev.lab.migration import Cancel, run_migration
from mockdev.runtime.config import EndpointConfig, MigrationConfig

# Long enough to be met in the middle, on a busy machine too: 4096 chunks at 0.5 ms each way.
SLOW = MigrationConfig(
    vfs=1, state_bytes=128 << 20, chunk_bytes=32 << 10, channels=2, ram_bytes=1 << 20, capture="none"
)
QUICK = MigrationConfig(vfs=2, state_bytes=1 << 20, channels=3, ram_bytes=1 << 20, profile="unlimited")


class Watch:
    """Collects what a run reports and acts once device state is under way."""

    def __init__(self, act: Any = None) -> None:
        self.reports: list[dict[str, Any]] = []
        self._act = act

    def __call__(self, report: dict[str, Any]) -> None:
        self.reports.append(report)
        moving = report["event"] == "progress" and report["moved_bytes"] > 4 << 20
        if moving and self._act is not None:
            act, self._act = self._act, None
            act()


def children() -> set[int]:
    """Processes that this one has started and that are not gone."""
    found: set[int] = set()
    for task in Path("/proc/self/task").iterdir():
        with contextlib.suppress(FileNotFoundError):  # a thread that has just ended
            found |= {int(pid) for pid in (task / "children").read_text().split()}
    return found


def endpoint_pid(role: str) -> int:
    """The process of one endpoint, a child of ours."""
    for pid in children():
        if Path(f"/proc/{pid}/cmdline").read_bytes().rstrip(b"\0").endswith(role.encode()):
            return pid
    raise AssertionError(f"no {role}")


def check_readable(folder: Path, role: str) -> list[Any]:
    found = list(read(folder / f"{role}.jsonl"))
    assert isinstance(found[0], Begin)
    return found


@pytest.mark.parametrize("transport", ["tcp", "unix"])
def test_a_run_of_two_processes(tmp_path: Path, transport: str) -> None:
    before = children()
    watch = Watch()
    outcome = run_migration(msgspec.structs.replace(QUICK, transport=transport), tmp_path, watch)
    assert (outcome.outcome, outcome.verified) == ("completed", True), outcome
    assert (outcome.source.exit_status, outcome.target.exit_status) == (0, 0)
    assert outcome.device_bytes == sum(
        line.size for line in check_readable(tmp_path, "source") if line.__class__.__name__ == "Image"
    )
    assert outcome.target.cpu_s > 0
    assert children() == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["capture.pcapng", "source.jsonl", "target.jsonl"]
    assert {(r["role"], r["event"]) for r in watch.reports} >= {
        (role, event) for role in ("source", "target") for event in ("ready", "result", "end")
    }


def test_cancel_from_another_thread(tmp_path: Path) -> None:
    before = children()
    cancel = Cancel()
    outcome = run_migration(SLOW, tmp_path, Watch(cancel.cancel), cancel)
    assert outcome.outcome == "cancelled", outcome
    # They are told one after the other: the second may see that the first has left before it is told.
    assert {outcome.source.outcome, outcome.target.outcome} - {"failed"} == {"cancelled"}, outcome
    assert (outcome.source.runs, outcome.target.runs) == (True, False)
    assert children() == before
    for role in ("source", "target"):
        assert isinstance(check_readable(tmp_path, role)[-1], End)


@pytest.mark.parametrize("role", ["source", "target"])
def test_sigterm_at_one_end(tmp_path: Path, role: str) -> None:
    outcome = run_migration(SLOW, tmp_path, Watch(lambda: os.kill(endpoint_pid(role), signal.SIGTERM)))
    ends = {"source": outcome.source, "target": outcome.target}
    other = ends["target" if role == "source" else "source"]
    assert ends[role].outcome == "cancelled"
    assert "SIGTERM" in ends[role].error
    assert ends[role].exit_status == 130
    assert other.outcome == "failed"
    assert outcome.outcome == "cancelled"
    assert (outcome.source.runs, outcome.target.runs) == (True, False)


@pytest.mark.parametrize("role", ["source", "target"])
def test_sigkill_of_one_end(tmp_path: Path, role: str) -> None:
    outcome = run_migration(SLOW, tmp_path, Watch(lambda: os.kill(endpoint_pid(role), signal.SIGKILL)))
    ends = {"source": outcome.source, "target": outcome.target}
    other = "target" if role == "source" else "source"
    assert ends[role].outcome == "crashed"
    assert "SIGKILL" in ends[role].error
    assert ends[other].outcome == "failed"
    assert outcome.outcome == "crashed"
    assert not outcome.target.runs
    assert outcome.source.runs is (role == "target")
    check_readable(tmp_path, role)
    assert any(isinstance(line, Failure) for line in check_readable(tmp_path, other))


def test_ctrl_c(tmp_path: Path) -> None:
    before = children()

    def press() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_migration(SLOW, tmp_path, Watch(press))
    assert children() == before
    for role in ("source", "target"):
        end = check_readable(tmp_path, role)[-1]
        assert isinstance(end, End)
        assert end.outcome in ("cancelled", "failed")


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "source.jsonl").mkdir()
    before = children()
    outcome = run_migration(QUICK, tmp_path)
    assert outcome.source.outcome == "failed"
    assert "source.jsonl" in outcome.source.error
    assert outcome.target.outcome in ("cancelled", "failed")
    assert children() == before


# --- one endpoint process ----------------------------------------------------------------------------


def endpoint(folder: Path, role: str, **changes: Any) -> subprocess.Popen[bytes]:
    """An endpoint process with its configuration written."""
    config = EndpointConfig(role=role, migration=QUICK, folder=str(folder), **changes)  # type: ignore[arg-type]
    process = start(role)
    assert process.stdin is not None
    process.stdin.write(msgspec.json.encode(config) + b"\n")
    process.stdin.flush()
    return process


def start(role: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "mockdev.lab.endpoint", role],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def ending(process: subprocess.Popen[bytes]) -> tuple[int, dict[str, Any], bytes]:
    """Exit status, last report and stderr of a process that ends by itself."""
    output, errors = process.communicate(timeout=30)
    reports = output.splitlines()
    return process.returncode, json.loads(reports[-1]) if reports else {}, errors


def await_ready(process: subprocess.Popen[bytes]) -> dict[str, Any]:
    assert process.stdout is not None
    while (report := json.loads(process.stdout.readline()))["event"] != "ready":
        pass
    return dict(report)


def test_the_end_of_stdin_ends_it(tmp_path: Path) -> None:
    process = endpoint(tmp_path, "target")
    await_ready(process)
    status, report, errors = ending(process)  # communicate closes its stdin
    assert (status, report["outcome"], errors) == (130, "cancelled", b"")
    assert "the end of its parent" in report["error"]


def test_port_in_use(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    first = endpoint(tmp_path / "a", "target")
    address = await_ready(first)["address"]
    status, report, _ = ending(endpoint(tmp_path / "b", "target", address=address))
    assert status == 3
    assert report["error"] == f"cannot listen at {address}: Address already in use"
    ending(first)


@pytest.mark.parametrize(("role", "line"), [("source", b"{}\n"), ("target", b"nonsense\n"), ("target", b"")])
def test_a_configuration_that_is_none(role: str, line: bytes) -> None:
    process = start(role)
    output, errors = process.communicate(line, timeout=30)
    assert process.returncode == 3
    assert json.loads(output)["outcome"] == "failed"
    assert errors == b""


def test_wrong_use() -> None:
    status, report, errors = ending(start("neither"))
    assert (status, report) == (2, {})
    assert b"source|target" in errors


PARENT = """
import os, subprocess, sys
child = subprocess.Popen([sys.executable, "-m", "mockdev.lab.endpoint", "target"],
                         stdin=subprocess.PIPE, stdout=subprocess.PIPE, pass_fds=(int(sys.argv[2]),))
child.stdin.write(sys.argv[1].encode() + b"\\n")
child.stdin.flush()
while b"ready" not in child.stdout.readline():
    pass
keep = os.dup(child.stdin.fileno())
print(child.pid, flush=True)
sys.stdin.read()
"""


def test_the_death_of_the_parent_ends_it(tmp_path: Path) -> None:
    config = msgspec.json.encode(EndpointConfig(role="target", migration=QUICK, folder=str(tmp_path)))
    reading, writing = os.pipe()  # held by parent and child: its end says that both are gone
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, config.decode(), str(writing)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        pass_fds=(writing,),
    )
    os.close(writing)
    assert parent.stdout is not None
    assert parent.stdout.readline()
    parent.kill()
    parent.communicate()
    gone = threading.Thread(target=os.read, args=(reading, 1), daemon=True)
    gone.start()
    gone.join(30)
    assert not gone.is_alive()
    os.close(reading)
    end = check_readable(tmp_path, "target")[-1]
    assert isinstance(end, End)
    assert end.outcome == "cancelled"
