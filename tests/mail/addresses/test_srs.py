"""Envelope senders of what is sent on: they find back, and nobody else can write one."""

import re
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as some

from mail.addresses import srs
from models.errors import Invalid
from models.runtime.environment import World
from tests.conftest import Clock

US, THEM = "example.org", "other.example"

words = some.from_regex(r"[a-z0-9.+=_-]{1,20}", fullmatch=True)
hosts = some.from_regex(r"[a-z0-9]{1,8}(\.[a-z]{2,6}){1,2}", fullmatch=True)


def local(address: str) -> str:
    return address.rpartition("@")[0]


@given(words, hosts, some.sampled_from([str.upper, str.lower, str]))
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_bounce_finds_back_also_where_letters_were_folded(
    world: World, name: str, home: str, fold: Any
) -> None:
    if srs.is_ours(name):
        return
    sent = srs.rewritten(world, f"{name}@{home}", US)
    assert sent.endswith(f"@{US}")
    assert srs.is_ours(local(sent))
    assert srs.origin(world, fold(local(sent))).lower() == f"{name}@{home}"


def test_it_goes_back_over_the_first_who_sent_it_on(world: World) -> None:
    first = srs.rewritten(world, "carol@example.com", THEM)
    second = srs.rewritten(world, first, US)
    assert second.startswith("SRS1=")
    assert srs.origin(world, local(second)) == first
    third = srs.rewritten(world, second.replace(US, "third.example"), US)
    assert srs.origin(world, local(third)) == first  # not over the one between


def test_nobody_stays_nobody(world: World) -> None:
    assert srs.rewritten(world, "", US) == ""


@pytest.mark.parametrize(
    "name",
    [
        "SRS0=aaaaaaaa=aa=example.com=carol",
        "SRS1=aaaaaaaa=other.example==x",
        "SRS0=short",
        "SRS0",
        "carol",
        "",
    ],
)
def test_what_we_have_not_written_is_refused(world: World, name: str) -> None:
    with pytest.raises(Invalid):
        srs.origin(world, name)


def test_another_name_or_day_is_refused(world: World, clock: Clock) -> None:
    ours = local(srs.rewritten(world, "carol@example.com", US))
    with pytest.raises(Invalid):
        srs.origin(world, re.sub("carol$", "dave", ours))
    clock.tick(days=20)
    assert srs.origin(world, ours) == "carol@example.com"
    clock.tick(days=2)
    with pytest.raises(Invalid):
        srs.origin(world, ours)
