"""The MTA-STS policy that is served under mta-sts.<domain> for each domain."""

from dataclasses import replace

import pytest

from tests.conftest import GraphQLClient
from tests.support.case_loop import each_case
from tests.support.mail_servers.dns_zone_server import make_dns_zone, run_dns_zone
from tests.support.operations.domain_operations import (
    ALIAS_DOMAIN_CREATE,
    DOMAIN_UPDATE,
    create_domain,
    run_mutation,
)
from tests.support.operations.platform.dkim_key_operations import use_dns_server

PATH = "/.well-known/mta-sts.txt"
ENFORCED_POLICY = "version: STSv1\r\nmode: enforce\r\nmx: mx.example.org\r\nmax_age: 604800\r\n"
DNS_RECORDS_QUERY = (
    '{ domain(by: {name: "new.example"}) { dnsRecords(check: true) { name value state } } }'
)


def set_mta_sts_mode(client: GraphQLClient, mode_value: str) -> None:
    options = replace(client.environment.options, mta_sts_mode=mode_value)
    object.__setattr__(client.environment, "options", options)


async def get_policy(client: GraphQLClient, host: str) -> tuple[int, str]:
    response = await client.http.get(PATH, headers={"Host": host})
    return response.status_code, response.text


@pytest.fixture
async def client_with_domains(root: GraphQLClient) -> GraphQLClient:
    await create_domain(root, "new.example")
    await create_domain(root, "bücher.example")
    set_mta_sts_mode(root, "enforce")
    return root


async def test_domain_and_alias_have_the_policy_of_the_server(
    client_with_domains: GraphQLClient,
) -> None:
    await run_mutation(
        client_with_domains,
        ALIAS_DOMAIN_CREATE,
        alias="second.example",
        domain={"name": "new.example"},
    )
    for name in ("new.example", "NEW.example:443", "second.example", "xn--bcher-kva.example"):
        assert await get_policy(client_with_domains, f"mta-sts.{name}") == (200, ENFORCED_POLICY)
    set_mta_sts_mode(client_with_domains, "testing")
    assert "mode: testing\r\n" in (await get_policy(client_with_domains, "mta-sts.new.example"))[1]


UNKNOWN_HOSTS: list[str] = [
    "new.example",
    "mta-sts.far.example",
    "mta-sts.",
    "mta-sts.-",
    "mta-sts." + "a" * 400,
    "x:y:z",
]


async def test_unknown_host_has_no_policy(client_with_domains: GraphQLClient) -> None:
    for case in each_case(UNKNOWN_HOSTS):
        with case as host:
            assert await get_policy(client_with_domains, host) == (404, "no policy\n")


async def test_no_policy_if_mode_is_off_or_domain_is_backup_mx(
    client_with_domains: GraphQLClient,
) -> None:
    set_mta_sts_mode(client_with_domains, "off")
    assert (await get_policy(client_with_domains, "mta-sts.new.example"))[0] == 404
    set_mta_sts_mode(client_with_domains, "enforce")
    _, errors = await run_mutation(
        client_with_domains,
        DOMAIN_UPDATE,
        domains=[{"name": "new.example"}],
        set={"backupMx": True},
    )
    assert errors == []
    assert (await get_policy(client_with_domains, "mta-sts.new.example"))[0] == 404


async def test_dns_records_are_compared_with_the_policy(client_with_domains: GraphQLClient) -> None:
    dns_records = (await client_with_domains(DNS_RECORDS_QUERY.replace("true", "false")))["domain"][
        "dnsRecords"
    ]
    (value,) = [
        record["value"] for record in dns_records if record["name"] == "_mta-sts.new.example"
    ]
    records = {"_mta-sts.new.example": value}
    async with run_dns_zone(
        make_dns_zone(records, CNAME={"mta-sts.new.example": "mx.example.org."})
    ) as resolver_address:
        use_dns_server(client_with_domains, resolver_address)
        dns_records = (await client_with_domains(DNS_RECORDS_QUERY))["domain"]["dnsRecords"]
    states = {
        record["name"]: record["state"] for record in dns_records if "mta-sts" in record["name"]
    }
    assert states == {"_mta-sts.new.example": "OK", "mta-sts.new.example": "OK"}
