"""The policy for encryption that is served for domains here, each under a host of its own."""

from dataclasses import replace

import pytest

from tests.conftest import Client
from tests.support.mail_servers.dns_zone_server import asking, zone
from tests.support.operations.dkim_key_operations import asks
from tests.support.operations.domain_operations import ALIAS, UPDATE, done, made

PATH = "/.well-known/mta-sts.txt"
ENFORCED = "version: STSv1\r\nmode: enforce\r\nmx: mx.example.org\r\nmax_age: 604800\r\n"
RECORDS = '{ domain(by: {name: "new.example"}) { dnsRecords(check: true) { name value state } } }'


def mode(client: Client, how: str) -> None:
    options = replace(client.world.options, mta_sts=how)
    object.__setattr__(client.world, "options", options)


async def policy(client: Client, host: str) -> tuple[int, str]:
    answer = await client.http.get(PATH, headers={"Host": host})
    return answer.status_code, answer.text


@pytest.fixture
async def there(root: Client) -> Client:
    await made(root, "new.example")
    await made(root, "bücher.example")
    mode(root, "enforce")
    return root


async def test_a_domain_has_the_policy_of_the_machine(there: Client) -> None:
    await done(there, ALIAS, alias="second.example", domain="new.example")
    for name in ("new.example", "NEW.example:443", "second.example", "xn--bcher-kva.example"):
        assert await policy(there, f"mta-sts.{name}") == (200, ENFORCED)
    mode(there, "testing")
    assert "mode: testing\r\n" in (await policy(there, "mta-sts.new.example"))[1]


@pytest.mark.parametrize(
    "host",
    [
        "new.example",
        "mta-sts.far.example",
        "mta-sts.",
        "mta-sts.-",
        "mta-sts." + "a" * 400,
        "x:y:z",
    ],
)
async def test_others_have_none(there: Client, host: str) -> None:
    assert await policy(there, host) == (404, "no policy\n")


async def test_nor_has_what_is_relayed_or_where_it_is_off(there: Client) -> None:
    mode(there, "off")
    assert (await policy(there, "mta-sts.new.example"))[0] == 404
    mode(there, "enforce")
    _, errors = await done(there, UPDATE, domains=[{"name": "new.example"}], set={"backupMx": True})
    assert errors == []
    assert (await policy(there, "mta-sts.new.example"))[0] == 404


async def test_dns_is_compared_with_it(there: Client) -> None:
    found = (await there(RECORDS.replace("true", "false")))["domain"]["dnsRecords"]
    (value,) = [one["value"] for one in found if one["name"] == "_mta-sts.new.example"]
    records = {"_mta-sts.new.example": value}
    async with asking(zone(records, CNAME={"mta-sts.new.example": "mx.example.org."})) as place:
        asks(there, place)
        found = (await there(RECORDS))["domain"]["dnsRecords"]
    states = {one["name"]: one["state"] for one in found if "mta-sts" in one["name"]}
    assert states == {"_mta-sts.new.example": "OK", "mta-sts.new.example": "OK"}
