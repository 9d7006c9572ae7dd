# SPDX-License-Identifier: GPL-2.0-or-later
"""Scapy layers for every packet of the wire, made from the same description as everything else.

For people who work in scapy: `MultifdInit(id=3)`, `MultifdDeviceState(raw)`, `.show()`, fuzz(). The judge
does not use them (scapy reads some MB/s); they are how a packet is shown, built or bent by hand.
Field names are the C names, as in `mockdev.wire.structs`.
"""

from __future__ import annotations

from typing import Any

from scapy.fields import (
    ByteField,
    ConditionalField,
    FieldLenField,
    FieldListField,
    IntField,
    LongField,
    ShortField,
    StrFixedLenField,
    StrLenField,
)
from scapy.packet import Packet, bind_layers

from mockdev.wire import structs
from mockdev.wire.layout import BIG, FieldPlace, Layout
from mockdev.wire.structs import MULTIFD_PACKET_BYTES, PAGE_BYTES, MultifdFlag

_NUMBERS = {"B": ByteField, "H": ShortField, "I": IntField, "Q": LongField}


def _field(place: FieldPlace, default: Any) -> Any:
    code = place.spec.code
    if code in _NUMBERS:
        if place.spec.count is None:
            return _NUMBERS[code](place.name, default)
        item = _NUMBERS[code](place.name, 0)
        return FieldListField(place.name, list(default), item, count_from=lambda _: place.spec.count)
    return StrFixedLenField(place.name, default, length=place.size)


def layer_of(layout: Layout[Any], name: str, **attributes: Any) -> type[Packet]:
    """A scapy layer with the layout's fields, defaults included. name: the class's name."""
    if layout.order != BIG:
        raise ValueError(f"{layout.c_name} is not a struct of the wire")
    defaults = layout.record._field_defaults
    fields = [_field(p, defaults.get(p.name, 0 if p.spec.code in _NUMBERS else b"")) for p in layout.fields]
    body = {"name": layout.c_name or name, "fields_desc": fields, "__doc__": layout.source, **attributes}
    return type(name, (Packet,), body)


def _next_size(packet: Packet, raw: bytes) -> tuple[bytes, bytes]:
    return raw[: packet.next_packet_size], raw[packet.next_packet_size :]


MultifdInit = layer_of(structs.MULTIFD_INIT, "MultifdInit")
VfioDeviceState = layer_of(structs.VFIO_DEVICE_STATE, "VfioDeviceState")
MultifdDeviceState = layer_of(structs.MULTIFD_DEVICE_STATE, "MultifdDeviceState", extract_padding=_next_size)
MultifdRam = layer_of(structs.MULTIFD_RAM, "MultifdRam", extract_padding=_next_size)
MultifdRam.fields_desc.append(
    FieldListField(
        "offset",
        [0] * (MULTIFD_PACKET_BYTES // PAGE_BYTES),
        LongField("", 0),
        count_from=lambda _: MULTIFD_PACKET_BYTES // PAGE_BYTES,
        max_count=MULTIFD_PACKET_BYTES // PAGE_BYTES,
    )
)
StreamHeader = layer_of(structs.STREAM_HEADER, "StreamHeader")
bind_layers(MultifdDeviceState, VfioDeviceState)


def multifd_layer(raw: bytes) -> Packet:
    """The packet at the head of `raw`, which begins on a packet boundary after the init packet."""
    flags = structs.MULTIFD_HEAD.unpack(raw).flags
    return MultifdDeviceState(raw) if flags & MultifdFlag.DEVICE_STATE else MultifdRam(raw)


def _names_itself(packet: Packet) -> bool:
    return packet.tag in (structs.Tag.SECTION_START, structs.Tag.SECTION_FULL)


class SectionHead(Packet):
    """START, PART, END or FULL of the main channel. Source: QEMU migration/savevm.c: save_section_header."""

    name = "section head"
    fields_desc = (
        ByteField("tag", structs.Tag.SECTION_FULL),
        IntField("section_id", 0),
        ConditionalField(FieldLenField("idstr_len", None, length_of="idstr", fmt="B"), _names_itself),
        ConditionalField(StrLenField("idstr", b"", length_from=lambda p: p.idstr_len), _names_itself),
        ConditionalField(IntField("instance_id", 0), _names_itself),
        ConditionalField(IntField("version_id", 0), _names_itself),
    )


class SectionFooter(Packet):
    """What closes a section. Source: QEMU migration/savevm.c: save_section_footer."""

    name = "section footer"
    fields_desc = (ByteField("tag", structs.Tag.SECTION_FOOTER), IntField("section_id", 0))


class VfioData(Packet):
    """A block of device state on the main channel. Source: QEMU hw/vfio/migration.c: vfio_save_block."""

    name = "VFIO data"
    fields_desc = (
        LongField("tag", structs.VfioTag.DEV_DATA_STATE),
        FieldLenField("size", None, length_of="data", fmt="Q"),
        StrLenField("data", b"", length_from=lambda p: p.size),
    )


class Command(Packet):
    """A command of the main channel. Source: QEMU migration/savevm.c: qemu_savevm_command_send."""

    name = "command"
    fields_desc = (
        ByteField("tag", structs.Tag.COMMAND),
        ShortField("cmd", 0),  # "command" is a method of scapy's Packet
        FieldLenField("len", None, length_of="data", fmt="H"),
        StrLenField("data", b"", length_from=lambda p: p.len),
    )


class ReturnPathMessage(Packet):
    """A message from target to source. Source: QEMU migration/migration.c: migrate_send_rp_message."""

    name = "return path"
    fields_desc = (
        ShortField("type", 0),
        FieldLenField("len", None, length_of="data", fmt="H"),
        StrLenField("data", b"", length_from=lambda p: p.len),
    )
