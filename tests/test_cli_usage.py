# SPDX-License-Identifier: GPL-2.0-or-later
"""Wrong use of the command: a sentence, the documented exit code, never a traceback, nothing left behind."""

from __future__ import annotations

import json
import os
import shlex
from pathlib import Path

import pytest

from mockdev.runtime.config import MigrationConfig
from tests.canaries.script import good
from verifier.cli.group import execute
from verifier.cli.room import RoomError, available_bytes, check_room, needed_bytes
from verifier.report.sizes import size_text

QUICK = [
    "--profile",
    "unlimited",
    "--vfs",
    "1",
    "--state-size",
    "64KiB",
    "--ram",
    "0",
    "--transport",
    "memory",
]


def said(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of the command."""
    code = execute(list(arguments))
    output, errors = capsys.readouterr()
    assert "Traceback" not in errors + output
    return code, output, errors


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ("run --state-size 0", "less than 1 byte"),
        ("run --state-size -5", "is not a size"),
        ("run --state-size 1e3", "is not a size"),
        ("run --state-size ''", "is not a size"),
        ("run --vfs 0", "1<=x<=30"),
        ("run --vfs 31", "1<=x<=30"),
        ("run --channels -1", "0<=x<=255"),
        ("run --channels 256", "0<=x<=255"),
        ("run --channels 0", "0 channels"),
        ("run --state-size 1MiB --precopy 1MiB", "before the stop"),
        ("run --state-size 1MiB --precopy 1GiB", "before the stop"),
        ("run --ram 1000", "4096-byte pages"),
        ("run --queue-cap 0", "less than 1 byte"),
        ("run --load-threads 0", "1<=x<=256"),
        ("run --runs 0", "x>=1"),
        ("run --seed -1", "0<=x<="),
        ("run --transfer both", "'multifd', 'main'"),
        ("run --dialect 9.2", "'10.0'"),
        ("run --sniff lo --transport unix", "--transport tcp"),
        ("run --sniff lo --capture headers", "--capture headers"),
        ("check", "PATH..."),
        ("check x --jobs 0", "1<=x<=256"),
        ("show", "PATH"),
        ("show a b", "unexpected extra argument"),
        ("frob", "No such command"),
        ("--frob", "No such option"),
    ],
)
def test_wrong_use_is_2_and_leaves_nothing(
    arguments: str,
    sentence: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    code, output, errors = said(capsys, *shlex.split(arguments))
    assert (code, output) == (2, "")
    assert sentence in errors
    assert not list(tmp_path.iterdir())


def test_a_run_beyond_memory_is_refused_with_figures(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code, _, errors = said(capsys, "run", "--state-size", "900TiB")
    assert code == 4
    assert "--state-size" in errors
    assert size_text(900 << 40) in errors
    assert not list(tmp_path.iterdir())


def test_the_room_that_a_run_needs() -> None:
    config = MigrationConfig(vfs=3, state_bytes=100 << 20, ram_bytes=10 << 20)
    assert needed_bytes(config) > 2 * (300 + 10) << 20
    check_room(config, needed_bytes(config))
    with pytest.raises(RoomError, match="3 x 100 MiB"):
        check_room(config, needed_bytes(config) - 1)


def test_the_limit_of_a_control_group_counts(tmp_path: Path) -> None:
    proc, cgroups = tmp_path / "proc", tmp_path / "cgroup"
    (proc / "self").mkdir(parents=True)
    inner = cgroups / "a" / "b"
    inner.mkdir(parents=True)
    assert available_bytes(proc, cgroups) is None
    (proc / "meminfo").write_text("MemTotal: 9000 kB\nMemAvailable:  8000 kB\n")
    assert available_bytes(proc, cgroups) == 8000 << 10
    (proc / "self/cgroup").write_text("0::/a/b\n")
    (inner / "memory.max").write_text("max\n")
    (inner / "memory.current").write_text("5\n")
    assert available_bytes(proc, cgroups) == 8000 << 10
    (cgroups / "a" / "memory.max").write_text("1000\n")
    (cgroups / "a" / "memory.current").write_text("400\n")
    assert available_bytes(proc, cgroups) == 600


def test_evidence_folders_that_cannot_be(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full/file").touch()
    for where, sentence in [
        ("full", "is not empty"),
        ("full/file", "a file of that name"),
        ("full/file/x", "a file"),
    ]:
        for more in ([], ["--runs", "2"]):
            code, output, errors = said(capsys, "run", *QUICK, *more, "-o", str(tmp_path / where))
            assert (code, output) == (4, ""), where
            assert sentence in errors
    assert [p.name for p in (tmp_path / "full").iterdir()] == ["file"]
    code, _, errors = said(capsys, "run", *QUICK, "-o", os.fsdecode(b"\xff\xfe"))
    assert code == 4
    assert "not UTF-8" in errors


def test_an_interface_that_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--vfs", "1", "--state-size", "1MiB", "--profile", "unlimited", "--sniff", "nope0"]
    code, output, errors = said(capsys, "run", *options, "-o", str(tmp_path / "x"))
    assert (code, output) == (4, "")
    assert "nope0" in errors or "CAP_NET_RAW" in errors


def test_inputs_good_and_bad_at_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What can be read is judged; each bad one is named once with its reason; nothing is waited for."""
    capture = tmp_path / "good.pcapng"
    good(journals=False).write_capture(capture)
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "text").write_text("root:x:0:0\n")
    (tmp_path / "empty").touch()
    (tmp_path / "folder").mkdir()
    bad = ["missing", "fifo", "text", "empty", "folder"]
    paths = [str(tmp_path / name) for name in bad] + ["/dev/zero", str(capture), str(capture)]
    for jobs in ([], ["--jobs", "2"]):
        code, output, errors = said(capsys, "check", *paths, *jobs)
        assert (code, errors) == (4, "")
        lines = [line for line in output.splitlines() if line.startswith("unreadable ")]
        assert [line.split()[1].rstrip(":") for line in lines] == paths[:-2]
        assert output.count("0000:00:02.0/vfio") == 2
        code, output, _ = said(capsys, "check", *paths, *jobs, "--json")
        report = json.loads(output)
        assert code == 4
        assert [bool(row["error"]) for row in report["inputs"]] == [True] * 6 + [False] * 2
        assert report["exercised"]["migrations"] == 2


def test_a_name_that_is_not_utf8(capsys: pytest.CaptureFixture[str]) -> None:
    name = os.fsdecode(b"\xff.pcapng")
    code, output, _ = said(capsys, "check", name, "--json")
    assert code == 4
    assert json.loads(output)["inputs"][0]["path"] == "\\xff.pcapng"


@pytest.mark.parametrize("name", ["missing", "fifo", "text", "folder", "/dev/null"])
def test_show_of_what_cannot_be_shown(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "folder").mkdir()
    (tmp_path / "text").write_text("{ no journal\n")
    code, output, errors = said(capsys, "show", str(tmp_path / name))
    assert (code, output) == (4, "")
    assert name in errors


def test_show_of_a_folder_is_its_capture_and_then_its_journals_by_time(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good().write_folder(tmp_path)
    code, output, _ = said(capsys, "show", str(tmp_path), "--json")
    assert code == 0
    entries = [json.loads(line) for line in output.splitlines()]
    journal = [entry for entry in entries if "event" in entry]
    assert journal == entries[-len(journal) :]
    assert {entry["flow"] for entry in journal} == {"source journal", "target journal"}
    assert [entry["t"] for entry in journal] == sorted(entry["t"] for entry in journal)
    assert any(entry.get("kind") == "DeviceStateFrame" for entry in entries)
    code, output, _ = said(capsys, "show", str(tmp_path))
    assert code == 0
    assert len(output.splitlines()) == len(entries)


def test_the_same_seed_gives_the_same_state(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def digests(name: str, seed: str) -> list[str]:
        code, output, _ = said(capsys, "run", *QUICK, "--seed", seed, "--json", "-o", str(tmp_path / name))
        assert code == 0
        return [row["saved_digest"] for row in json.loads(output)["devices"]]

    assert digests("a", "7") == digests("b", "7")
    assert digests("c", "8") != digests("a2", "7")


KEYS = {
    "schema", "standing", "outcome", "transfer", "dialect", "channels", "devices", "timing",
    "exercised", "violations", "unknown", "inputs", "seed", "run",
}  # fmt: skip


def test_several_runs_are_one_json_object(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    code, output, _ = said(capsys, "run", *QUICK, "--runs", "3", "--json", "-o", str(out))
    assert code == 0
    (line,) = output.splitlines()
    report = json.loads(line)
    assert set(report) == KEYS
    assert (report["schema"], report["standing"], len(report["devices"])) == ("vfmig.report/1", "holds", 3)
    assert set(report["timing"]) == {"downtime_ms", "device_state_ms", "throughput_bytes_per_s"}
    assert set(report["devices"][0]) >= {
        "id", "buffers", "payload_bytes", "config_seen", "index_last", "reorder_max", "queued_bytes_max",
        "saved_digest", "loaded_digest", "equal",
    }  # fmt: skip
    assert sorted(p.name for p in out.iterdir()) == ["0000", "0001", "0002"]


def test_a_run_that_fails_says_why(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [*QUICK, "--state-size", "4MiB", "--queue-cap", "1KiB", "-o", str(tmp_path / "x")]
    code, output, _ = said(capsys, "run", *arguments)
    assert code == 5
    assert output.startswith("unknown:")
    assert "outcome failed-clean" in output
    assert "the target failed: " in output
    assert "over the cap of 1024" in output
    code, output, _ = said(capsys, "check", str(tmp_path / "x"))
    assert code == 5
