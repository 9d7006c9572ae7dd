# SPDX-License-Identifier: GPL-2.0-or-later
"""A scene in a file, with what it showed: schema vfmig.scene/1."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import msgspec

from mockdev.device.image import PAGE_SIZE
from mockdev.errors import VfmigError
from mockdev.faultspec import parse_all
from verifier.fuzz.failure import Failure
from verifier.simulation.scene import KINDS, Scene

SCHEMA = "vfmig.scene/1"
_FILE_BYTES_MAX = 16 << 20
_NS_MAX = 10**12

# A scene is played in memory, with all that passes kept: what is larger than this is none.
_STATE_BYTES_MAX, _RAM_BYTES_MAX, _CHANNELS_MAX, _TURNS_MAX = 1 << 16, 1 << 20, 64, 1 << 16


class EntryError(VfmigError):
    """A file that is no scene; the message is a sentence that names it."""

    environment = True


class Entry(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """title: what it shows, for a person. variation: what it showed that in, "": the endpoints as they are.

    failure: how it failed. late: who was late, in words.
    """

    schema: Literal["vfmig.scene/1"] = "vfmig.scene/1"
    title: str = ""
    variation: str = ""
    failure: Failure
    late: tuple[str, ...] = ()
    scene: Scene


def read_entry(path: Path) -> Entry:
    """EntryError: it cannot be read, is no scene, or one that cannot be played."""
    try:
        with path.open("rb") as file:
            data = file.read(_FILE_BYTES_MAX + 1)
        if len(data) > _FILE_BYTES_MAX:
            raise EntryError(f"{path}: too large for a scene")
        entry = msgspec.json.decode(data, type=Entry)
        entry.scene.migration.check()
    except OSError as error:
        raise EntryError(f"{path}: {error.strerror or error}") from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise EntryError(f"{path} is no scene ({SCHEMA}): {error}") from None
    except EntryError:
        raise
    except VfmigError as error:
        raise EntryError(f"{path} is no scene that can be played: {error}") from None
    for wrong, message in _rules(entry.scene):
        if wrong:
            raise EntryError(f"{path} is no scene that can be played: {message}")
    return entry


def write_entry(path: Path, entry: Entry) -> None:
    """One file, made whole or not at all. EntryError: it cannot be."""
    new = path.with_name(path.name + ".new")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        new.write_bytes(msgspec.json.format(msgspec.json.encode(entry), indent=1) + b"\n")
        new.replace(path)
    except OSError as error:
        raise EntryError(f"{path} cannot be written: {error.strerror or error}") from None


def _rules(scene: Scene) -> tuple[tuple[bool, str], ...]:
    config = scene.migration
    faults = parse_all(config.faults, config.vfs, config.channels)
    costs = [value for value in vars(scene.profile).values() if isinstance(value, int | float)]
    links = scene.links
    unknown = sorted(scene.kinds - set(KINDS))
    times = [link.delay_ns + link.jitter_ns + link.stall_ns for link in links]
    pages = config.ram_bytes // PAGE_SIZE
    ends = ("source", "target")
    return (
        (bool(unknown), f"there is no kind of trouble called {', '.join(unknown)}"),
        (config.peer != "mock" or config.channels > _CHANNELS_MAX, f"more than {_CHANNELS_MAX} channels"),
        (config.channels < 1 or not config.uuid.strip("0-"), "without a channel, or a uuid"),
        (config.state_bytes > _STATE_BYTES_MAX, f"a state of more than {_STATE_BYTES_MAX} bytes"),
        (not 0 < config.ram_bytes <= _RAM_BYTES_MAX, f"RAM of no bytes, or more than {_RAM_BYTES_MAX}"),
        (any(not it.place.startswith("vfN") for it in faults), "only faults of devices can be simulated"),
        (min(scene.initial_bytes, scene.increment_bytes) < 1, "no bytes before the stop at a time"),
        (bool(links) and len(links) != 2 + 2 * config.channels, f"{len(links)} links"),
        (any(min(link.window, link.parts) < 1 for link in links), "a link without window or parts"),
        (any(link.close_at >= 0 for link in links), "a link that closes: that is said by breaks"),
        (
            any(
                min(link.delay_ns, link.jitter_ns, link.stall_ns, link.byte_ns, link.stall_at) < 0
                for link in links
            ),
            "a link that is quicker than at once",
        ),
        (any(time > _NS_MAX for time in times), "a link that takes more than 1000 s"),
        (any(link.byte_ns > 1e6 or link.parts > 1000 for link in links), "a link that is too slow"),
        (
            any(not 0 <= value <= _NS_MAX for value in costs),
            "a profile that costs less than nothing, or too much",
        ),
        (
            any(not (0 <= page < pages and 0 <= turns <= _TURNS_MAX) for page, turns in scene.guest_writes),
            "a write of the guest to no page, or too late",
        ),
        (
            scene.cancel is not None
            and (scene.cancel.role not in ends or not 0 <= scene.cancel.turns <= _TURNS_MAX),
            "it is called off by nobody, or too late",
        ),
        (
            scene.breaks is not None
            and not (-1 <= scene.breaks.channel < config.channels and scene.breaks.at >= 0),
            "a connection breaks that is not there",
        ),
        (any(choice < 0 for choice in scene.schedule or ()), "a choice below the first"),
    )
