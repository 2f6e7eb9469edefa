"""The key that a new domain has: made with it, and in force once DNS has its record."""

from typing import Any

import httpx
import pytest

from graph.types import global_ids
from mail.authentication import private_keys, signing_keys
from models.events.journal import PLATFORM, ChangeKind
from models.runtime.environment import Environment
from resolvers.domains import dkim_rotation
from tests.conftest import Client, Clock
from tests.support.accounts.domain_admins import make_domain_admin
from tests.support.mail_servers.dns_zone_server import asking
from tests.support.operations import dkim_key_operations
from tests.support.operations.dkim_key_operations import KEY, LIST, ONE
from tests.support.operations.domain_operations import (
    ALIAS,
    CREATE,
    DELETE,
    ERRORS,
    done,
    key_of,
    made,
    told,
)
from tests.support.stores import counter_check
from tests.support.stores.counter_check import rows

NEW = "new.example"
MAKE = f"""mutation ($input: DomainCreateInput!) {{ domainCreate(input: $input) {{
  domain {{ id name dkimKey {{ {KEY} }} dnsRecords {{ name value purpose }} }} journalCursor
  {ERRORS} }} }}"""
pytestmark = pytest.mark.usefixtures("ada")


async def create(client: Client, name: str = NEW, **given: Any) -> Any:
    answer, errors = await done(client, MAKE, name=name, **given)
    assert errors == []
    return answer["domain"]


async def listed(client: Client) -> list[tuple[str, str, str]]:
    nodes = (await client(LIST))["dkimKeys"]["nodes"]
    return [(each["domain"], each["selector"], each["state"]) for each in nodes]


async def test_a_domain_comes_with_a_key_that_waits_for_dns(
    root: Client, world: Environment, clock: Clock
) -> None:
    before = await counter_check.reached(world, PLATFORM)
    domain = await create(root)
    key = domain["dkimKey"]
    assert (key["domain"], key["selector"], key["state"]) == (NEW, "dkim", "PENDING")
    assert (key["algorithm"], key["keySize"], key["activatedAt"]) == ("RSA", 2048, None)
    record = {"name": f"dkim._domainkey.{NEW}", "value": key["dnsTxt"]["value"]}
    assert [record] == [
        {name: each[name] for name in record}
        for each in domain["dnsRecords"]
        if "_domainkey" in each["name"]
    ]
    home, mine = global_ids.decode("Domain", domain["id"]), global_ids.decode("DkimKey", key["id"])
    expected = [(ChangeKind.DOMAIN_CHANGED, [home]), (ChangeKind.DKIM_CHANGED, [mine])]
    assert await counter_check.journal(world, home) == expected
    assert await counter_check.journal(world, PLATFORM, before) == expected
    log = '{ adminLog(mutation: "domainCreate") { nodes { targetId after } } }'
    (noted,) = (await root(log))["adminLog"]["nodes"]
    assert noted["after"]["dkimKey"]["fingerprint"] == key["fingerprintSha256"]
    assert await signing_keys.load_signers(world, NEW) == []

    async with asking(dkim_key_operations.published([key])) as there:
        dkim_key_operations.asks(root, there)
        clock.tick(minutes=1)
        assert await dkim_rotation.process_due_keys(world) == 1
    assert await listed(root) == [(NEW, "dkim", "ACTIVE")]
    (signer,) = await signing_keys.load_signers(world, NEW)
    assert (signer.domain, signer.key.public_key_text()) == (NEW, key["publicKey"])


async def test_without_where_that_is_said(root: Client, world: Environment) -> None:
    domain = await create(root, createDkim=False)
    assert domain["dkimKey"] is None
    assert await listed(root) == []
    home = await key_of(world, NEW)
    assert await counter_check.journal(world, home) == [(ChangeKind.DOMAIN_CHANGED, [home])]


async def test_a_key_for_all_signs_until_the_own_one_does(
    root: Client, world: Environment, clock: Clock
) -> None:
    every = await dkim_key_operations.key(root, domains=["*"], selector="all")
    domain = await create(root, "bücher.example")
    own, wire = domain["dkimKey"], "xn--bcher-kva.example"
    records = {each["name"]: each["value"] for each in domain["dnsRecords"]}
    assert records[f"all._domainkey.{wire}"] == every["dnsTxt"]["value"]
    assert records[f"dkim._domainkey.{wire}"] == own["dnsTxt"]["value"]
    there = dkim_key_operations.published([own])
    there.records |= {
        (f"all._domainkey.{wire}", kind): texts
        for (_, kind), texts in dkim_key_operations.published([every]).records.items()
    }
    async with asking(there) as place:
        dkim_key_operations.asks(root, place)
        (signer,) = await signing_keys.load_signers(world, "bücher.example")
        assert signer.selector == "all"
        clock.tick(minutes=1)
        assert await dkim_rotation.process_due_keys(world) == 1
        (signer,) = await signing_keys.load_signers(world, "bücher.example")
        assert signer.selector == "dkim"
    names = "query ($by: DomainRef!) { domain(by: $by) { dnsRecords { name } } }"
    found = (await root(names, by={"name": "bücher.example"}))["domain"]["dnsRecords"]
    assert {"name": f"all._domainkey.{wire}"} not in found


async def test_one_name_in_dns_is_for_one_key(root: Client) -> None:
    await dkim_key_operations.key(root, domains=["*"])  # its selector is dkim too
    domain = await create(root)
    records = [each for each in domain["dnsRecords"] if "_domainkey" in each["name"]]
    assert [each["value"] for each in records] == [domain["dkimKey"]["dnsTxt"]["value"]]


async def test_what_makes_no_domain_makes_no_key(root: Client) -> None:
    await made(root, "old.example")
    assert (await done(root, ALIAS, alias=NEW, domain="old.example"))[1] == []
    for name in ("old.example", NEW):
        _, errors = await done(root, CREATE, name=name)
        assert told(errors)[:2] == ("CONFLICT", ["name"])
    answer, errors = await done(root, CREATE, name="x.example", options={"validateOnly": True})
    assert errors == []
    assert await listed(root) == []
    assert await rows(root.world, "SELECT count(*) FROM dkim_keys") == [(0,)]
    assert answer["domain"] is None or answer["domain"]["name"] == "x.example"


async def test_a_name_with_no_room_for_a_record_is_told(root: Client) -> None:
    name = ".".join(["a" * 60] * 3 + ["b" * 50, "example"])  # 241 characters
    _, errors = await done(root, CREATE, name=name)
    assert told(errors) == ("VALIDATION", ["createDkim"], None, "selector")
    assert (await create(root, name, createDkim=False))["name"] == name


async def test_whoever_administers_another_domain_does_not_see_it(
    ada: Client, root: Client, world: Environment, http: httpx.AsyncClient
) -> None:
    key = (await create(root))["dkimKey"]
    other = await make_domain_admin(world, http, "dora")
    for client in (ada, other):
        assert (await client.raw(ONE, by={"id": key["id"]})).get("data") in (
            None,
            {"dkimKey": None},
        )
    assert await listed(other) == []


async def test_it_goes_with_its_domain_which_is_told(root: Client, world: Environment) -> None:
    domain = await create(root)
    before = await counter_check.reached(world, PLATFORM)
    assert (await done(root, DELETE, domains=[{"name": NEW}]))[1] == []
    assert await listed(root) == []
    keys = [global_ids.decode("DkimKey", domain["dkimKey"]["id"])]
    told_ = await counter_check.journal(world, PLATFORM, before)
    assert (ChangeKind.DKIM_CHANGED, keys) in told_


async def test_its_private_half_is_sealed(root: Client, world: Environment) -> None:
    key = (await create(root))["dkimKey"]
    ((stored,),) = await rows(world, "SELECT private FROM dkim_keys")
    assert "PRIVATE KEY" not in stored
    place = signing_keys.secret_name(global_ids.decode("DkimKey", key["id"]))
    opened = private_keys.parse_key(world.secret_box.decrypt(stored, place), is_trusted=True)
    assert opened.public_key_text() == key["publicKey"]
