"""Envelope senders of what is sent on: they find back, and nobody else can write one."""

import re
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as some

from mail.addresses import srs
from models.errors import InvalidInput
from models.runtime.environment import Environment
from tests.conftest import Clock

US, THEM = "example.org", "other.example"

words = some.from_regex(r"[a-z0-9.+=_-]{1,20}", fullmatch=True)
hosts = some.from_regex(r"[a-z0-9]{1,8}(\.[a-z]{2,6}){1,2}", fullmatch=True)


def local(address: str) -> str:
    return address.rpartition("@")[0]


@given(words, hosts, some.sampled_from([str.upper, str.lower, str]))
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_bounce_finds_back_also_where_letters_were_folded(
    world: Environment, name: str, home: str, fold: Any
) -> None:
    if srs.is_srs(name):
        return
    sent = srs.rewrite_sender(world, f"{name}@{home}", US)
    assert sent.endswith(f"@{US}")
    assert srs.is_srs(local(sent))
    assert srs.original_sender(world, fold(local(sent))).lower() == f"{name}@{home}"


def test_it_goes_back_over_the_first_who_sent_it_on(world: Environment) -> None:
    first = srs.rewrite_sender(world, "carol@example.com", THEM)
    second = srs.rewrite_sender(world, first, US)
    assert second.startswith("SRS1=")
    assert srs.original_sender(world, local(second)) == first
    third = srs.rewrite_sender(world, second.replace(US, "third.example"), US)
    assert srs.original_sender(world, local(third)) == first  # not over the one between


def test_nobody_stays_nobody(world: Environment) -> None:
    assert srs.rewrite_sender(world, "", US) == ""


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
def test_what_we_have_not_written_is_refused(world: Environment, name: str) -> None:
    with pytest.raises(InvalidInput):
        srs.original_sender(world, name)


def test_another_name_or_day_is_refused(world: Environment, clock: Clock) -> None:
    ours = local(srs.rewrite_sender(world, "carol@example.com", US))
    with pytest.raises(InvalidInput):
        srs.original_sender(world, re.sub("carol$", "dave", ours))
    clock.tick(days=20)
    assert srs.original_sender(world, ours) == "carol@example.com"
    clock.tick(days=2)
    with pytest.raises(InvalidInput):
        srs.original_sender(world, ours)
