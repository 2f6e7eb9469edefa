"""The DKIM key of a new domain: created with the domain, and active once DNS has its record."""

from typing import Any

import httpx
import pytest

from graph.types import global_ids
from mail.authentication import private_keys, signing_keys
from models.events.event_types import EventType
from models.events.journal import PLATFORM
from models.runtime.environment import Environment
from resolvers.domains import dkim_rotation
from tests.conftest import GraphQLClient, ManualClock
from tests.support.accounts.domain_admins import make_domain_admin
from tests.support.mail_servers.dns_zone_server import run_dns_zone
from tests.support.operations.domain_operations import (
    ALIAS_DOMAIN_CREATE,
    DOMAIN_CREATE,
    DOMAIN_DELETE,
    ERRORS,
    create_domain,
    error_summary,
    load_domain_id,
    run_mutation,
)
from tests.support.operations.platform import dkim_key_operations
from tests.support.operations.platform.dkim_key_operations import (
    DKIM_KEY_FIELDS,
    DKIM_KEY_QUERY,
    DKIM_KEYS_QUERY,
)
from tests.support.stores import counter_check
from tests.support.stores.counter_check import select_rows

NEW_DOMAIN = "new.example"
DOMAIN_CREATE_WITH_KEY = f"""mutation ($input: DomainCreateInput!) {{ domainCreate(input: $input) {{
  domain {{ id name dkimKey {{ {DKIM_KEY_FIELDS} }} dnsRecords {{ name value purpose }} }}
  journalCursor {ERRORS} }} }}"""
pytestmark = pytest.mark.usefixtures("ada")


async def create_domain_with_key(
    client: GraphQLClient, name: str = NEW_DOMAIN, **arguments: Any
) -> Any:
    payload, errors = await run_mutation(client, DOMAIN_CREATE_WITH_KEY, name=name, **arguments)
    assert errors == []
    return payload["domain"]


async def list_keys(client: GraphQLClient) -> list[tuple[str, str, str]]:
    nodes = (await client(DKIM_KEYS_QUERY))["dkimKeys"]["nodes"]
    return [(key["domain"], key["selector"], key["state"]) for key in nodes]


async def test_new_domain_has_a_key_that_is_pending_until_dns_has_it(
    root: GraphQLClient, environment: Environment, clock: ManualClock
) -> None:
    position_before = await counter_check.load_stream_position(environment, PLATFORM)
    domain = await create_domain_with_key(root)
    key = domain["dkimKey"]
    assert (key["domain"], key["selector"], key["state"]) == (NEW_DOMAIN, "dkim", "PENDING")
    assert (key["algorithm"], key["keySize"], key["activatedAt"]) == ("RSA", 2048, None)
    record = {"name": f"dkim._domainkey.{NEW_DOMAIN}", "value": key["dnsTxt"]["value"]}
    assert [record] == [
        {name: dns_record[name] for name in record}
        for dns_record in domain["dnsRecords"]
        if "_domainkey" in dns_record["name"]
    ]
    domain_id = global_ids.decode("Domain", domain["id"])
    key_id = global_ids.decode("DkimKey", key["id"])
    expected = [(EventType.DOMAIN_CREATED, [domain_id]), (EventType.DKIM_KEY_CREATED, [key_id])]
    assert await counter_check.load_journal_entries(environment, domain_id) == expected
    assert (
        await counter_check.load_journal_entries(environment, PLATFORM, position_before) == expected
    )
    log_query = '{ auditLog(filter: {mutation: "domainCreate"}) { nodes { targetId after } } }'
    (log_entry,) = (await root(log_query))["auditLog"]["nodes"]
    assert log_entry["after"]["dkimKey"]["fingerprint"] == key["fingerprintSha256"]
    assert await signing_keys.load_own_or_published_shared_signers(environment, NEW_DOMAIN) == []

    async with run_dns_zone(dkim_key_operations.make_dkim_zone([key])) as dns_server:
        dkim_key_operations.use_dns_server(root, dns_server)
        clock.tick(minutes=1)
        assert await dkim_rotation.activate_or_delete_due_keys_and_count_due(environment) == 1
    assert await list_keys(root) == [(NEW_DOMAIN, "dkim", "ACTIVE")]
    (signer,) = await signing_keys.load_own_or_published_shared_signers(environment, NEW_DOMAIN)
    assert (signer.domain, signer.key.public_key_text()) == (NEW_DOMAIN, key["publicKey"])


async def test_domain_create_without_dkim_creates_no_key(
    root: GraphQLClient, environment: Environment
) -> None:
    domain = await create_domain_with_key(root, createDkim=False)
    assert domain["dkimKey"] is None
    assert await list_keys(root) == []
    domain_id = await load_domain_id(environment, NEW_DOMAIN)
    assert await counter_check.load_journal_entries(environment, domain_id) == [
        (EventType.DOMAIN_CREATED, [domain_id])
    ]


async def test_wildcard_key_signs_until_domain_key_is_active(
    root: GraphQLClient, environment: Environment, clock: ManualClock
) -> None:
    wildcard_key = await dkim_key_operations.create_dkim_key(root, domain="*", selector="all")
    domain = await create_domain_with_key(root, "bücher.example")
    domain_key, ascii_domain = domain["dkimKey"], "xn--bcher-kva.example"
    records = {record["name"]: record["value"] for record in domain["dnsRecords"]}
    assert records[f"all._domainkey.{ascii_domain}"] == wildcard_key["dnsTxt"]["value"]
    assert records[f"dkim._domainkey.{ascii_domain}"] == domain_key["dnsTxt"]["value"]
    dns_zone = dkim_key_operations.make_dkim_zone([domain_key])
    dns_zone.records |= {
        (f"all._domainkey.{ascii_domain}", kind): texts
        for (_, kind), texts in dkim_key_operations.make_dkim_zone([wildcard_key]).records.items()
    }
    async with run_dns_zone(dns_zone) as resolver_address:
        dkim_key_operations.use_dns_server(root, resolver_address)
        (signer,) = await signing_keys.load_own_or_published_shared_signers(
            environment, "bücher.example"
        )
        assert signer.selector == "all"
        clock.tick(minutes=1)
        assert await dkim_rotation.activate_or_delete_due_keys_and_count_due(environment) == 1
        (signer,) = await signing_keys.load_own_or_published_shared_signers(
            environment, "bücher.example"
        )
        assert signer.selector == "dkim"
    records_query = "query ($by: DomainRef!) { domain(by: $by) { dnsRecords { name } } }"
    dns_records = (await root(records_query, by={"name": "bücher.example"}))["domain"]["dnsRecords"]
    assert {"name": f"all._domainkey.{ascii_domain}"} not in dns_records


async def test_wildcard_key_of_equal_selector_has_no_dns_record(root: GraphQLClient) -> None:
    await dkim_key_operations.create_dkim_key(root, domain="*")  # its selector is dkim, too
    domain = await create_domain_with_key(root)
    records = [record for record in domain["dnsRecords"] if "_domainkey" in record["name"]]
    assert [record["value"] for record in records] == [domain["dkimKey"]["dnsTxt"]["value"]]


async def test_failed_or_validated_domain_create_creates_no_key(root: GraphQLClient) -> None:
    await create_domain(root, "old.example")
    assert (
        await run_mutation(
            root, ALIAS_DOMAIN_CREATE, alias=NEW_DOMAIN, domain={"name": "old.example"}
        )
    )[1] == []
    for name in ("old.example", NEW_DOMAIN):
        _, errors = await run_mutation(root, DOMAIN_CREATE, name=name)
        assert error_summary(errors)[:2] == ("CONFLICT", ["name"])
    payload, errors = await run_mutation(
        root, DOMAIN_CREATE, name="x.example", options={"validateOnly": True}
    )
    assert errors == []
    assert await list_keys(root) == []
    assert await select_rows(root.environment, "SELECT count(*) FROM dkim_keys") == [(0,)]
    assert payload["domain"] is None or payload["domain"]["name"] == "x.example"


async def test_domain_name_too_long_for_dkim_record_is_refused(root: GraphQLClient) -> None:
    name = ".".join(["a" * 60] * 3 + ["b" * 50, "example"])  # 241 characters
    _, errors = await run_mutation(root, DOMAIN_CREATE, name=name)
    assert error_summary(errors) == ("VALIDATION", ["createDkim"], None, "SELECTOR")
    assert (await create_domain_with_key(root, name, createDkim=False))["name"] == name


async def test_key_is_hidden_from_admin_of_other_domain(
    ada: GraphQLClient, root: GraphQLClient, environment: Environment, http: httpx.AsyncClient
) -> None:
    key = (await create_domain_with_key(root))["dkimKey"]
    other_admin = await make_domain_admin(environment, http, "dora")
    for client in (ada, other_admin):
        assert (await client.execute(DKIM_KEY_QUERY, by={"id": key["id"]})).get("data") in (
            None,
            {"dkimKey": None},
        )
    assert await list_keys(other_admin) == []


async def test_deleting_domain_deletes_key_and_journals_it(
    root: GraphQLClient, environment: Environment
) -> None:
    domain = await create_domain_with_key(root)
    position_before = await counter_check.load_stream_position(environment, PLATFORM)
    assert (await run_mutation(root, DOMAIN_DELETE, domains=[{"name": NEW_DOMAIN}]))[1] == []
    assert await list_keys(root) == []
    key_ids = [global_ids.decode("DkimKey", domain["dkimKey"]["id"])]
    entries = await counter_check.load_journal_entries(environment, PLATFORM, position_before)
    assert (EventType.DKIM_KEY_DELETED, key_ids) in entries


async def test_private_key_is_stored_encrypted(
    root: GraphQLClient, environment: Environment
) -> None:
    key = (await create_domain_with_key(root))["dkimKey"]
    ((stored,),) = await select_rows(environment, "SELECT private FROM dkim_keys")
    assert "PRIVATE KEY" not in stored
    secret_name = signing_keys.secret_name(global_ids.decode("DkimKey", key["id"]))
    private_key = private_keys.parse_dkim_private_key(
        environment.secret_box.decrypt(stored, secret_name), is_trusted=True
    )
    assert private_key.public_key_text() == key["publicKey"]
