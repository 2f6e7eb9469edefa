"""Relay hosts, transports, TLS policies and forwarding hosts: mutations, validation and rights."""

from typing import Any

import httpx
import pytest

from graph.types import global_ids
from models.events.event_types import EventType
from models.events.journal import PLATFORM
from models.runtime.environment import Environment
from tests.conftest import GraphQLClient
from tests.support.accounts.domain_admins import make_domain_admin
from tests.support.operations.domain_operations import (
    DOMAIN_UPDATE,
    create_domain,
    error_summary,
    load_domain_id,
    run_mutation,
)
from tests.support.routing.route_operations import (
    KINDS,
    RELAY_PASSWORD,
    create_item,
    creation_error,
    list_document,
    mutation_document,
    refs,
    update_items,
)
from tests.support.stores.counter_check import load_journal_entries, select_rows

TABLES = ("relay_hosts", "transports", "tls_policies", "forwarding_hosts")


async def test_relay_host_is_created_updated_listed_and_deleted(
    root: GraphQLClient, environment: Environment
) -> None:
    relay = await create_item(
        root, "relayHost", host=" Smtp.Relay.EXAMPLE:587 ", username="us", password=RELAY_PASSWORD
    )
    relay_id = global_ids.decode("RelayHost", relay["id"])
    assert relay | {"id": None} == {
        "id": None, "host": "smtp.relay.example", "port": 587, "username": "us",
        "hasPassword": True, "tls": True, "active": True, "usedByDomains": {"nodes": []},
    }  # fmt: skip
    assert (await load_journal_entries(environment, PLATFORM))[-1] == (
        EventType.RELAY_HOST_CREATED,
        [relay_id],
    )
    updated, errors = await update_items(
        root, "relayHost", relay["id"], active=False, username="them"
    )
    assert errors == []
    assert (updated[0]["active"], updated[0]["username"], updated[0]["hasPassword"]) == (
        False, "them", True,
    )  # fmt: skip
    updated, errors = await update_items(root, "relayHost", relay["id"], username=None)
    assert (errors, updated[0]["username"], updated[0]["hasPassword"]) == ([], None, False)
    page = (await root(list_document("relayHost")))["relayHosts"]
    assert (page["totalCount"], page["nodes"]) == (1, updated)
    node = await root(
        "query ($id: ID!) { node(id: $id) { ... on RelayHost { host } } }", id=relay["id"]
    )
    assert node == {"node": {"host": "smtp.relay.example"}}
    answer, errors = await run_mutation(
        root, mutation_document("relayHost", "Delete"), **refs("relayHost", relay["id"])
    )
    assert (answer["deletedIds"], errors) == ([relay["id"]], [])
    assert (await root(list_document("relayHost")))["relayHosts"]["nodes"] == []


@pytest.mark.parametrize("kind", ["relayHost", "transport", "tlsPolicy"])
async def test_record_given_twice_is_deleted_once_in_given_order(
    root: GraphQLClient, kind: str
) -> None:
    values: list[dict[str, str]] = {
        "relayHost": [{"host": "a.example"}, {"host": "b.example"}],
        "transport": [
            {"destination": name, "nextHop": "hop.example"} for name in ("a.example", "b.example")
        ],
        "tlsPolicy": [{"destination": name, "level": "MAY"} for name in ("a.example", "b.example")],
    }[kind]
    first, second = [(await create_item(root, kind, **columns))["id"] for columns in values]
    answer, errors = await run_mutation(
        root, mutation_document(kind, "Delete"), **refs(kind, second, first, second)
    )
    assert (answer["deletedIds"], errors) == ([second, first], [])


HOST_SPELLINGS = [
    ("relay", ("relay", 25)),
    ("[2001:DB8::25]:2525", ("2001:db8::25", 2525)),
    ("2001:db8::25", ("2001:db8::25", 25)),
    ("192.0.2.1:465", ("192.0.2.1", 465)),
    ("bücher.example", ("xn--bcher-kva.example", 25)),
    ("[smtp.example]:26", ("smtp.example", 26)),
]


@pytest.mark.parametrize(("spelling", "expected"), HOST_SPELLINGS)
async def test_host_spellings_are_normalized(
    spelling: str, expected: tuple[str, int], root: GraphQLClient
) -> None:
    relay = await create_item(root, "relayHost", host=spelling)
    assert (relay["host"], relay["port"]) == expected


INVALID_INPUTS: list[tuple[str, dict[str, Any], tuple[Any, ...]]] = [
    ("relayHost", {"host": ""}, (["host"], "HOST")),
    ("relayHost", {"host": "a..b"}, (["host"], "HOST")),
    ("relayHost", {"host": "-a.example"}, (["host"], "HOST")),
    ("relayHost", {"host": "a b"}, (["host"], "HOST")),
    ("relayHost", {"host": "a.example\r\nQUIT"}, (["host"], "HOST")),
    ("relayHost", {"host": "x" * 300}, (["host"], "HOST")),
    ("relayHost", {"host": "1.2.3"}, (["host"], "HOST")),
    ("relayHost", {"host": "relay.example:0"}, (["host"], "RANGE")),
    ("relayHost", {"host": "relay.example:99999"}, (["host"], "RANGE")),
    ("relayHost", {"port": 65536}, (["port"], "RANGE")),
    ("relayHost", {"host": "relay.example:26", "port": 27}, (["port"], "EXCLUSIVE")),
    ("relayHost", {"username": "us"}, (["password"], "REQUIRES")),
    ("relayHost", {"password": RELAY_PASSWORD}, (["username"], "REQUIRES")),
    ("relayHost", {"username": "u\ns", "password": RELAY_PASSWORD}, (["username"], "LENGTH")),
    ("relayHost", {"username": "us", "password": "a\r\nb"}, (["password"], "LENGTH")),
    ("relayHost", {"username": "us", "password": "x" * 9000}, (["password"], "LENGTH")),
    ("transport", {"destination": ""}, (["destination"], "DOMAIN")),
    ("transport", {"destination": "."}, (["destination"], "DOMAIN")),
    ("transport", {"destination": "@far.example"}, (["destination"], "ADDRESS")),
    ("transport", {"destination": "a\r\n@far.example"}, (["destination"], "ADDRESS")),
    ("transport", {"destination": "192.0.2.1"}, (["destination"], "DOMAIN")),
    ("transport", {"destination": "/(/"}, (["destination"], "PATTERN")),
    ("transport", {"destination": "//"}, (["destination"], "PATTERN")),
    ("transport", {"destination": "/a"}, (["destination"], "PATTERN")),
    ("transport", {"destination": f"/{'a' * 300}/"}, (["destination"], "PATTERN")),
    ("transport", {"destination": "/(a+)+(?=b)/"}, (["destination"], "PATTERN")),
    ("transport", {"destination": "/((a{64}){64}){64}/"}, (["destination"], "PATTERN")),
    ("transport", {"nextHop": ""}, (["nextHop"], "HOST")),
    ("transport", {"nextHop": "hop.example:x"}, (["nextHop"], "HOST")),
    ("transport", {"nextHop": "smtp://hop.example"}, (["nextHop"], "HOST")),
    ("transport", {"nextHop": "[hop.example]", "lookupMx": True}, (["nextHop"], "DOMAIN")),
    ("transport", {"nextHop": "192.0.2.1", "lookupMx": True}, (["nextHop"], "DOMAIN")),
    ("tlsPolicy", {"destination": "a@far.example"}, (["destination"], "DOMAIN")),
    ("tlsPolicy", {"destination": "[hop.example]:x"}, (["destination"], "HOST")),
    ("tlsPolicy", {"level": "FINGERPRINT"}, (["parameters"], "REQUIRED")),
    ("tlsPolicy", {"level": "FINGERPRINT", "parameters": "match=AB"},
     (["parameters"], "FINGERPRINT")),
    ("tlsPolicy", {"level": "NONE", "parameters": "protocols=>=TLSv1.2"},
     (["parameters"], "UNSUPPORTED")),
    ("tlsPolicy", {"level": "MAY", "parameters": "match=a.example"},
     (["parameters"], "UNSUPPORTED")),
    ("tlsPolicy", {"parameters": "ciphers=high"}, (["parameters"], "UNSUPPORTED")),
    ("tlsPolicy", {"parameters": "protocols=SSLv3"}, (["parameters"], "TLS_PROTOCOLS")),
    ("tlsPolicy", {"parameters": "protocols"}, (["parameters"], "PATTERN")),
    ("tlsPolicy", {"level": "SECURE", "parameters": "match=a_b..c"}, (["parameters"], "HOST")),
    ("tlsPolicy", {"level": "SECURE", "parameters": "match=a\r\nb"}, (["parameters"], "LENGTH")),
    ("tlsPolicy", {"level": "SECURE", "parameters": "x" * 3000}, (["parameters"], "LENGTH")),
    ("forwardingHost", {"hostname": ""}, (["hostname"], "DOMAIN")),
    ("forwardingHost", {"hostname": "a b"}, (["hostname"], "DOMAIN")),
    ("forwardingHost", {"hostname": "10.0.0.0/4"}, (["hostname"], "RANGE")),
]  # fmt: skip


async def test_invalid_input_is_refused_by_field_and_rule(
    root: GraphQLClient, environment: Environment
) -> None:
    for kind, arguments, (path, rule) in INVALID_INPUTS:
        assert await creation_error(root, kind, **arguments) == ("VALIDATION", path, None, rule), (
            kind,
            arguments,
        )
    for table in TABLES:
        assert await select_rows(environment, f"SELECT id FROM {table}") == []  # noqa: S608 - constant names


NORMALIZED_INPUTS: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("transport", {"destination": "FAR.example"}, {"destination": "far.example"}),
    ("transport", {"destination": ".XN--BCHER-KVA.example"}, {"destination": ".bücher.example"}),
    ("transport", {"destination": "Ada@Far.example"}, {"destination": "ada@far.example"}),
    ("transport", {"destination": "/^a.*@far/"}, {"destination": "/^a.*@far/"}),
    ("transport", {"nextHop": "[2001:db8::1]:26"}, {"nextHop": "[2001:db8::1]:26"}),
    ("transport", {"nextHop": "2001:db8::1"}, {"nextHop": "[2001:db8::1]:25"}),
    ("transport", {"nextHop": "[Hop.example]"}, {"nextHop": "[hop.example]:25"}),
    ("transport", {"nextHop": "Hop.example", "lookupMx": True}, {"nextHop": "hop.example"}),
    ("tlsPolicy", {"destination": "[Hop.example]:26"}, {"destination": "[hop.example]:26"}),
    ("tlsPolicy", {"destination": ".far.example"}, {"destination": ".far.example"}),
    ("tlsPolicy", {"parameters": "protocols=>=TLSv1.2:!TLSv1.3"},
     {"parameters": "protocols=>=TLSv1.2:!TLSv1.3"}),
    ("tlsPolicy", {"level": "SECURE", "parameters": " match=A.example:.b.example:nexthop"},
     {"parameters": "match=a.example:.b.example:nexthop"}),
    ("tlsPolicy", {"level": "FINGERPRINT", "parameters": f"match={'AB:' * 31}CD|{'e' * 64}"},
     {"parameters": f"match={'ab' * 31}cd|{'e' * 64}"}),
]  # fmt: skip


async def test_valid_input_is_stored_in_normal_form(root: GraphQLClient) -> None:
    for kind, arguments, expected in NORMALIZED_INPUTS:
        created = await create_item(root, kind, **arguments)
        assert created | expected == created, arguments
        _, errors = await run_mutation(
            root, mutation_document(kind, "Delete"), **refs(kind, created["id"])
        )
        assert errors == []


async def test_destination_has_one_transport_and_one_policy(
    root: GraphQLClient, environment: Environment
) -> None:
    for kind in ("transport", "tlsPolicy"):
        first = await create_item(root, kind)
        second = await create_item(root, kind, destination=".far.example")
        answer = await creation_error(root, kind, destination="Far.Example")
        assert answer == ("CONFLICT", ["destination"], None, None)
        if kind == "transport":
            for ids, destination in (
                ([second["id"]], "far.example"),
                ([first["id"], second["id"]], "x.example"),
            ):
                _, errors = await update_items(root, kind, *ids, destination=destination)
                assert error_summary(errors)[:2] == ("CONFLICT", ["set", "destination"])
            updated, errors = await update_items(root, kind, first["id"], destination="far.example")
            assert (errors, updated[0]["destination"]) == ([], "far.example")
        missing_id = global_ids.encode(kind[0].upper() + kind[1:], environment.new_id())
        list_field = KINDS[kind][0]
        changes: tuple[tuple[str, dict[str, Any]], ...] = (
            ("Update", {"set": {"active": False}}),
            ("Delete", {}),
        )
        for verb, fields in changes:
            for bad_ref in ({"id": missing_id}, {"destination": "no.example"}):
                input_ = {list_field: [{"id": first["id"]}, bad_ref], **fields}
                _, errors = await run_mutation(root, mutation_document(kind, verb), **input_)
                assert error_summary(errors)[:3] == ("NOT_FOUND", [list_field], 1)
        page = (await root(list_document(kind)))[KINDS[kind][0]]
        assert [node["active"] for node in page["nodes"]] == [True, True]
        for arguments, expected_error in (
            ({**refs(kind, first["id"]), "set": {}}, ("VALIDATION", ["set"], None, "REQUIRED")),
            (
                {**refs(kind), "set": {"active": False}},
                ("VALIDATION", [list_field], None, "REQUIRED"),
            ),
        ):
            _, errors = await run_mutation(root, mutation_document(kind, "Update"), **arguments)
            assert error_summary(errors) == expected_error


async def test_tls_policy_and_parameters_must_match(root: GraphQLClient) -> None:
    policy = await create_item(root, "tlsPolicy", level="SECURE", parameters="match=a.example")
    assert policy["updatedAt"] is None
    _, errors = await update_items(root, "tlsPolicy", policy["id"], level="MAY")
    assert error_summary(errors) == ("VALIDATION", ["set", "parameters"], None, "UNSUPPORTED")
    updated, errors = await update_items(
        root, "tlsPolicy", policy["id"], level="MAY", parameters=None
    )
    assert (errors, updated[0]["level"], updated[0]["parameters"]) == ([], "MAY", None)
    assert updated[0]["updatedAt"] is not None


@pytest.mark.usefixtures("ada")
async def test_deleted_relay_host_is_removed_from_domains(
    root: GraphQLClient, environment: Environment
) -> None:
    relay = await create_item(root, "relayHost")
    document = "{ domains { nodes { name relayHost { host } } } }"
    await create_domain(root, "new.example", relayHost={"id": relay["id"]})
    answer, errors = await run_mutation(
        root,
        DOMAIN_UPDATE,
        domains=[{"name": "example.org"}],
        set={"relayHost": {"id": relay["id"]}},
    )
    assert errors == []
    nodes = (await root(document))["domains"]["nodes"]
    assert [node["relayHost"] for node in nodes] == [{"host": "relay.example"}] * 2
    page = (await root(list_document("relayHost")))["relayHosts"]["nodes"]
    assert page[0]["usedByDomains"]["nodes"] == [{"name": "example.org"}, {"name": "new.example"}]
    for name in ("new.example",):
        _, errors = await run_mutation(
            root, DOMAIN_UPDATE, domains=[{"name": name}], set={"relayHost": None}
        )
        assert errors == []
    missing_id = global_ids.encode("RelayHost", environment.new_id())
    for invalid_id, code in (
        (missing_id, "NOT_FOUND"),
        ("nonsense", "VALIDATION"),
        (answer["domains"][0]["id"], "VALIDATION"),
    ):
        arguments = {"domains": [{"name": "example.org"}], "set": {"relayHost": {"id": invalid_id}}}
        _, errors = await run_mutation(root, DOMAIN_UPDATE, **arguments)
        assert (errors[0]["code"], errors[0]["path"][:2]) == (code, ["set", "relayHost"])
    domain_id = await load_domain_id(environment, "example.org")
    _, errors = await run_mutation(
        root, mutation_document("relayHost", "Delete"), **refs("relayHost", relay["id"])
    )
    assert errors == []
    nodes = (await root(document))["domains"]["nodes"]
    assert [node["relayHost"] for node in nodes] == [None, None]
    assert (await load_journal_entries(environment, domain_id))[-1] == (
        EventType.DOMAIN_UPDATED,
        [domain_id],
    )
    assert await select_rows(environment, "SELECT relay_host_id FROM domains") == [(None,), (None,)]


@pytest.mark.parametrize("kind", KINDS)
async def test_list_is_paged_from_both_ends(kind: str, root: GraphQLClient) -> None:
    field, name = {
        "relayHost": ("host", "r{}.example"),
        "transport": ("destination", "d{}.example"),
        "tlsPolicy": ("destination", "d{}.example"),
        "forwardingHost": ("hostname", "192.0.2.{}"),
    }[kind]
    created_ids = [
        (await create_item(root, kind, **{field: name.format(n)}))["id"] for n in range(5)
    ]
    seen, after = [], None
    while True:
        page = (await root(list_document(kind), first=2, after=after))[KINDS[kind][0]]
        seen += [node["id"] for node in page["nodes"]]
        if not page["pageInfo"]["hasNextPage"]:
            break
        after = page["pageInfo"]["endCursor"]
    assert (seen, page["totalCount"]) == (created_ids, 5)
    page = (await root(list_document(kind), last=2))[KINDS[kind][0]]
    assert [node["id"] for node in page["nodes"]] == created_ids[-2:]


async def test_list_needs_a_constant_number_of_statements(
    root: GraphQLClient, statements: list[str]
) -> None:
    async def cost(document: str) -> int:
        del statements[:]
        await root(document)
        return len(statements)

    relays = "{ relayHosts(first: 50) { nodes { host usedByDomains { nodes { name } } } } }"
    domains = """{ domains(first: 50) { nodes { name
      relayHost { host usedByDomains { totalCount nodes { id } } } } } }"""
    relay = await create_item(root, "relayHost")
    await create_domain(root, "d0.example", relayHost={"id": relay["id"]})
    expected_counts = [await cost(document) for document in (relays, domains)]
    for n in range(1, 20):
        other_relay = await create_item(root, "relayHost", host=f"r{n}.example")
        await create_domain(root, f"d{n}.example", relayHost={"id": other_relay["id"]})
    assert [await cost(document) for document in (relays, domains)] == expected_counts


async def test_other_users_cannot_read_or_change_routes(
    root: GraphQLClient, ada: GraphQLClient, http: httpx.AsyncClient, environment: Environment
) -> None:
    created_ids = {kind: (await create_item(root, kind))["id"] for kind in KINDS}
    await run_mutation(
        root,
        DOMAIN_UPDATE,
        domains=[{"name": "example.org"}],
        set={"relayHost": {"id": created_ids["relayHost"]}},
    )
    before = {name: await select_rows(environment, f"SELECT * FROM {name}") for name in TABLES}  # noqa: S608
    domain_admin = await make_domain_admin(environment, http, "dan")
    for client in (ada, domain_admin):
        for kind, (_, _, arguments) in KINDS.items():
            answer = await client.execute(list_document(kind))
            assert answer["errors"][0]["extensions"]["code"] == "FORBIDDEN"
            node = await client("query ($id: ID!) { node(id: $id) { id } }", id=created_ids[kind])
            assert node == {"node": None}
            calls: dict[str, dict[str, Any]] = {
                "Create": arguments,
                "Delete": refs(kind, created_ids[kind]),
            }
            if kind != "forwardingHost":
                calls["Update"] = {**refs(kind, created_ids[kind]), "set": {"active": False}}
            for verb, input_ in calls.items():
                _, errors = await run_mutation(client, mutation_document(kind, verb), **input_)
                assert error_summary(errors)[0] == "FORBIDDEN"
    domains = await domain_admin("{ domains { nodes { name relayHost { host } } } }")
    assert [node["relayHost"] for node in domains["domains"]["nodes"]] == [None]
    domain_input = {"domains": [{"name": "example.org"}], "set": {"relayHost": None}}
    _, errors = await run_mutation(domain_admin, DOMAIN_UPDATE, **domain_input)
    assert error_summary(errors)[0] == "FORBIDDEN"
    for name, rows_before in before.items():
        assert await select_rows(environment, f"SELECT * FROM {name}") == rows_before  # noqa: S608 - constant names


async def test_forwarding_hosts_are_deleted_by_ids_and_addresses(root: GraphQLClient) -> None:
    names = ("192.0.2.1", "192.0.2.128/25", "2001:DB8::/48", "203.0.113.1")
    hosts = [await create_item(root, "forwardingHost", hostname=name) for name in names]
    assert [host["host"] for host in hosts] == [
        "192.0.2.1", "192.0.2.128/25", "2001:db8::/48", "203.0.113.1",
    ]  # fmt: skip
    delete = mutation_document("forwardingHost", "Delete")
    for refs_, expected_error in (
        ([], ("VALIDATION", ["forwardingHosts"], None, "REQUIRED")),
        (
            [{"host": "192.0.2.1"}, {"host": "192.0.2.2"}],
            ("NOT_FOUND", ["forwardingHosts"], 1, "192.0.2.2/32"),
        ),
    ):
        _, errors = await run_mutation(root, delete, forwardingHosts=refs_)
        assert error_summary(errors) == expected_error
    networks = ("192.0.2.1", "192.0.2.200/25", "2001:db8::/48")
    references = [{"id": hosts[0]["id"]}, *({"host": network} for network in networks)]
    answer, errors = await run_mutation(root, delete, forwardingHosts=references)
    assert errors == []
    assert sorted(answer["deletedIds"]) == sorted(host["id"] for host in hosts[:3])
    page = (await root(list_document("forwardingHost")))["forwardingHosts"]
    assert [node["host"] for node in page["nodes"]] == ["203.0.113.1"]


async def test_destination_names_a_record_that_the_request_created(root: GraphQLClient) -> None:
    document = """mutation @atomic {
      transportCreate(input: {destination: "far.example", nextHop: "hop.example"}) {
        transport { destination } errors { code } }
      transportUpdate(input: {transports: [{destination: "FAR.example"}], set: {active: false}}) {
        transports { active } errors { code } }
      tlsPolicyCreate(input: {destination: ".far.example", level: MAY}) { errors { code } }
      tlsPolicyDelete(input: {tlsPolicies: [{destination: ".far.example"}]}) {
        deletedIds errors { code } } }"""
    answer = await root(document)
    assert [payload["errors"] for payload in answer.values()] == [[]] * 4
    assert answer["transportUpdate"]["transports"] == [{"active": False}]
    assert len(answer["tlsPolicyDelete"]["deletedIds"]) == 1
