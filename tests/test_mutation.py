# SPDX-License-Identifier: GPL-2.0-or-later
"""Which mutants change a message only, and are not tried."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests import mutation

FUNCTION = """
def on(self, seen, event):
    verb = "read" if event.size else "written"
    if event.idx > self.next:
        self.unknown = "too far"
    yield Finding(f"{verb} after {self.next}", (seen,))
    raise DeviceError(5, "no way")
"""


@pytest.mark.parametrize(
    ("old", "new", "text"),
    [
        ('"read"', '"XXreadXX"', True),
        ("if event.size", "if (event.size) and False", True),  # chooses a word
        ('"too far"', '"TOO FAR"', True),
        ('f"{verb} after {self.next}"', "None", True),
        ('"no way"', "None", True),
        (', "no way"', "", True),
        ("event.idx >", "event.idx >=", False),
        ('"too far"', "None", False),  # it is then not said to be unknown
        ("(seen,)", "None", False),
        ("DeviceError(5", "DeviceError(6", False),
    ],
)
def test_what_only_a_message_has_use_for_is_text(
    old: str, new: str, text: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert old in FUNCTION
    monkeypatch.setattr(mutation, "MUTANTS", tmp_path)
    file = tmp_path / "package" / "module.py"
    file.parent.mkdir()
    variants = {"orig": FUNCTION, "1": FUNCTION.replace(old, new)}
    file.write_text("".join(t.replace("def on", f"def xǁLawǁon__mutmut_{n}") for n, t in variants.items()))
    (mutant,) = mutation.mutants_of(file)
    assert mutant == ("package.module", "package.module.xǁLawǁon__mutmut_1", text)
