"""Relay hosts, transports, TLS policies and forwarding hosts: what may be said of them, by whom."""

from typing import Any

import httpx
import pytest
from sqlalchemy import select
from sqlmodel import col

from graph.types import global_ids
from mail.routing import password_contexts
from models.admin.admin_log import AdminLogEntry
from models.events.journal import PLATFORM, ChangeKind
from models.routing.tables import RelayHost
from models.runtime.environment import Environment
from models.runtime.secret_box import SecretBox, generate_key
from resolvers.admin import secret_rotation
from tests.conftest import Client
from tests.support.accounts.domain_admins import make_domain_admin
from tests.support.operations.domain_operations import ERRORS, UPDATE, done, key_of, made, told
from tests.support.stores.counter_check import journal, rows

RELAY = "id host port username hasPassword tls active usedByDomains { name }"
TRANSPORT = "id destination nextHop lookupMx username hasPassword active"
POLICY = "id destination policy parameters active updatedAt"
FORWARDER = "id host source filterSpam"
KINDS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "relayHost": ("relayHosts", RELAY, {"host": "relay.example"}),
    "transport": (
        "transports",
        TRANSPORT,
        {"destination": "far.example", "nextHop": "hop.example"},
    ),
    "tlsPolicy": ("tlsPolicies", POLICY, {"destination": "far.example", "policy": "ENCRYPT"}),
    "forwardingHost": ("forwardingHosts", FORWARDER, {"hostname": "192.0.2.1"}),
}
TABLES = ("relay_hosts", "transports", "tls_policies", "forwarding_hosts")
SECRET = "a password of ours"  # noqa: S105 - a test's


def _mutation(kind: str, verb: str) -> str:
    many, shown, _ = KINDS[kind]
    name = f"{kind}{verb}"
    payload = f"{kind} {{ {shown} }} {many} {{ {shown} }}"
    if kind == "forwardingHost":
        payload = f"hosts {{ {shown} }}"
    type_ = f"{name[0].upper()}{name[1:]}Input"
    if verb == "Delete":
        payload = "deletedIds"
        type_ = type_ if kind == "forwardingHost" else "IdsInput"
    return f"""mutation ($input: {type_}!) {{ {name}(input: $input) {{
      {payload} journalCursor {ERRORS} }} }}"""


def _list(kind: str) -> str:
    many, shown, _ = KINDS[kind]
    return f"""query ($first: Int, $after: String, $last: Int, $before: String) {{
      {many}(first: $first, after: $after, last: $last, before: $before) {{
        totalCount nodes {{ {shown} }} pageInfo {{ endCursor hasNextPage }} }} }}"""


async def create(client: Client, kind: str, **given: Any) -> Any:
    answer, errors = await done(client, _mutation(kind, "Create"), **{**KINDS[kind][2], **given})
    assert errors == [], errors
    return answer["hosts"][0] if kind == "forwardingHost" else answer[kind]


async def change(client: Client, kind: str, *keys: str, **given: Any) -> tuple[Any, list[Any]]:
    answer, errors = await done(client, _mutation(kind, "Update"), ids=list(keys), **given)
    return answer[KINDS[kind][0]], errors


async def refused(client: Client, kind: str, **given: Any) -> tuple[Any, ...]:
    whole = {**KINDS[kind][2], **given}
    _, errors = await done(client, _mutation(kind, "Create"), **whole)
    return told(errors)


async def test_relay_hosts_are_made_changed_listed_and_deleted(
    root: Client, world: Environment
) -> None:
    one = await create(
        root, "relayHost", host=" Smtp.Relay.EXAMPLE:587 ", username="us", password=SECRET
    )
    key = global_ids.decode("RelayHost", one["id"])
    assert one | {"id": None} == {
        "id": None, "host": "smtp.relay.example", "port": 587, "username": "us",
        "hasPassword": True, "tls": True, "active": True, "usedByDomains": [],
    }  # fmt: skip
    assert (await journal(world, PLATFORM))[-1] == (ChangeKind.RELAY_HOST_CHANGED, [key])
    found, errors = await change(root, "relayHost", one["id"], active=False, username="them")
    assert errors == []
    assert (found[0]["active"], found[0]["username"], found[0]["hasPassword"]) == (
        False, "them", True,
    )  # fmt: skip
    found, errors = await change(root, "relayHost", one["id"], username=None)
    assert (errors, found[0]["username"], found[0]["hasPassword"]) == ([], None, False)
    page = (await root(_list("relayHost")))["relayHosts"]
    assert (page["totalCount"], page["nodes"]) == (1, found)
    node = await root(
        "query ($id: ID!) { node(id: $id) { ... on RelayHost { host } } }", id=one["id"]
    )
    assert node == {"node": {"host": "smtp.relay.example"}}
    answer, errors = await done(root, _mutation("relayHost", "Delete"), ids=[one["id"]])
    assert (answer["deletedIds"], errors) == ([one["id"]], [])
    assert (await root(_list("relayHost")))["relayHosts"]["nodes"] == []


HOSTS = [
    ("relay", ("relay", 25)),
    ("[2001:DB8::25]:2525", ("2001:db8::25", 2525)),
    ("2001:db8::25", ("2001:db8::25", 25)),
    ("192.0.2.1:465", ("192.0.2.1", 465)),
    ("bücher.example", ("xn--bcher-kva.example", 25)),
    ("[smtp.example]:26", ("smtp.example", 26)),
]


@pytest.mark.parametrize(("said", "kept"), HOSTS)
async def test_hosts_have_many_spellings(said: str, kept: tuple[str, int], root: Client) -> None:
    one = await create(root, "relayHost", host=said)
    assert (one["host"], one["port"]) == kept


WRONG: list[tuple[str, dict[str, Any], tuple[Any, ...]]] = [
    ("relayHost", {"host": ""}, (["host"], "host")),
    ("relayHost", {"host": "a..b"}, (["host"], "host")),
    ("relayHost", {"host": "-a.example"}, (["host"], "host")),
    ("relayHost", {"host": "a b"}, (["host"], "host")),
    ("relayHost", {"host": "a.example\r\nQUIT"}, (["host"], "host")),
    ("relayHost", {"host": "x" * 300}, (["host"], "host")),
    ("relayHost", {"host": "1.2.3"}, (["host"], "host")),
    ("relayHost", {"host": "relay.example:0"}, (["host"], "range")),
    ("relayHost", {"host": "relay.example:99999"}, (["host"], "range")),
    ("relayHost", {"port": 65536}, (["port"], "range")),
    ("relayHost", {"host": "relay.example:26", "port": 27}, (["port"], "exclusive")),
    ("relayHost", {"username": "us"}, (["password"], "requires")),
    ("relayHost", {"password": SECRET}, (["username"], "requires")),
    ("relayHost", {"username": "u\ns", "password": SECRET}, (["username"], "length")),
    ("relayHost", {"username": "us", "password": "a\r\nb"}, (["password"], "length")),
    ("relayHost", {"username": "us", "password": "x" * 9000}, (["password"], "length")),
    ("transport", {"destination": ""}, (["destination"], "domain")),
    ("transport", {"destination": "."}, (["destination"], "domain")),
    ("transport", {"destination": "@far.example"}, (["destination"], "address")),
    ("transport", {"destination": "a\r\n@far.example"}, (["destination"], "address")),
    ("transport", {"destination": "192.0.2.1"}, (["destination"], "domain")),
    ("transport", {"destination": "/(/"}, (["destination"], "pattern")),
    ("transport", {"destination": "//"}, (["destination"], "pattern")),
    ("transport", {"destination": "/a"}, (["destination"], "pattern")),
    ("transport", {"destination": f"/{'a' * 300}/"}, (["destination"], "pattern")),
    ("transport", {"destination": "/(a+)+(?=b)/"}, (["destination"], "pattern")),
    ("transport", {"destination": "/((a{64}){64}){64}/"}, (["destination"], "pattern")),
    ("transport", {"nextHop": ""}, (["nextHop"], "host")),
    ("transport", {"nextHop": "hop.example:x"}, (["nextHop"], "host")),
    ("transport", {"nextHop": "smtp://hop.example"}, (["nextHop"], "host")),
    ("transport", {"nextHop": "[hop.example]", "lookupMx": True}, (["nextHop"], "domain")),
    ("transport", {"nextHop": "192.0.2.1", "lookupMx": True}, (["nextHop"], "domain")),
    ("tlsPolicy", {"destination": "a@far.example"}, (["destination"], "domain")),
    ("tlsPolicy", {"destination": "[hop.example]:x"}, (["destination"], "host")),
    ("tlsPolicy", {"policy": "FINGERPRINT"}, (["parameters"], "required")),
    ("tlsPolicy", {"policy": "FINGERPRINT", "parameters": "match=AB"},
     (["parameters"], "fingerprint")),
    ("tlsPolicy", {"policy": "NONE", "parameters": "protocols=>=TLSv1.2"},
     (["parameters"], "unsupported")),
    ("tlsPolicy", {"policy": "MAY", "parameters": "match=a.example"},
     (["parameters"], "unsupported")),
    ("tlsPolicy", {"parameters": "ciphers=high"}, (["parameters"], "unsupported")),
    ("tlsPolicy", {"parameters": "protocols=SSLv3"}, (["parameters"], "protocols")),
    ("tlsPolicy", {"parameters": "protocols"}, (["parameters"], "pattern")),
    ("tlsPolicy", {"policy": "SECURE", "parameters": "match=a_b..c"}, (["parameters"], "host")),
    ("tlsPolicy", {"policy": "SECURE", "parameters": "match=a\r\nb"}, (["parameters"], "length")),
    ("tlsPolicy", {"policy": "SECURE", "parameters": "x" * 3000}, (["parameters"], "length")),
    ("forwardingHost", {"hostname": ""}, (["hostname"], "domain")),
    ("forwardingHost", {"hostname": "a b"}, (["hostname"], "domain")),
    ("forwardingHost", {"hostname": "10.0.0.0/4"}, (["hostname"], "range")),
]  # fmt: skip


async def test_what_cannot_be_is_refused_by_field_and_rule(
    root: Client, world: Environment
) -> None:
    for kind, given, (path, rule) in WRONG:
        assert await refused(root, kind, **given) == ("VALIDATION", path, None, rule), (kind, given)
    for table in TABLES:
        assert await rows(world, f"SELECT id FROM {table}") == []  # noqa: S608 - our own words


FORMS: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
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
    ("tlsPolicy", {"policy": "SECURE", "parameters": " match=A.example:.b.example:nexthop"},
     {"parameters": "match=a.example:.b.example:nexthop"}),
    ("tlsPolicy", {"policy": "FINGERPRINT", "parameters": f"match={'AB:' * 31}CD|{'e' * 64}"},
     {"parameters": f"match={'ab' * 31}cd|{'e' * 64}"}),
]  # fmt: skip


async def test_what_can_be_is_kept_in_one_way_of_writing(root: Client) -> None:
    for kind, given, kept in FORMS:
        one = await create(root, kind, **given)
        assert one | kept == one, given
        _, errors = await done(root, _mutation(kind, "Delete"), ids=[one["id"]])
        assert errors == []


async def test_a_destination_has_one_way_and_one_policy(root: Client, world: Environment) -> None:
    for kind in ("transport", "tlsPolicy"):
        first = await create(root, kind)
        second = await create(root, kind, destination=".far.example")
        answer = await refused(root, kind, destination="Far.Example")
        assert answer == ("CONFLICT", ["destination"], None, None)
        if kind == "transport":
            for keys, name in (
                ([second["id"]], "far.example"),
                ([first["id"], second["id"]], "x.example"),
            ):
                _, errors = await change(root, kind, *keys, destination=name)
                assert told(errors)[:2] == ("CONFLICT", ["destination"])
            found, errors = await change(root, kind, first["id"], destination="far.example")
            assert (errors, found[0]["destination"]) == ([], "far.example")
        missing = global_ids.encode(kind[0].upper() + kind[1:], world.new_id())
        for document, more in (("Update", {"active": False}), ("Delete", {})):
            both = {"ids": [first["id"], missing], **more}
            _, errors = await done(root, _mutation(kind, document), **both)
            assert told(errors)[:3] == ("NOT_FOUND", ["ids"], 1)
        page = (await root(_list(kind)))[KINDS[kind][0]]
        assert [node["active"] for node in page["nodes"]] == [True, True]
        for given, wanted in (
            ({"ids": [first["id"]]}, ("VALIDATION", [], None, "required")),
            ({"ids": [], "active": False}, ("VALIDATION", ["ids"], None, "required")),
        ):
            _, errors = await done(root, _mutation(kind, "Update"), **given)
            assert told(errors) == wanted


async def test_levels_and_parameters_stay_together(root: Client) -> None:
    one = await create(root, "tlsPolicy", policy="SECURE", parameters="match=a.example")
    assert one["updatedAt"] is None
    _, errors = await change(root, "tlsPolicy", one["id"], policy="MAY")
    assert told(errors) == ("VALIDATION", ["parameters"], 0, "unsupported")
    found, errors = await change(root, "tlsPolicy", one["id"], policy="MAY", parameters=None)
    assert (errors, found[0]["policy"], found[0]["parameters"]) == ([], "MAY", None)
    assert found[0]["updatedAt"] is not None


async def sealed(world: Environment, key: str) -> str | None:
    asked = select(col(RelayHost.secret)).where(
        col(RelayHost.id) == global_ids.decode("RelayHost", key)
    )
    (row,) = await world.database.read(asked)
    place = password_contexts.relay_host_context(global_ids.decode("RelayHost", key))
    return world.secret_box.decrypt(row.secret, place) if row.secret else None


async def test_a_password_is_sealed_and_told_to_no_other_server(
    root: Client, world: Environment
) -> None:
    access = {"username": "us", "password": SECRET}
    one, two = [await create(root, "relayHost", **access) for _ in range(2)]
    assert await sealed(world, one["id"]) == SECRET
    for given in ({"host": "other.example"}, {"port": 26}, {"host": "relay.example:26"}):
        _, errors = await change(root, "relayHost", one["id"], **given)
        assert told(errors) == ("VALIDATION", ["password"], 0, "required"), given
    _, errors = await change(root, "relayHost", one["id"], two["id"], active=False, tls=True)
    assert errors == []
    given = {"host": "other.example", "password": "new"}
    found, errors = await change(root, "relayHost", one["id"], **given)
    assert (errors, found[0]["host"], await sealed(world, one["id"])) == (
        [],
        "other.example",
        "new",
    )
    way = await create(root, "transport", **access)
    moves: list[dict[str, Any]] = [{"nextHop": "other.example"}, {"lookupMx": True}]
    for move in moves:
        _, errors = await change(root, "transport", way["id"], **move)
        assert told(errors) == ("VALIDATION", ["password"], 0, "required"), move
    _, errors = await change(root, "transport", way["id"], destination="b.example")
    assert errors == []
    asked = select(col(AdminLogEntry.before), col(AdminLogEntry.after))
    logged = str([tuple(row) for row in await world.database.read(asked)])
    assert SECRET not in logged
    assert "'password': '(hidden)'" in logged
    stored = str(await rows(world, "SELECT * FROM relay_hosts, transports"))
    assert SECRET not in stored


async def test_passwords_are_sealed_anew_with_the_newest_key(
    root: Client, world: Environment
) -> None:
    one = await create(root, "relayHost", username="us", password=SECRET)
    await create(root, "transport", username="us", password=SECRET)
    name, key = generate_key()
    object.__setattr__(world, "secret_box", SecretBox({**world.secret_box.keys, name: key}))
    came = await secret_rotation.reencrypt_all(world)
    assert (came.reencrypted_count, came.failed_contexts) == (2, [])
    assert await sealed(world, one["id"]) == SECRET


@pytest.mark.usefixtures("ada")
async def test_domains_name_a_relay_host_and_lose_it_with_it(
    root: Client, world: Environment
) -> None:
    one = await create(root, "relayHost")
    document = "{ domains { nodes { name relayHost { host } } } }"
    await made(root, "new.example", relayHost=one["id"])
    answer, errors = await done(
        root, UPDATE, domains=[{"name": "example.org"}], set={"relayHost": one["id"]}
    )
    assert errors == []
    nodes = (await root(document))["domains"]["nodes"]
    assert [node["relayHost"] for node in nodes] == [{"host": "relay.example"}] * 2
    page = (await root(_list("relayHost")))["relayHosts"]["nodes"]
    assert page[0]["usedByDomains"] == [{"name": "example.org"}, {"name": "new.example"}]
    for name in ("new.example",):
        _, errors = await done(root, UPDATE, domains=[{"name": name}], set={"relayHost": None})
        assert errors == []
    missing = global_ids.encode("RelayHost", world.new_id())
    for wrong, code in (
        (missing, "NOT_FOUND"),
        ("nonsense", "VALIDATION"),
        (answer["domains"][0]["id"], "VALIDATION"),
    ):
        given = {"domains": [{"name": "example.org"}], "set": {"relayHost": wrong}}
        _, errors = await done(root, UPDATE, **given)
        assert told(errors)[:2] == (code, ["set", "relayHost"])
    key = await key_of(world, "example.org")
    _, errors = await done(root, _mutation("relayHost", "Delete"), ids=[one["id"]])
    assert errors == []
    nodes = (await root(document))["domains"]["nodes"]
    assert [node["relayHost"] for node in nodes] == [None, None]
    assert (await journal(world, key))[-1] == (ChangeKind.DOMAIN_CHANGED, [key])
    assert await rows(world, "SELECT relay_host_id FROM domains") == [(None,), (None,)]


@pytest.mark.parametrize("kind", KINDS)
async def test_lists_are_paged_from_both_ends(kind: str, root: Client) -> None:
    field, name = {
        "relayHost": ("host", "r{}.example"),
        "transport": ("destination", "d{}.example"),
        "tlsPolicy": ("destination", "d{}.example"),
        "forwardingHost": ("hostname", "192.0.2.{}"),
    }[kind]
    made_ = [(await create(root, kind, **{field: name.format(n)}))["id"] for n in range(5)]
    seen, after = [], None
    while True:
        page = (await root(_list(kind), first=2, after=after))[KINDS[kind][0]]
        seen += [node["id"] for node in page["nodes"]]
        if not page["pageInfo"]["hasNextPage"]:
            break
        after = page["pageInfo"]["endCursor"]
    assert (seen, page["totalCount"]) == (made_, 5)
    page = (await root(_list(kind), last=2))[KINDS[kind][0]]
    assert [node["id"] for node in page["nodes"]] == made_[-2:]


async def test_a_list_costs_the_same_however_long(root: Client, statements: list[str]) -> None:
    async def cost(document: str) -> int:
        del statements[:]
        await root(document)
        return len(statements)

    relays = "{ relayHosts(first: 50) { nodes { host usedByDomains { name } } } }"
    domains = "{ domains(first: 50) { nodes { name relayHost { host usedByDomains { id } } } } }"
    one = await create(root, "relayHost")
    await made(root, "d0.example", relayHost=one["id"])
    before = [await cost(document) for document in (relays, domains)]
    for n in range(1, 20):
        another = await create(root, "relayHost", host=f"r{n}.example")
        await made(root, f"d{n}.example", relayHost=another["id"])
    assert [await cost(document) for document in (relays, domains)] == before


async def test_nobody_else_sees_or_changes_anything(
    root: Client, ada: Client, http: httpx.AsyncClient, world: Environment
) -> None:
    made_ = {kind: (await create(root, kind))["id"] for kind in KINDS}
    await done(
        root, UPDATE, domains=[{"name": "example.org"}], set={"relayHost": made_["relayHost"]}
    )
    before = {name: await rows(world, f"SELECT * FROM {name}") for name in TABLES}  # noqa: S608
    admin = await make_domain_admin(world, http, "dan")
    for client in (ada, admin):
        for kind, (_, _, given) in KINDS.items():
            told_ = await client.raw(_list(kind))
            assert told_["errors"][0]["extensions"]["code"] == "FORBIDDEN"
            node = await client("query ($id: ID!) { node(id: $id) { id } }", id=made_[kind])
            assert node == {"node": None}
            calls: dict[str, dict[str, Any]] = {"Create": given, "Delete": {"ids": [made_[kind]]}}
            if kind != "forwardingHost":
                calls["Update"] = {"ids": [made_[kind]], "active": False}
            for verb, input_ in calls.items():
                _, errors = await done(client, _mutation(kind, verb), **input_)
                assert told(errors)[0] == "FORBIDDEN"
    found = await admin("{ domains { nodes { name relayHost { host } } } }")
    assert [node["relayHost"] for node in found["domains"]["nodes"]] == [None]
    theirs = {"domains": [{"name": "example.org"}], "set": {"relayHost": None}}
    _, errors = await done(admin, UPDATE, **theirs)
    assert told(errors)[0] == "FORBIDDEN"
    for name, old in before.items():
        assert await rows(world, f"SELECT * FROM {name}") == old  # noqa: S608 - our own words


async def test_forwarding_hosts_are_deleted_by_ids_and_addresses(root: Client) -> None:
    names = ("192.0.2.1", "192.0.2.128/25", "2001:DB8::/48", "203.0.113.1")
    made_ = [await create(root, "forwardingHost", hostname=name) for name in names]
    assert [one["host"] for one in made_] == [
        "192.0.2.1", "192.0.2.128/25", "2001:db8::/48", "203.0.113.1",
    ]  # fmt: skip
    delete = _mutation("forwardingHost", "Delete")
    for given, wanted in (
        ({}, ("VALIDATION", ["ids"], None, "required")),
        ({"hosts": ["192.0.2.1", "192.0.2.2"]}, ("NOT_FOUND", ["hosts"], 1, "192.0.2.2")),
    ):
        _, errors = await done(root, delete, **given)
        assert told(errors) == wanted
    given = {"ids": [made_[0]["id"]], "hosts": ["192.0.2.1", "192.0.2.200/25", "2001:db8::/48"]}
    answer, errors = await done(root, delete, **given)
    assert errors == []
    assert sorted(answer["deletedIds"]) == sorted(one["id"] for one in made_[:3])
    page = (await root(_list("forwardingHost")))["forwardingHosts"]
    assert [node["host"] for node in page["nodes"]] == ["203.0.113.1"]
