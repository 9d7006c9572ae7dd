# SPDX-License-Identifier: GPL-2.0-or-later
"""Templates: what is saved is loaded again, what is damaged is refused, what was recorded is played."""

from __future__ import annotations

import json
import threading
import zipfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mockdev.device.device import Device
from mockdev.device.image import PAGE_SIZE
from mockdev.errors import VfmigError
from mockdev.journal import Image, Mark, Verified
from mockdev.runtime.config import EndpointConfig, MigrationConfig
from mockdev.runtime.machine import Machine, Section
from mockdev.runtime.ram import GuestRam, RamBlock
from mockdev.runtime.session import Result
from mockdev.runtime.source import Source
from mockdev.runtime.target import Target
from mockdev.runtime.template import FORMAT, Template, TemplateError, load, save
from mockdev.wire.dialect import flushes_per_section
from mockdev.wire.structs import Tag
from tests.endpoints import lines
from tests.examples import examples
from tests.test_runtime_any_machine import CORPORA, RECORDED_VF, Replay, sent
from verifier.check import check_paths

LIMIT = 1 << 24
VF = "0000:00:02.0/vfio"
NAMES = (VF, "0000:00:03.0/vfio")
KIB = 1 << 10

RAM = Section(Tag.SECTION_START, 1, "ram", 0, 4)
sections = st.builds(
    Section,
    tag=st.sampled_from([1, 2, 4]),
    id=st.integers(0, 2**32 - 1),
    idstr=st.sampled_from(["timer", "0000:00:1f.0/ICH9LPC", "x" * 255]),
    instance_id=st.integers(0, 9),
    version_id=st.integers(0, 9),
    payload=st.binary(max_size=64),
)
machines = st.builds(
    Machine,
    type=st.just("pc-q35-10.0"),
    uuid=st.none() | st.binary(min_size=16, max_size=16),
    uuid_validated=st.booleans(),
    switchover_start=st.booleans(),
    flush_per_section=st.none() | st.booleans(),
    config_load_ready=st.booleans(),
    sections=st.lists(sections, max_size=5).map(lambda made: (RAM, *made)),
    configs=st.dictionaries(st.just(VF), st.binary(max_size=64)),
    description=st.just(b'{"page_size": 4096, "devices": [{"name": "timer"}]}'),
)
pages = st.lists(st.sampled_from(["absent", "zero", "data"]), max_size=40)


def block(name: str, kinds: list[str]) -> RamBlock:
    """A block with a page of each kind."""
    made = RamBlock(name, memoryview(bytearray(len(kinds) * PAGE_SIZE)))
    for page, kind in enumerate(kinds):
        made.came[page] = kind != "absent"
        if kind == "data":
            made.page(page * PAGE_SIZE)[page % 7 :: 61] = bytes([page + 1]) * len(range(page % 7, 4096, 61))
    return made


@given(machines, pages, pages, st.booleans())
@settings(max_examples=examples(60), suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_what_is_saved_is_loaded(
    tmp_path: Path, machine: Machine, first: list[str], second: list[str], shared: bool
) -> None:
    ram = GuestRam(block("pc.ram", first), block("pc.bios", second))
    path = tmp_path / "template"
    save(path, Template(machine, ram, (4096, 0) if shared else ()))
    found = load(path, LIMIT)
    assert found.machine == machine
    assert found.addresses == ((4096, 0) if shared else ())
    assert found.ram.sizes == ram.sizes
    for name, kept in found.ram.blocks.items():
        assert kept.came == ram.blocks[name].came
        assert kept.memory == ram.blocks[name].memory
    assert list(tmp_path.iterdir()) == [path]


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A small template's bytes."""
    path = tmp_path_factory.mktemp("template") / "good"
    machine = Machine(
        type="pc-i440fx-10.0",
        sections=(
            Section(Tag.SECTION_FULL, 3, "timer", 0, 2, bytes(24)),
            Section(Tag.SECTION_START, 1, "ram", 0, 4),
            Section(Tag.SECTION_END, 1, "ram", 0, 4),
        ),
        description=b'{"devices": []}',
    )
    save(path, Template(machine, GuestRam(block("pc.ram", ["data", "zero", "data"])), ()))
    return path.read_bytes()


@given(st.data())
@settings(max_examples=examples(200), suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_damage_is_refused_with_a_sentence_or_changes_nothing(
    tmp_path: Path, good: bytes, data: st.DataObject
) -> None:
    damaged = bytearray(good)
    for at in data.draw(st.lists(st.integers(0, len(good) - 1), min_size=1, max_size=3)):
        damaged[at] ^= data.draw(st.integers(1, 255))
    path = tmp_path / "damaged"
    path.write_bytes(good)
    whole = load(path, LIMIT)
    path.write_bytes(damaged[: data.draw(st.sampled_from([len(good), len(good) - 1, len(good) // 2]))])
    found = None
    with suppress(TemplateError):
        found = load(path, LIMIT)
    if found is not None:
        assert found.machine == whole.machine
        assert [b.memory for b in found.ram.blocks.values()] == [b.memory for b in whole.ram.blocks.values()]


def rewritten(good: bytes, path: Path, change: dict[str, object], **members: bytes) -> None:
    """A template with values of machine.json (dotted paths) and whole members changed."""
    (path.parent / "good").write_bytes(good)
    with zipfile.ZipFile(path.parent / "good") as archive:
        contents = {name: archive.read(name) for name in archive.namelist()}
    described = json.loads(contents["machine.json"])
    for where, value in change.items():
        *outer, last = where.split(".")
        inner = described
        for step in outer:
            inner = inner[int(step)] if isinstance(inner, list) else inner[step]
        inner[last] = value
    contents["machine.json"] = json.dumps(described).encode()
    contents |= {name.replace("_", "."): data for name, data in members.items()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, member in contents.items():
            archive.writestr(name, member)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"format": "vfmig.template/9"}, "vfmig.template/9"),
        ({"machine.uuid": "AAAA"}, "uuid"),
        ({"machine.type": ""}, "type"),
        ({"machine.sections.0.tag": 9}, "tag"),
        ({"machine.sections.0.idstr": "a\nb"}, "idstr"),
        ({"machine.sections.0.idstr": "ram"}, "section ram has a payload"),
        ({"machine.sections.1.tag": 2}, "no section of RAM"),
        ({"machine.sections.0.tag": 3}, "timer ends"),
        ({"machine.sections.0.payload": None}, "section timer has no payload"),
        ({"blocks.0.size": 1 << 30}, "at most"),
        ({"blocks.0.size": -4096}, "size"),
        ({"blocks.0.size": 5000}, "not in order"),
        ({"blocks.0.came": [[0, 4]]}, "not in order"),
        ({"blocks.0.came": [[1, 1], [0, 1]]}, "not in order"),
        ({"blocks.0.data": [[0, 1]]}, "ram.bin"),
    ],
)
def test_what_cannot_be_is_named(tmp_path: Path, good: bytes, change: dict[str, object], words: str) -> None:
    path = tmp_path / "template"
    rewritten(good, path, change)
    with pytest.raises(TemplateError, match=words):
        load(path, LIMIT)


def test_other_files_are_no_templates(tmp_path: Path, good: bytes) -> None:
    for name, content in {"text": b"hello", "empty": b"", "gzip": b"\x1f\x8b" + bytes(100)}.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(TemplateError, match="no template"):
            load(tmp_path / name, LIMIT)
    with zipfile.ZipFile(tmp_path / "other", "w") as archive:
        archive.writestr("notes.txt", "hello")
    with pytest.raises(TemplateError, match="no template"):
        load(tmp_path / "other", LIMIT)
    with pytest.raises(TemplateError, match="No such file"):
        load(tmp_path / "absent", LIMIT)
    rewritten(good, tmp_path / "described", {}, description_json=b'{"devices": 3}')
    with pytest.raises(TemplateError, match=r"description\.json"):
        load(tmp_path / "described", LIMIT)
    assert FORMAT.encode() in msgspec.json.encode({"format": FORMAT})


def test_a_template_that_cannot_be_written_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(TemplateError, match="cannot be written"):
        save(tmp_path / "nowhere" / "template", Template(Machine(type="x"), GuestRam(), ()))
    (tmp_path / "folder").mkdir()
    with pytest.raises(TemplateError, match="cannot be written"):
        save(tmp_path / "folder", Template(Machine(type="x"), GuestRam(), ()))
    assert [entry.name for entry in tmp_path.iterdir()] == ["folder"]


# --- playing ---------------------------------------------------------------------------------------


@dataclass
class Played:
    """One migration of a source that plays a template to a target that takes any machine."""

    source: Result
    target: Result
    folder: Path

    @property
    def again(self) -> Path:
        """The template that the target made of it."""
        return self.folder / "again"


def play(folder: Path, template: Path, **changes: object) -> Played:
    """Play a template of two devices; changes: to the configuration of both ends."""
    folder.mkdir(exist_ok=True)
    base = {
        "peer": "qemu",
        "vfs": 2,
        "device_names": NAMES,
        "channels": 3,
        "profile": "unlimited",
        "state_bytes": 300 * KIB,
        "buffer_bytes": 64 * KIB,
        "capture_at": "target",
        "idle_timeout_s": 20.0,
    }
    config = MigrationConfig(**{**base, **changes})  # type: ignore[arg-type]
    target = Target(
        EndpointConfig(role="target", migration=config, folder=str(folder), template=str(folder / "again"))
    )
    results: list[Result] = []
    thread = threading.Thread(target=lambda: results.append(target.run()))
    thread.start()
    try:
        source = Source(
            EndpointConfig(role="source", migration=config, folder=str(folder), template=str(template))
        )
        played = source.run(target.address)
        if played.outcome != "completed":
            target.session.cancel()
    except VfmigError:
        target.session.cancel()
        raise
    finally:
        thread.join()
    return Played(played, results[0], folder)


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Templates of recorded QEMUs with two devices, by the name of the recording."""
    made = {}
    told: dict[str, dict[str, object]] = {
        "q100-2vf-main": {"transfer": "main"},
        "q111-2vf-precopy-multifd": {"precopy_bytes": 1 << 20, "switchover_ack": True},
    }
    for name, changes in told.items():
        folder = tmp_path_factory.mktemp(name)
        streams = sent(CORPORA / f"{name}.pcapng.gz")
        replay = Replay(folder, streams, vfs=2, device_names=NAMES, **changes)
        assert replay.run().outcome == "completed"
        made[name] = replay.template
    return made


@pytest.fixture
def _recorded_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    """Devices of the kind that was recorded."""

    def make(*args: object, **options: object) -> Device:
        return Device(*args, identity=RECORDED_VF, **options)  # type: ignore[arg-type]

    monkeypatch.setattr("mockdev.runtime.slot.Device", make)


@pytest.mark.usefixtures("_recorded_devices")
@pytest.mark.parametrize("name", ["q100-2vf-main", "q111-2vf-precopy-multifd"])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"precopy_bytes": 100 * KIB},
        {"precopy_bytes": 100 * KIB, "switchover_ack": True, "profile": "connectx7"},
        {"transfer": "main"},
        {"transfer": "main", "channels": 0, "precopy_bytes": 100 * KIB, "switchover_ack": True},
        {"zero_pages": "legacy"},
        {"zero_pages": "none", "load_threads": 1},
    ],
)
def test_a_recorded_machine_is_played(
    tmp_path: Path, recorded: dict[str, Path], name: str, changes: dict[str, object]
) -> None:
    played = play(tmp_path, recorded[name], **changes)
    assert (played.source.outcome, played.source.error) == ("completed", "")
    assert (played.target.outcome, played.target.error, played.target.complaint) == ("completed", "", "")

    saved, loaded = (
        {line.device: (line.size, line.digest, line.config_digest) for line in lines(tmp_path, role)
         if isinstance(line, Image)}
        for role in ("source", "target")
    )  # fmt: skip
    assert sorted(saved) == sorted(NAMES)
    assert saved == loaded
    verified = [line.equal for line in lines(tmp_path, "target") if isinstance(line, Verified)]
    assert verified == [True, True]

    before, after = load(recorded[name], 1 << 30), load(played.again, 1 << 30)
    assert without_description(after.machine) == without_description(before.machine)
    assert after.ram.sizes == before.ram.sizes
    for block_name, kept in after.ram.blocks.items():
        assert kept.memory == before.ram.blocks[block_name].memory
    report = check_paths([tmp_path / "capture.pcapng"])
    assert report.standing == "holds", report.unknown
    assert not report.violations


@pytest.mark.parametrize("channels", [0, 3])
@pytest.mark.parametrize(
    "name", ["mfd2-uuid-ignoreshared", "mfd2-machine80", "mfd2-machine92", "mfd3-q35-running"]
)
def test_a_machine_without_devices_is_played(tmp_path: Path, name: str, channels: int) -> None:
    replay = Replay(tmp_path, sent(CORPORA / f"{name}.pcapng.gz"))
    assert replay.run().outcome == "completed"
    transfer = "multifd" if channels else "main"
    played = play(
        tmp_path / "played", replay.template, vfs=0, device_names=(), channels=channels, transfer=transfer
    )
    assert (played.source.outcome, played.source.error) == ("completed", "")
    assert (played.target.outcome, played.target.error) == ("completed", "")
    before, after = load(replay.template, 1 << 30), load(played.again, 1 << 30)
    assert without_description(after.machine) == without_description(before.machine)
    assert after.addresses == before.addresses
    for block_name, kept in after.ram.blocks.items():
        assert kept.came == before.ram.blocks[block_name].came
        assert kept.memory == before.ram.blocks[block_name].memory
    report = check_paths([tmp_path / "played" / "capture.pcapng"])
    assert (report.standing, report.violations) == ("holds", [])


def test_which_machine_types_flush_at_each_section() -> None:
    old = ("pc-i440fx-8.0", "pc-q35-7.2", "pc-i440fx-2.12")
    new = ("pc-i440fx-8.1", "pc-q35-10.0", "pc-q35-11.1", "microvm", "none")
    assert all(map(flushes_per_section, old))
    assert not any(map(flushes_per_section, new))


def without_description(machine: Machine) -> Machine:
    """A machine but for the sizes of its devices' sections, and what only channels tell."""
    return msgspec.structs.replace(machine, description=b"", flush_per_section=None, uuid=None)


@pytest.mark.usefixtures("_recorded_devices")
def test_the_source_waits_for_every_acknowledgement(tmp_path: Path, recorded: dict[str, Path]) -> None:
    for name, acks in (("q100-2vf-main", 1), ("q111-2vf-precopy-multifd", 2)):
        folder = tmp_path / name
        played = play(folder, recorded[name], precopy_bytes=100 * KIB, switchover_ack=True)
        assert played.source.outcome == "completed"
        marks = [line.name for line in lines(folder, "source") if isinstance(line, Mark)]
        assert marks.count("switchover-ack") == acks
        assert marks.index("stop") > max(n for n, mark in enumerate(marks) if mark == "switchover-ack")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"vfs": 1, "device_names": NAMES[:1]}, "this migration"),
        ({"device_names": (VF, "0000:00:09.0/vfio")}, "09.0"),
        ({"ram_bytes_max": 4096}, "at most 4096"),
        ({"peer": "mock"}, "other end is a QEMU"),
    ],
)
def test_a_template_that_does_not_fit_is_named(
    tmp_path: Path, recorded: dict[str, Path], changes: dict[str, object], words: str
) -> None:
    with pytest.raises(VfmigError, match=words):
        play(tmp_path, recorded["q100-2vf-main"], **changes)


def test_another_kind_of_device_is_named(tmp_path: Path, recorded: dict[str, Path]) -> None:
    played = play(tmp_path, recorded["q100-2vf-main"])  # its devices have 8 vectors, ours 12
    assert played.source.outcome == "failed"
    assert "MSI-X vectors" in played.source.error


def test_a_source_for_a_qemu_needs_a_template(tmp_path: Path) -> None:
    config = MigrationConfig(peer="qemu")
    with pytest.raises(VfmigError, match="needs a template"):
        Source(EndpointConfig(role="source", migration=config, folder=str(tmp_path)))
    missing = str(tmp_path / "nowhere" / "template")
    with pytest.raises(VfmigError, match="no folder"):
        Target(EndpointConfig(role="target", migration=config, folder=str(tmp_path), template=missing))
