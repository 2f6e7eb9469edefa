"""Tests of the networks that a process refuses: precedence, forms of addresses, exemptions."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from models.throttling.networks import (
    NetworkMap,
    enclosing_network,
    network_number,
    parse_ip_network_or_none,
)
from models.throttling.policy import MAX_BAN_TIME, BanPolicyValues
from models.throttling.refused_networks import RefusalReason, RefusedNetworks
from tests.support.case_loop import each_case

NOW = datetime(2030, 1, 1, tzinfo=UTC)
LATER = NOW + timedelta(hours=1)


def now() -> datetime:
    return NOW


def refused_networks(*bans: str, **lists: Any) -> RefusedNetworks:
    refused = RefusedNetworks()
    refused.use_policy(BanPolicyValues(**lists), {})
    for network in bans:
        refused.set_or_remove_ban(network, LATER, NOW)
    return refused


def test_allow_list_precedes_deny_list_and_deny_list_precedes_bans() -> None:
    refused = refused_networks(
        "203.0.113.0/24", denylist=("203.0.113.8/29",), allowlist=("203.0.113.9",)
    )
    assert refused.refusal_reason("203.0.113.1", now) is RefusalReason.BAN
    assert refused.refusal_reason("203.0.113.8", now) is RefusalReason.DENYLIST
    assert refused.refusal_reason("203.0.113.9", now) is None
    assert refused.refusal_reason("203.0.114.1", now) is None


def test_ipv4_mapped_address_is_ipv4_address() -> None:
    cases: list[str] = [
        "203.0.113.7",
        "::ffff:203.0.113.7",
        "::FFFF:CB00:7107",
        "::ffff:203.0.113.7%eth0",
    ]
    for case in each_case(cases):
        with case as ip:
            assert refused_networks("203.0.113.7/32").refuses(ip, now)
            assert refused_networks("::ffff:203.0.113.0/120").refuses(ip, now)
            assert not refused_networks("203.0.113.7", allowlist=(ip.partition("%")[0],)).refuses(
                ip, now
            )
            assert refused_networks().counted_network_or_none(ip) == "203.0.113.7/32"


def test_loopback_proxies_and_servers_are_never_refused() -> None:
    everything = ("0.0.0.0/0", "::/0")
    refused = refused_networks(*everything, denylist=everything)
    refused.replace_never_refused_addresses(proxies=["10.0.0.0/24"])
    refused.replace_never_refused_addresses(servers=["192.0.2.2", "fd00::2"])
    addresses = (
        "127.0.0.1", "127.9.9.9", "::1", "::ffff:127.0.0.1", None, "", "unix", "10.0.0.5",
        "::ffff:10.0.0.5", "192.0.2.2", "fd00::2",
    )  # fmt: skip
    for case in each_case(addresses):
        with case as ip:
            assert not refused.refuses(ip, now)
            assert refused.counted_network_or_none(ip) is None
            assert refused.refuses("198.51.100.1", now)
            assert refused.copy().refuses("198.51.100.1", now)
            assert not refused.copy().refuses(ip, now)


def test_ban_ends_at_its_time() -> None:
    refused = refused_networks("2001:db8::/64")
    assert refused.refuses("2001:db8::7", now)
    assert not refused.refuses("2001:db8:0:1::7", now)
    assert not refused.refuses("2001:db8::7", lambda: LATER)
    refused.set_or_remove_ban("2001:db8::/64", NOW, NOW)
    assert not refused.refuses("2001:db8::7", now)


def test_lookup_does_not_depend_on_number_of_bans() -> None:
    """Each lookup reads one entry for each prefix length in use."""
    networks: NetworkMap[bool] = NetworkMap()
    for number in range(100_000):
        text = f"{number >> 16 & 255}.{number >> 8 & 255}.{number & 255}.9"
        network = parse_ip_network_or_none(text)
        assert network
        networks.set(network_number(network), True)
    assert len(networks) == 100_000
    assert len(networks._values_by_length) == 1  # noqa: SLF001


def test_counted_network_has_prefix_length_of_policy() -> None:
    refused = RefusedNetworks(BanPolicyValues(netmask_ipv4=24, netmask_ipv6=48))
    assert refused.counted_network_or_none("203.0.113.7") == "203.0.113.0/24"
    assert refused.counted_network_or_none("2001:db8:1:2::3") == "2001:db8:1::/48"
    assert (
        refused_networks(allowlist=("203.0.113.0/24",)).counted_network_or_none("203.0.113.7")
        is None
    )


def test_unroutable_ipv6_address_never_counts_for_all_ipv4_addresses() -> None:
    for netmask_ipv6 in (16, 64, 80):
        assert enclosing_network("::5", 32, netmask_ipv6) == "::5/128"
    assert enclosing_network("::ffff:192.0.2.7", 24, 64) == "192.0.2.0/24"
    assert enclosing_network("2001:db8::7", 32, 64) == "2001:db8::/64"


def test_duration_doubles_up_to_thirty_days() -> None:
    policy = BanPolicyValues(ban_time=timedelta(minutes=30))
    assert [policy.ban_duration(count) for count in (0, 1, 2)] == [
        timedelta(minutes=minutes) for minutes in (30, 60, 120)
    ]
    assert policy.ban_duration(11) == policy.ban_duration(10**9) == MAX_BAN_TIME
    assert BanPolicyValues(ban_time_increment=False).ban_duration(5) == timedelta(minutes=30)


def test_other_text_is_no_network() -> None:
    cases: list[str] = [
        "",
        "x",
        "203.0.113.7/33",
        "1.2.3",
        "203.0.113.7/-1",
        "/",
        "9" * 5000,
        "::g",
        "\0",
    ]
    for case in each_case(cases):
        with case as text:
            assert parse_ip_network_or_none(text) is None


def test_long_list_is_looked_up_without_scan() -> None:
    entries = tuple(f"203.{n >> 8}.{n & 255}.0/24" for n in range(5000))
    refused = refused_networks(denylist=entries)
    assert refused.refuses("203.19.135.1", now)
    assert not refused.refuses("203.19.136.1", now)


def test_unchanged_lists_are_not_built_again(monkeypatch: pytest.MonkeyPatch) -> None:
    refused = refused_networks("198.51.100.0/24", denylist=("203.0.113.0/24",))
    with monkeypatch.context() as patch:
        patch.delattr("models.throttling.refused_networks.network_map_of_texts")
        refused.use_policy(replace(refused.policy), {})
    after = refused.copy()
    assert after.refuses("203.0.113.7", now)
    after.use_policy(BanPolicyValues(), {})
    after.set_or_remove_ban("198.51.100.0/24", NOW, NOW)
    assert not after.refuses("203.0.113.7", now)
    assert not after.refuses("198.51.100.7", now)
    assert refused.refuses("203.0.113.7", now)
    assert refused.refuses("198.51.100.7", now)
