"""Rotation of DKIM keys: activation by DNS or by hand, overlap and deletion."""

from datetime import timedelta
from typing import Any

import pytest

from models.runtime.environment import Environment
from resolvers.domains import dkim_rotation
from tests.conftest import GraphQLClient, ManualClock
from tests.support.case_loop import each_case
from tests.support.mail_servers.dns_zone_server import (
    DnsZoneServer,
    make_dns_zone,
    run_dns_zone,
    txt_rdata,
)
from tests.support.operations.domain_operations import error_summary, run_mutation
from tests.support.operations.platform import dkim_key_operations
from tests.support.operations.platform.dkim_key_operations import (
    DKIM_KEY_ACTIVATE,
    DKIM_KEY_DELETE,
    DKIM_KEY_ROTATE,
    DNS_STATES_QUERY,
    domain_refs,
    list_keys,
    load_signing_key,
    load_states_by_selector,
)

pytestmark = pytest.mark.usefixtures("ada")  # creates example.org


def publish_keys(dns_server: DnsZoneServer, *keys: Any) -> None:
    """Replace the records of the DNS server by those of these keys."""
    dns_server.records.clear()
    for name, text in dkim_key_operations.dkim_txt_records(keys).items():
        dns_server.records[name, "TXT"] = [txt_rdata(text)]


async def test_new_key_signs_once_dns_has_its_record(
    root: GraphQLClient, environment: Environment, clock: ManualClock
) -> None:
    (rsa_key, ed25519_key) = await dkim_key_operations.create_key_of_each_algorithm(root)
    dns_server = make_dns_zone({})
    publish_keys(dns_server, rsa_key, ed25519_key)
    async with run_dns_zone(dns_server) as resolver_address:
        dkim_key_operations.use_dns_server(root, resolver_address)
        payload, errors = await run_mutation(
            root, DKIM_KEY_ROTATE, domains=domain_refs("example.org")
        )
        assert errors == []
        new_keys = {key["algorithm"]: key for key in payload["dkimKeys"]}
        assert {key["selector"] for key in new_keys.values()} == {"r-20300101", "e-20300101"}
        assert {key["state"] for key in new_keys.values()} == {"PENDING"}
        _, errors = await run_mutation(root, DKIM_KEY_ROTATE, domains=domain_refs("example.org"))
        assert error_summary(errors)[0] == "CONFLICT"
        assert await dkim_rotation.activate_or_delete_due_keys_and_count_due(environment) == 2
        # not due again yet
        assert await dkim_rotation.activate_or_delete_due_keys_and_count_due(environment) == 0
        assert (await load_signing_key(root, "example.org"))["id"] == rsa_key["id"]
        publish_keys(dns_server, rsa_key, ed25519_key, new_keys["RSA"])
        clock.tick(minutes=2)
        assert await dkim_rotation.activate_or_delete_due_keys_and_count_due(environment) == 2
        states = await load_states_by_selector(root)
        assert states == {"r": "RETIRED", "e": "ACTIVE", "r-20300101": "ACTIVE",
                          "e-20300101": "PENDING"}  # fmt: skip
        assert (await load_signing_key(root, "example.org"))["id"] == new_keys["RSA"]["id"]
        clock.tick(days=13)
        await dkim_rotation.activate_or_delete_due_keys_and_count_due(environment)
        assert "r" in await load_states_by_selector(root)
        clock.tick(days=2)
        await dkim_rotation.activate_or_delete_due_keys_and_count_due(environment)
        assert "r" not in await load_states_by_selector(root)


async def test_dns_checks_of_pending_key_become_rarer(
    root: GraphQLClient, environment: Environment, clock: ManualClock
) -> None:
    await dkim_key_operations.create_dkim_key(root)
    dns_server = make_dns_zone({})
    async with run_dns_zone(dns_server) as resolver_address:
        dkim_key_operations.use_dns_server(root, resolver_address)
        await run_mutation(
            root, DKIM_KEY_ROTATE, domains=domain_refs("example.org"), selector="new"
        )
        check_count = 0
        for _ in range(24 * 60):
            check_count += await dkim_rotation.activate_or_delete_due_keys_and_count_due(
                environment
            )
            clock.tick(minutes=1)
        assert 25 < check_count < 35
        assert len(dns_server.queries) >= check_count


async def test_wrong_or_revoked_record_activates_no_key(
    root: GraphQLClient, environment: Environment, clock: ManualClock
) -> None:
    old_key = await dkim_key_operations.create_dkim_key(root)
    payload, _ = await run_mutation(
        root, DKIM_KEY_ROTATE, domains=domain_refs("example.org"), selector="new"
    )
    (new_key,) = payload["dkimKeys"]
    name = new_key["dnsTxt"]["name"]
    for record in (
        old_key["dnsTxt"]["value"],
        "v=DKIM1; p=",
        "junk",
        new_key["dnsTxt"]["value"][:-8],
    ):
        async with run_dns_zone(make_dns_zone({name: record})) as resolver_address:
            dkim_key_operations.use_dns_server(root, resolver_address)
            assert (await root(DNS_STATES_QUERY))["dkimKeys"]["nodes"][1]["dnsState"] == "MISMATCH"
            assert await dkim_rotation.activate_or_delete_due_keys_and_count_due(environment) == 1
            clock.tick(hours=1)
    assert (await load_states_by_selector(root))["new"] == "PENDING"


async def test_new_and_old_key_can_be_activated_by_hand(root: GraphQLClient) -> None:
    old_key = await dkim_key_operations.create_dkim_key(root)
    payload, _ = await run_mutation(
        root, DKIM_KEY_ROTATE, domains=domain_refs("example.org"), keySize=3072
    )
    (new_key,) = payload["dkimKeys"]
    assert new_key["keySize"] == 3072
    payload, errors = await run_mutation(root, DKIM_KEY_ACTIVATE, dkimKeys=[{"id": new_key["id"]}])
    assert (errors, [key["state"] for key in payload["dkimKeys"]]) == ([], ["ACTIVE"])
    assert (await load_states_by_selector(root))["dkim"] == "RETIRED"
    await run_mutation(root, DKIM_KEY_ACTIVATE, dkimKeys=[{"id": old_key["id"]}])
    states = await load_states_by_selector(root)
    assert states == {"dkim": "ACTIVE", new_key["selector"]: "RETIRED"}
    _, errors = await run_mutation(
        root, DKIM_KEY_ACTIVATE, dkimKeys=[{"id": old_key["id"]}, {"id": new_key["id"]}]
    )
    assert error_summary(errors)[:2] == ("CONFLICT", ["dkimKeys"])
    _, errors = await run_mutation(root, DKIM_KEY_ACTIVATE, dkimKeys=[])
    assert error_summary(errors)[0] == "VALIDATION"


async def test_last_key_is_never_deleted_automatically(
    root: GraphQLClient, environment: Environment, clock: ManualClock
) -> None:
    await dkim_key_operations.create_dkim_key(root)
    await dkim_key_operations.create_dkim_key(root, selector="new")
    keys = await list_keys(root)
    await run_mutation(
        root,
        DKIM_KEY_DELETE,
        dkimKeys=[{"id": key["id"]} for key in keys if key["selector"] == "new"],
    )
    clock.tick(days=30)
    assert await dkim_rotation.activate_or_delete_due_keys_and_count_due(environment) == 1
    assert await load_states_by_selector(root) == {"dkim": "RETIRED"}


# for each case: the input, and code, path, index and detail of the error
INVALID_ROTATIONS: list[tuple[dict[str, Any], tuple[Any, ...]]] = [
    ({"domains": domain_refs("far.example")}, ("NOT_FOUND", ["domains"], 0, "far.example")),
    ({"domains": domain_refs("*")}, ("NOT_FOUND", ["domains"], 0, "*")),
    ({"selector": "new"}, ("VALIDATION", ["algorithm"], None, "REQUIRED")),
    ({"selector": "e", "algorithm": "RSA"}, ("CONFLICT", ["selector"], None, None)),
    ({"selector": "\r\n"}, ("VALIDATION", ["selector"], None, "SELECTOR")),
    ({"keySize": 7}, ("VALIDATION", ["keySize"], None, "ENUM")),
]


async def test_invalid_rotation_is_refused(root: GraphQLClient) -> None:
    await dkim_key_operations.create_key_of_each_algorithm(root)
    for case in each_case(INVALID_ROTATIONS):
        with case as (rotation_input, refusal):
            _, errors = await run_mutation(
                root, DKIM_KEY_ROTATE, **{"domains": domain_refs("example.org"), **rotation_input}
            )
            assert error_summary(errors) == refusal
            assert len(await list_keys(root)) == 2


async def test_key_overlap_is_a_setting(
    root: GraphQLClient, environment: Environment, clock: ManualClock
) -> None:
    document = """mutation ($input: SettingSetInput!) { settingSet(input: $input) {
        errors { message } } }"""
    arguments = {"key": "dkim.retiredKeyRetention", "value": "P1D"}
    assert (await root(document, input=arguments))["settingSet"]["errors"] == []
    assert environment.options.dkim_retired_key_retention == timedelta(days=1)
    await dkim_key_operations.create_dkim_key(root)
    await dkim_key_operations.create_dkim_key(root, selector="new")
    clock.tick(days=2)
    await dkim_rotation.activate_or_delete_due_keys_and_count_due(environment)
    assert await load_states_by_selector(root) == {"new": "ACTIVE"}
