# SPDX-License-Identifier: GPL-2.0-or-later
"""What an invariant says of itself: how far it is to be believed, in words that fit it and no other."""

from __future__ import annotations

import re
from typing import Any

import pytest

from verifier.invariants import INVARIANTS
from verifier.invariants.passport import Invariant, limits
from verifier.invariants.unjudged import UNJUDGED

IDS = {invariant.passport.id for invariant in INVARIANTS}
_ID = re.compile(r"\b[A-Z]{2}-\d{1,2}\b")
_SENTENCE_MAX = 400


@pytest.mark.parametrize("invariant", INVARIANTS, ids=lambda invariant: invariant.passport.id)
def test_every_invariant_says_why_it_is_sound_and_what_it_misses(invariant: type[Invariant[Any]]) -> None:
    for sentence in limits(invariant):
        assert 20 < len(sentence) <= _SENTENCE_MAX
        assert sentence.endswith(".")
        assert set(_ID.findall(sentence)) <= IDS - {invariant.passport.id}


def test_no_two_invariants_say_the_same() -> None:
    sentences = [sentence for invariant in INVARIANTS for sentence in limits(invariant)]
    ours = [s for s in sentences if not s.startswith("nothing of the statement")]
    twice = {s for s in ours if ours.count(s) > 1}
    assert twice <= {"judged only for machine types that are known to have a single acknowledgement."}


def test_a_class_without_the_two_sentences_is_refused() -> None:
    silent = type("Silent", (Invariant,), {"__doc__": "Sound: it only says half of it."})
    with pytest.raises(ValueError, match="Silent does not say"):
        limits(silent)


def test_what_is_not_judged_is_no_invariant_and_names_those_that_are() -> None:
    assert len({rule.id for rule in UNJUDGED}) == len(UNJUDGED)
    assert not IDS & {rule.id for rule in UNJUDGED}
    for rule in UNJUDGED:
        assert rule.statement.endswith(".")
        assert rule.why.endswith(".")
        assert set(_ID.findall(rule.why)) <= IDS


@pytest.mark.parametrize(
    "family", ["CH", "FR", "MP", "RS", "DS", "BC", "SM", "RP", "EN", "ST", "EQ", "OC", "TR", "LV"]
)
def test_no_number_of_a_family_is_passed_over_in_silence(family: str) -> None:
    told = {*IDS, *(rule.id for rule in UNJUDGED)}
    numbers = {int(name.partition("-")[2]) for name in told if name.startswith(f"{family}-")}
    assert numbers == set(range(1, max(numbers) + 1))
