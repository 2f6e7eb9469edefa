"""SRS addresses: a bounce reaches the original sender, and forged addresses are refused."""

import re
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mail.addresses import srs
from mail.addresses.quoted_local_part import join_address
from models.errors import InvalidInput
from models.runtime.environment import Environment
from tests.conftest import ManualClock

OUR_DOMAIN, OTHER_DOMAIN = "example.org", "other.example"

local_parts = st.from_regex(r"[a-z0-9.+=_-]{1,20}", fullmatch=True)
domains = st.from_regex(r"[a-z0-9]{1,8}(\.[a-z]{2,6}){1,2}", fullmatch=True)


def local_part(address: str) -> str:
    return address.rpartition("@")[0]


@given(local_parts, domains, st.sampled_from([str.upper, str.lower, str]))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
def test_original_sender_is_restored_in_any_letter_case(
    environment: Environment, sender_local_part: str, sender_domain: str, change_case: Any
) -> None:
    if srs.is_srs(sender_local_part):
        return
    srs_address = srs.rewrite_sender(
        environment, f"{sender_local_part}@{sender_domain}", OUR_DOMAIN
    )
    assert srs_address.endswith(f"@{OUR_DOMAIN}")
    assert srs.is_srs(local_part(srs_address))
    assert srs.verified_original_sender(
        environment, change_case(local_part(srs_address))
    ).lower() == join_address(sender_local_part, sender_domain)


def test_second_forward_keeps_the_first_forwarder(environment: Environment) -> None:
    first = srs.rewrite_sender(environment, "carol@example.com", OTHER_DOMAIN)
    second = srs.rewrite_sender(environment, first, OUR_DOMAIN)
    assert second.startswith("SRS1=")
    assert srs.verified_original_sender(environment, local_part(second)) == first
    third = srs.rewrite_sender(environment, second.replace(OUR_DOMAIN, "third.example"), OUR_DOMAIN)
    # not the forwarder between them
    assert srs.verified_original_sender(environment, local_part(third)) == first


any_local_parts = st.text(
    st.characters(min_codepoint=0x20, exclude_categories=("Cc", "Cs", "Zl", "Zp")),
    min_size=1,
    max_size=64,
)
QUEUE_ID = "0123456789abcdef0123"


@given(any_local_parts, domains, st.sampled_from([str.upper, str.lower, str]))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
def test_sent_form_fits_into_a_local_part(
    environment: Environment, sender_local_part: str, sender_domain: str, change_case: Any
) -> None:
    sender = join_address(sender_local_part, sender_domain)
    stored = srs.rewrite_sender(environment, sender, OUR_DOMAIN)
    sent = srs.sendable_sender(environment, stored, QUEUE_ID)
    assert len(local_part(sent)) <= srs.MAX_LOCAL_PART_OCTETS
    assert sent.isascii()
    assert srs.is_srs(local_part(sent))
    if sent == stored:
        assert srs.verified_queue_id_or_none(environment, local_part(sent)) is None
    else:
        written = change_case(local_part(sent))
        assert srs.verified_queue_id_or_none(environment, written) == QUEUE_ID
        with pytest.raises(InvalidInput):
            srs.verified_original_sender(environment, written)


def test_changed_or_expired_short_form_is_refused(
    environment: Environment, clock: ManualClock
) -> None:
    stored = srs.rewrite_sender(environment, f"{'x' * 64}@example.com", OUR_DOMAIN)
    short = local_part(srs.sendable_sender(environment, stored, QUEUE_ID))
    other_letter = "b" if short[5] == "a" else "a"
    for changed in (
        short.replace("0123456789", "0123456780"), f"{short[:5]}{other_letter}{short[6:]}",
    ):  # fmt: skip
        with pytest.raises(InvalidInput):
            srs.verified_queue_id_or_none(environment, changed)
    clock.tick(days=22)
    with pytest.raises(InvalidInput):
        srs.verified_queue_id_or_none(environment, short)


def test_sender_of_another_server_is_sent_unchanged(environment: Environment) -> None:
    for sender in (
        "SRS0=aaaaaaaa=aa=example.com=" + "x" * 64 + "@other.example",
        "x" * 65 + "@a.b",
    ):
        assert srs.sendable_sender(environment, sender, QUEUE_ID) == sender


def test_empty_sender_stays_empty(environment: Environment) -> None:
    assert srs.rewrite_sender(environment, "", OUR_DOMAIN) == ""


@pytest.mark.parametrize(
    "srs_local_part",
    [
        "SRS0=aaaaaaaa=aa=example.com=carol",
        "SRS1=aaaaaaaa=other.example==x",
        "SRS0=short",
        "SRS0",
        "carol",
        "",
    ],
)
def test_local_part_without_valid_signature_is_refused(
    environment: Environment, srs_local_part: str
) -> None:
    with pytest.raises(InvalidInput):
        srs.verified_original_sender(environment, srs_local_part)


def test_changed_or_expired_srs_address_is_refused(
    environment: Environment, clock: ManualClock
) -> None:
    srs_local_part = local_part(srs.rewrite_sender(environment, "carol@example.com", OUR_DOMAIN))
    with pytest.raises(InvalidInput):
        srs.verified_original_sender(environment, re.sub("carol$", "dave", srs_local_part))
    clock.tick(days=20)
    assert srs.verified_original_sender(environment, srs_local_part) == "carol@example.com"
    clock.tick(days=2)
    with pytest.raises(InvalidInput):
        srs.verified_original_sender(environment, srs_local_part)
