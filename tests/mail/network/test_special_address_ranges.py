"""Private addresses that outbound HTTP refuses, and the name server it uses."""

import asyncio
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

import pytest

from graph.notifications.webhooks import delivery_body
from mail.network.outbound_http import (
    HttpRequestFailed,
    HttpTarget,
    NetworkPolicy,
    is_private_address,
    post_and_return_status,
)
from models.runtime.environment import CommittedOptions, Environment
from resolvers.notifications import webhook_worker
from tests.conftest import GraphQLClient, deliver_to
from tests.support.mail_servers.dns_zone_server import DnsZoneServer, make_dns_zone, run_dns_zone
from tests.support.mail_servers.queue_worker import poll_until
from tests.support.servers.webhook_receiver import (
    create_webhook,
    load_webhook_log,
    run_webhook_receiver,
)

# https://www.iana.org/assignments/iana-ipv4-special-registry, and multicast
SPECIAL_IPV4_RANGES = """\
0.0.0.0/8 0.0.0.0/32 10.0.0.0/8 100.64.0.0/10 127.0.0.0/8 169.254.0.0/16 172.16.0.0/12
192.0.0.0/24 192.0.0.0/29 192.0.0.8/32 192.0.0.9/32 192.0.0.10/32 192.0.0.170/32 192.0.0.171/32
192.0.2.0/24 192.31.196.0/24 192.52.193.0/24 192.88.99.0/24 192.168.0.0/16 192.175.48.0/24
198.18.0.0/15 198.51.100.0/24 203.0.113.0/24 240.0.0.0/4 255.255.255.255/32 224.0.0.0/4"""
# https://www.iana.org/assignments/iana-ipv6-special-registry, and multicast
SPECIAL_IPV6_RANGES = """\
::1/128 ::/128 64:ff9b:1::/48 100::/64 100:0:0:1::/64 2001::/23 2001::/32 2001:1::1/128
2001:1::2/128 2001:1::3/128 2001:2::/48 2001:3::/32 2001:4:112::/48 2001:10::/28 2001:20::/28
2001:30::/28 2001:db8::/32 2620:4f:8000::/48 3fff::/20 5f00::/16 fc00::/7 fe80::/10 ff00::/8"""
PUBLIC_IPV4 = ["1.1.1.1", "8.8.8.8", "9.255.255.255", "11.0.0.0", "100.63.255.255", "100.128.0.0",
           "172.15.255.255", "172.32.0.0", "192.0.1.0", "192.167.255.255", "192.169.0.0",
           "198.17.255.255", "198.20.0.0", "223.255.255.255"]  # fmt: skip
PUBLIC_IPV6 = ["2001:200::1", "2606:4700::1111", "2a00:1450::1", "3ffe:ffff::1", "2620:4f:7fff::1"]


def ipv6_forms(address: IPv4Address) -> list[str]:
    """The IPv4 address in IPv6: IPv4-mapped, 6to4 and NAT64."""
    number = int(address)
    return [
        str(IPv6Address(0xFFFF << 32 | number)),
        str(IPv6Address(0x2002 << 112 | number << 80 | 1)),
        str(IPv6Address(0x64FF9B << 96 | number)),
    ]


@pytest.mark.parametrize("text", SPECIAL_IPV4_RANGES.split())
def test_special_ipv4_range_is_private_in_every_form(text: str) -> None:
    network = IPv4Network(text)
    middle = network.network_address + network.num_addresses // 2
    for address in (network.network_address, middle, network.broadcast_address):
        assert is_private_address(str(address))
        for form in ipv6_forms(address):
            assert is_private_address(form), form
        teredo = IPv6Address(0x20010000 << 96 | int(address) ^ 0xFFFFFFFF)
        assert is_private_address(str(teredo))


@pytest.mark.parametrize("text", SPECIAL_IPV6_RANGES.split())
def test_special_ipv6_range_is_private(text: str) -> None:
    network = IPv6Network(text)
    assert is_private_address(str(network.network_address))
    assert is_private_address(str(network.broadcast_address))
    assert is_private_address(f"{network.broadcast_address}%eth0")


def test_public_addresses_are_not_private() -> None:
    for text in PUBLIC_IPV4:
        assert not is_private_address(text), text
        for form in ipv6_forms(IPv4Address(text)):
            assert not is_private_address(form), form
    for text in PUBLIC_IPV6:
        assert not is_private_address(text), text


def webhook_zone(address: str) -> DnsZoneServer:
    return make_dns_zone(
        {}, A={"hooks.example.net": address}, AAAA={"six.example.net": "2606:4700::1111"}
    )


async def test_host_is_resolved_by_configured_name_server(environment: Environment) -> None:
    async with (
        run_webhook_receiver() as receiver,
        run_dns_zone(webhook_zone("127.0.0.1")) as resolver_address,
    ):
        options = replace(environment.options, dns_resolver=resolver_address)
        target = HttpTarget(False, "hooks.example.net", receiver.port, "/")
        assert (
            await post_and_return_status(
                target, {}, b"{}", NetworkPolicy.from_options(options, allows_private=True)
            )
            == 200
        )
        with pytest.raises(
            HttpRequestFailed, match=r"^The host is in a private network: use a public address\.$"
        ):
            await post_and_return_status(target, {}, b"{}", NetworkPolicy.from_options(options))
        policy = NetworkPolicy.from_options(options)
        assert await policy.resolve_allowed("six.example.net", 443) == ["2606:4700::1111"]
        assert await policy.resolve_allowed("1.1.1.1", 443) == ["1.1.1.1"]
        with pytest.raises(HttpRequestFailed, match="The host name was not found"):
            await policy.resolve_allowed("nowhere.example.net", 443)


@pytest.mark.parametrize("address", ["127.0.0.1", "192.0.0.8"])
async def test_webhook_worker_uses_configured_name_server(
    ada: GraphQLClient, root: GraphQLClient, environment: Environment, address: str
) -> None:
    dns_zone = webhook_zone(address)
    async with run_webhook_receiver() as receiver, run_dns_zone(dns_zone) as resolver_address:
        options = replace(environment.options, dns_resolver=resolver_address)
        environment.use_options_unless_outdated(
            CommittedOptions(options, environment.options_position)
        )
        key, _ = await create_webhook(
            root, f"http://hooks.example.net:{receiver.port}/x", "MESSAGE_RECEIVED"
        )
        await deliver_to(ada)
        task = asyncio.create_task(
            webhook_worker.run_webhook_worker_until_stopped(environment, delivery_body)
        )
        try:

            async def has_failed_delivery() -> bool:
                nodes = (await load_webhook_log(root, key))["deliveries"]["nodes"]
                return any(node["error"] for node in nodes)

            await poll_until(has_failed_delivery)
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        assert ("hooks.example.net", "A") in dns_zone.queries
        assert receiver.requests == []
        (delivery,) = (await load_webhook_log(root, key))["deliveries"]["nodes"]
        assert delivery["error"] == "The host is in a private network: use a public address."
