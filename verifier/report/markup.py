# SPDX-License-Identifier: GPL-2.0-or-later
"""HTML that cannot be forgotten to be escaped: what is not `Markup` is text, and becomes it escaped."""

from __future__ import annotations

import hashlib
from base64 import b64encode
from collections.abc import Iterable
from html import escape
from typing import Any

import msgspec

from verifier.report.text import plain

TEXT_MAX = 4000  # characters of one text from outside that a page shows
_VOID = frozenset(("meta", "br", "hr"))


class Markup(str):
    """HTML as it is to stand on the page."""

    __slots__ = ()


def text(value: object) -> Markup:
    """Text from anywhere, escaped; what cannot be printed is shown as an escape, what is endless is cut."""
    if isinstance(value, Markup):
        return value
    said = str(value)
    if len(said) > TEXT_MAX:
        said = f"{said[:TEXT_MAX]}... ({len(said) - TEXT_MAX:,} characters more)"
    return Markup(escape(plain(said)))


def lines(value: str) -> Markup:
    """Text that keeps its line ends."""
    return Markup("\n".join(text(line) for line in value.split("\n")))


def tag(name: str, /, *children: object, **attributes: object) -> Markup:
    """An element. Attributes: `class_` is class, `_` is `-`; None and False leave one out, True has no value.

    A child that is a list or another iterable (no string) stands for its members.
    """
    said = "".join(_attribute(key, value) for key, value in attributes.items())
    if name in _VOID:
        return Markup(f"<{name}{said}>")
    return Markup(f"<{name}{said}>{''.join(_flat(children))}</{name}>")


def _flat(children: Iterable[object]) -> Iterable[str]:
    for child in children:
        if isinstance(child, str) or not isinstance(child, Iterable):
            if child is not None:
                yield text(child)
        else:
            yield from _flat(child)


def _attribute(key: str, value: object) -> str:
    if value is None or value is False:
        return ""
    name = key.rstrip("_").replace("_", "-")
    return f" {name}" if value is True else f' {name}="{text(value)}"'


def data_block(name: str, value: Any) -> Markup:
    """Data for a script: JSON in which no character can end the element."""
    raw = msgspec.json.encode(value).decode()
    for character in "<>&":
        raw = raw.replace(character, f"\\u{ord(character):04x}")
    return Markup(f'<script type="application/json" id="{text(name)}">{raw}</script>')


def trusted(name: str, content: str) -> tuple[Markup, str]:
    """A `style` or `script` of ours, and its source for a content security policy."""
    digest = b64encode(hashlib.sha256(content.encode()).digest()).decode()
    return Markup(f"<{name}>{content}</{name}>"), f"'sha256-{digest}'"
