"""Keys that domains sign with: made, brought along, copied, rotated and deleted; and by whom."""

import base64
import json
from datetime import timedelta
from typing import Any

import httpx
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.rsa import generate_private_key
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from graph.types import global_ids
from mail.authentication import private_keys
from mail.authentication.private_keys import Algorithm
from models.events.journal import PLATFORM, ChangeKind
from models.runtime.environment import Environment
from resolvers.admin import secret_rotation
from resolvers.domains import dkim_rotation
from tests.conftest import Client, Clock
from tests.support.accounts.domain_admins import make_domain_admin
from tests.support.mail_servers.dns_zone_server import Zone, asking, quoted, zone
from tests.support.operations import dkim_key_operations
from tests.support.operations.dkim_key_operations import (
    ACTIVATE,
    COPY,
    LIST,
    ONE,
    REMOVE,
    ROTATE,
    SET,
)
from tests.support.operations.domain_operations import (
    ALIAS,
    DELETE,
    RENAME,
    UNALIAS,
    done,
    key_of,
    made,
    of,
    told,
)
from tests.support.stores import counter_check

NODE = "query ($id: ID!) { node(id: $id) { ... on DkimKey { selector } } }"
STATES = "{ dkimKeys { nodes { selector dnsState } } }"
RECORDS = """query ($check: Boolean!) { domain(by: {name: "example.org"}) {
  dkimKey { selector } dnsRecords(check: $check) { type name value purpose state } } }"""
pytestmark = pytest.mark.usefixtures("ada")  # with whom there is example.org


async def listed(client: Client, **given: Any) -> list[Any]:
    page: list[Any] = (await client(LIST, **given))["dkimKeys"]["nodes"]
    return page


async def selectors(client: Client) -> dict[str, str]:
    """The states of all keys that are seen, by selector."""
    return {one["selector"]: one["state"] for one in await listed(client)}


async def in_use(client: Client, domain: str) -> Any:
    return (await client(ONE, by={"domain": domain}))["dkimKey"]


def pkcs1(bits: int = 2048) -> str:
    key = generate_private_key(65537, bits)
    how = Encoding.PEM, PrivateFormat.TraditionalOpenSSL, NoEncryption()
    return key.private_bytes(*how).decode()


async def test_a_key_is_made_shown_listed_and_deleted(root: Client, world: Environment) -> None:
    home = await key_of(world, "example.org")
    before = [await counter_check.reached(world, stream) for stream in (PLATFORM, home)]
    one = await dkim_key_operations.key(root, selector=" S1.Mail ", description=" Ours ")
    assert (one["domain"], one["selector"], one["description"]) == (
        "example.org", "s1.mail", "Ours"
    )  # fmt: skip
    assert (one["algorithm"], one["keySize"], one["state"]) == ("RSA", 2048, "ACTIVE")
    assert one["dnsTxt"]["name"] == "s1.mail._domainkey.example.org"
    assert one["dnsTxt"]["value"] == f"v=DKIM1; k=rsa; p={one['publicKey']}"
    assert (len(one["fingerprint"]), len(one["fingerprintSha256"])) == (59, 95)
    assert one["activatedAt"] == one["createdAt"]
    assert await listed(root) == [one]
    assert await in_use(root, "Example.ORG") == one
    assert (await root(ONE, by={"id": one["id"]}))["dkimKey"] == one
    assert (await root(NODE, id=one["id"]))["node"] == {"selector": "s1.mail"}
    key = global_ids.decode("DkimKey", one["id"])
    answer, errors = await done(root, REMOVE, ids=[one["id"]])
    assert (answer["deletedIds"], errors) == ([one["id"]], [])
    assert await in_use(root, "example.org") is None
    assert await root(NODE, id=one["id"]) == {"node": None}
    for stream, since in zip((PLATFORM, home), before, strict=True):
        assert await counter_check.journal(world, stream, since) == [
            (ChangeKind.DKIM_CHANGED, [key]),
            (ChangeKind.DKIM_CHANGED, [key]),
        ]


@pytest.mark.parametrize("how", ["pkcs1", "pkcs8", "ed25519", "raw"])
async def test_a_key_is_brought_along(root: Client, how: str) -> None:
    seed = bytes(range(32))
    edwards = private_keys.DkimPrivateKey(Ed25519PrivateKey.from_private_bytes(seed))
    text = {
        "pkcs1": pkcs1(),
        "pkcs8": private_keys.generate_key(Algorithm.RSA).to_pem(),
        "ed25519": edwards.to_pem(),
        "raw": base64.b64encode(seed).decode(),
    }[how]
    one = await dkim_key_operations.key(root, privateKey=text)
    assert one["publicKey"] == private_keys.parse_key(text).public_key_text()
    if how in ("ed25519", "raw"):
        assert (one["algorithm"], one["keySize"]) == ("ED25519", None)
        assert len(base64.b64decode(one["publicKey"])) == 32
        assert one["dnsTxt"]["value"].startswith("v=DKIM1; k=ed25519; p=")
        again = (await root(ONE, by={"id": one["id"]}))["dkimKey"]
        assert again == one  # read later it is the bare key as well


async def test_a_short_key_is_taken_with_a_warning(root: Client) -> None:
    answer, errors = await done(root, SET, domains=["example.org"], keySize=1024)
    assert errors == []
    assert [one["code"] for one in answer["warnings"]] == ["WEAK_KEY"]
    assert answer["keys"][0]["keySize"] == 1024


REFUSED: list[tuple[dict[str, Any], tuple[Any, ...]]] = [
    ({"domains": []}, ("VALIDATION", ["domains"], None, "max")),
    ({"domains": ["example.org"] * 51}, ("VALIDATION", ["domains"], None, "max")),
    ({"domains": ["far.example"]}, ("NOT_FOUND", ["domains"], 0, "far.example")),
    ({"domains": ["*", "a\u0001b"]}, ("NOT_FOUND", ["domains"], 1, "a\u0001b")),
    ({"selector": ""}, ("VALIDATION", ["selector"], None, "selector")),
    ({"selector": "a b"}, ("VALIDATION", ["selector"], None, "selector")),
    ({"selector": "a\r\nb"}, ("VALIDATION", ["selector"], None, "selector")),
    ({"selector": "-a"}, ("VALIDATION", ["selector"], None, "selector")),
    ({"selector": "a..b"}, ("VALIDATION", ["selector"], None, "selector")),
    ({"selector": "ü"}, ("VALIDATION", ["selector"], None, "selector")),
    ({"selector": "a" * 64}, ("VALIDATION", ["selector"], None, "selector")),
    ({"selector": ".".join(["a" * 60] * 4)}, ("VALIDATION", ["selector"], 0, "selector")),
    ({"description": "x" * 1001}, ("VALIDATION", ["description"], None, "length")),
    ({"keySize": 512}, ("VALIDATION", ["keySize"], None, "keySize")),
    ({"keySize": 1 << 30}, ("VALIDATION", ["keySize"], None, "keySize")),
    ({"privateKey": ""}, ("VALIDATION", ["privateKey"], None, "key")),
    ({"privateKey": "junk"}, ("VALIDATION", ["privateKey"], None, "key")),
    ({"privateKey": "A" * 44}, ("VALIDATION", ["privateKey"], None, "key")),
    ({"privateKey": "A" * 100_000}, ("VALIDATION", ["privateKey"], None, "key")),
    ({"privateKey": "-----BEGIN PRIVATE KEY-----\nx"}, ("VALIDATION", ["privateKey"], None, "key")),
]


@pytest.mark.parametrize(("given", "refusal"), REFUSED)
async def test_what_makes_no_key_is_refused(
    root: Client, given: dict[str, Any], refusal: tuple[Any, ...]
) -> None:
    _, errors = await done(root, SET, **{"domains": ["example.org"], **given})
    assert told(errors) == refusal
    assert await listed(root) == []


async def test_a_second_key_replaces_stands_beside_or_is_refused(root: Client) -> None:
    first = await dkim_key_operations.key(root)
    again = await dkim_key_operations.key(root)
    assert (again["id"], again["publicKey"] == first["publicKey"]) == (first["id"], False)
    await dkim_key_operations.key(root, selector="e", algorithm="ED25519")
    assert await selectors(root) == {"dkim": "ACTIVE", "e": "ACTIVE"}
    assert (await in_use(root, "example.org"))["selector"] == "dkim"
    await dkim_key_operations.key(root, selector="new")
    assert await selectors(root) == {"dkim": "RETIRED", "e": "ACTIVE", "new": "ACTIVE"}
    for given in ({"selector": "dkim"}, {"selector": "x"}, {"selector": "e"}):
        _, errors = await done(root, SET, domains=["example.org"], replace=False, **given)
        assert told(errors)[:3] == ("CONFLICT", ["domains"], 0)


async def test_a_domain_has_so_many_keys(root: Client) -> None:
    raw = base64.b64encode(bytes(32)).decode()
    for nth in range(20):
        await dkim_key_operations.key(root, selector=f"s{nth}", privateKey=raw)
    _, errors = await done(root, SET, domains=["example.org"], selector="x", privateKey=raw)
    assert told(errors)[:2] == ("LIMIT_REACHED", ["domains"])


async def test_no_answer_log_or_row_holds_a_private_key(
    root: Client, world: Environment, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG")
    text = private_keys.generate_key(Algorithm.RSA).to_pem()
    inner = text.splitlines()[3]
    answer = await root.raw(SET, input={"domains": ["example.org"], "privateKey": text})
    assert answer["data"]["dkimKeySet"]["errors"] == []
    assert inner not in json.dumps(answer)
    ((sealed,),) = await counter_check.rows(world, "SELECT private FROM dkim_keys")
    assert inner not in sealed
    for table in ("changes", "admin_log", "replays"):
        assert inner not in str(await counter_check.rows(world, f"SELECT * FROM {table}"))  # noqa: S608
    assert inner not in caplog.text
    fields = await root('{ __type(name: "DkimKey") { fields { name } } }')
    assert "privateKey" not in {one["name"] for one in fields["__type"]["fields"]}
    assert (await secret_rotation.count_values_by_key(world, [world.secret_box.newest_key_name]))[
        world.secret_box.newest_key_name
    ] == 1


async def test_lists_are_paged_and_narrowed(root: Client) -> None:
    raw = base64.b64encode(bytes(32)).decode()
    names = ["a.example", "b.example", "c.example"]
    for name in names:
        await made(root, name)
        await dkim_key_operations.key(root, domains=[name], privateKey=raw)
    seen, after = [], None
    while True:
        page = (await root(LIST, first=2, after=after))["dkimKeys"]
        seen += [one["domain"] for one in page["nodes"]]
        after = page["pageInfo"]["endCursor"]
        if not page["pageInfo"]["hasNextPage"]:
            break
    assert (seen, page["totalCount"]) == (names, 3)
    assert [one["domain"] for one in await listed(root, last=1)] == names[-1:]
    assert [one["domain"] for one in await listed(root, query="B.ex")] == ["b.example"]
    assert await listed(root, query="%") == []


async def test_an_administrator_of_domains_has_those_alone(
    root: Client, world: Environment, http: httpx.AsyncClient, bob: Client
) -> None:
    await made(root, "far.example")
    theirs = await dkim_key_operations.key(root, domains=["far.example"])
    everybodys = await dkim_key_operations.key(root, domains=["*"])
    admin = await make_domain_admin(world, http, "eve")
    own = await dkim_key_operations.key(admin)
    assert await listed(admin) == [own]
    assert (await admin(LIST))["dkimKeys"]["totalCount"] == 1
    for one in (theirs, everybodys):
        assert await admin(NODE, id=one["id"]) == {"node": None}
        assert (await admin(ONE, by={"id": one["id"]}))["dkimKey"] is None
        assert await in_use(admin, one["domain"]) is None
        for document in (REMOVE, ACTIVATE):
            _, errors = await done(admin, document, ids=[one["id"]])
            assert told(errors)[0] == "NOT_FOUND"
        for document in (SET, ROTATE, REMOVE):
            _, errors = await done(admin, document, domains=[one["domain"]])
            wanted = "FORBIDDEN" if one["domain"] == "*" else "NOT_FOUND"
            assert told(errors)[0] == wanted
    given = {"from": "example.org", "to": ["far.example"]}
    answer = await admin.raw(COPY, input=given)
    assert answer["data"]["dkimKeyCopy"]["errors"][0]["code"] == "FORBIDDEN"
    answer = await bob.raw(LIST)
    assert answer["errors"][0]["extensions"]["code"] == "FORBIDDEN"
    answer = await bob.raw(SET, input={"domains": ["example.org"]})
    assert answer["data"]["dkimKeySet"]["errors"][0]["code"] == "FORBIDDEN"
    assert len(await listed(root)) == 3


async def test_keys_are_copied_with_their_selectors(root: Client, world: Environment) -> None:
    for name in ("a.example", "b.example"):
        await made(root, name)
    (rsa, edwards) = await dkim_key_operations.both(root)
    answer, errors = await done(
        root, COPY, **{"from": "example.org", "to": ["a.example", "b.example", "a.example"]}
    )
    assert errors == []
    assert [(one["domain"], one["selector"]) for one in answer["keys"]] == [
        ("a.example", "r"), ("a.example", "e"), ("b.example", "r"), ("b.example", "e")
    ]  # fmt: skip
    assert {one["publicKey"] for one in answer["keys"]} == {rsa["publicKey"], edwards["publicKey"]}
    found = await counter_check.rows(world, "SELECT private FROM dkim_keys")
    assert len(set(found)) == 6  # each is sealed for its own row
    for to, code in ((["example.org"], "VALIDATION"), (["c.example"], "NOT_FOUND")):
        _, errors = await done(root, COPY, **{"from": "example.org", "to": to})
        assert told(errors)[:3] == (code, ["to"], 0)
    await made(root, "c.example")
    _, errors = await done(root, COPY, **{"from": "c.example", "to": ["a.example"]})
    assert told(errors)[:2] == ("NOT_FOUND", ["from"])
    answer, errors = await done(root, REMOVE, domains=["a.example"])
    assert (len(answer["deletedIds"]), errors) == (2, [])
    _, errors = await done(root, REMOVE, domains=["b.example", "a.example"])
    assert told(errors)[:3] == ("NOT_FOUND", ["domains"], 1)
    _, errors = await done(root, REMOVE)
    assert told(errors)[0] == "VALIDATION"
    assert len(await listed(root)) == 4


def show(there: Zone, *keys: Any) -> None:
    """Let a name server hold the records of these keys, and nothing else."""
    there.records.clear()
    for name, text in dkim_key_operations.texts(keys).items():
        there.records[name, "TXT"] = [quoted(text)]


async def test_a_new_key_signs_once_its_record_is_seen(
    root: Client, world: Environment, clock: Clock
) -> None:
    (rsa, edwards) = await dkim_key_operations.both(root)
    there = zone({})
    show(there, rsa, edwards)
    async with asking(there) as place:
        dkim_key_operations.asks(root, place)
        answer, errors = await done(root, ROTATE, domains=["example.org"])
        assert errors == []
        new = {one["algorithm"]: one for one in answer["keys"]}
        assert {one["selector"] for one in new.values()} == {"r-20300101", "e-20300101"}
        assert {one["state"] for one in new.values()} == {"PENDING"}
        _, errors = await done(root, ROTATE, domains=["example.org"])
        assert told(errors)[0] == "CONFLICT"
        assert await dkim_rotation.process_due_keys(world) == 2
        assert await dkim_rotation.process_due_keys(world) == 0  # not so soon again
        assert (await in_use(root, "example.org"))["id"] == rsa["id"]
        show(there, rsa, edwards, new["RSA"])
        clock.tick(minutes=2)
        assert await dkim_rotation.process_due_keys(world) == 2
        states = await selectors(root)
        assert states == {"r": "RETIRED", "e": "ACTIVE", "r-20300101": "ACTIVE",
                          "e-20300101": "PENDING"}  # fmt: skip
        assert (await in_use(root, "example.org"))["id"] == new["RSA"]["id"]
        clock.tick(days=13)
        await dkim_rotation.process_due_keys(world)
        assert "r" in await selectors(root)
        clock.tick(days=2)
        await dkim_rotation.process_due_keys(world)
        assert "r" not in await selectors(root)


async def test_it_is_asked_less_and_less_often(
    root: Client, world: Environment, clock: Clock
) -> None:
    await dkim_key_operations.key(root)
    there = zone({})
    async with asking(there) as place:
        dkim_key_operations.asks(root, place)
        await done(root, ROTATE, domains=["example.org"], selector="new")
        asked = 0
        for _ in range(24 * 60):
            asked += await dkim_rotation.process_due_keys(world)
            clock.tick(minutes=1)
        assert 25 < asked < 35
        assert len(there.asked) >= asked


async def test_a_wrong_or_revoked_record_lets_no_key_sign(
    root: Client, world: Environment, clock: Clock
) -> None:
    old = await dkim_key_operations.key(root)
    answer, _ = await done(root, ROTATE, domains=["example.org"], selector="new")
    (new,) = answer["keys"]
    name = new["dnsTxt"]["name"]
    for text in (old["dnsTxt"]["value"], "v=DKIM1; p=", "junk", new["dnsTxt"]["value"][:-8]):
        async with asking(zone({name: text})) as place:
            dkim_key_operations.asks(root, place)
            assert (await root(STATES))["dkimKeys"]["nodes"][1]["dnsState"] == "DIFFERENT"
            assert await dkim_rotation.process_due_keys(world) == 1
            clock.tick(hours=1)
    assert (await selectors(root))["new"] == "PENDING"


async def test_a_key_is_let_sign_by_hand_and_so_is_the_old_one_again(root: Client) -> None:
    old = await dkim_key_operations.key(root)
    answer, _ = await done(root, ROTATE, domains=["example.org"], keySize=3072)
    (new,) = answer["keys"]
    assert new["keySize"] == 3072
    answer, errors = await done(root, ACTIVATE, ids=[new["id"]])
    assert (errors, [one["state"] for one in answer["keys"]]) == ([], ["ACTIVE"])
    assert (await selectors(root))["dkim"] == "RETIRED"
    await done(root, ACTIVATE, ids=[old["id"]])
    states = await selectors(root)
    assert states == {"dkim": "ACTIVE", new["selector"]: "RETIRED"}
    _, errors = await done(root, ACTIVATE, ids=[old["id"], new["id"]])
    assert told(errors)[:2] == ("CONFLICT", ["ids"])
    _, errors = await done(root, ACTIVATE, ids=[])
    assert told(errors)[0] == "VALIDATION"


async def test_the_last_key_is_never_deleted_by_itself(
    root: Client, world: Environment, clock: Clock
) -> None:
    await dkim_key_operations.key(root)
    await dkim_key_operations.key(root, selector="new")
    answer = await listed(root)
    await done(root, REMOVE, ids=[one["id"] for one in answer if one["selector"] == "new"])
    clock.tick(days=30)
    assert await dkim_rotation.process_due_keys(world) == 1
    assert await selectors(root) == {"dkim": "RETIRED"}


@pytest.mark.parametrize(
    ("given", "refusal"),
    [
        ({"domains": ["far.example"]}, ("NOT_FOUND", ["domains"], 0, "far.example")),
        ({"domains": ["*"]}, ("NOT_FOUND", ["domains"], 0, "*")),
        ({"selector": "new"}, ("VALIDATION", ["algorithm"], None, "required")),
        ({"selector": "e", "algorithm": "RSA"}, ("CONFLICT", ["selector"], 0, None)),
        ({"selector": "\r\n"}, ("VALIDATION", ["selector"], None, "selector")),
        ({"keySize": 7}, ("VALIDATION", ["keySize"], None, "keySize")),
    ],
)
async def test_what_cannot_be_rotated_is_refused(
    root: Client, given: dict[str, Any], refusal: tuple[Any, ...]
) -> None:
    await dkim_key_operations.both(root)
    _, errors = await done(root, ROTATE, **{"domains": ["example.org"], **given})
    assert told(errors) == refusal
    assert len(await listed(root)) == 2


async def test_a_renamed_domain_takes_its_keys_along(root: Client) -> None:
    await done(root, ALIAS, alias="second.example", domain="example.org")
    await dkim_key_operations.both(root)
    await dkim_key_operations.key(root, domains=["second.example"])
    answer, errors = await done(root, RENAME, oldDomain="example.org", newDomain="new.example")
    assert errors == []
    assert sorted(one["domain"] for one in await listed(root)) == [
        "new.example", "new.example", "second.example"
    ]  # fmt: skip
    document = RENAME.replace("usersUpdated", "dkimKeysUpdated")
    answer, errors = await done(root, document, oldDomain="new.example", newDomain="b.example")
    assert (errors, answer["dkimKeysUpdated"]) == ([], 2)
    assert await of(root, "b.example")
    assert (await in_use(root, "b.example"))["dnsTxt"]["name"].endswith("_domainkey.b.example")


async def test_keys_go_with_their_domain_or_its_other_name(root: Client) -> None:
    await made(root, "new.example")
    answer, _ = await done(root, ALIAS, alias="second.example", domain="new.example")
    for name in ("new.example", "second.example"):
        await dkim_key_operations.key(root, domains=[name])
    await done(root, UNALIAS, ids=[answer["domainAlias"]["id"]])
    assert [one["domain"] for one in await listed(root)] == ["new.example"]
    _, errors = await done(root, DELETE, domains=[{"name": "new.example"}])
    assert errors == []
    assert await listed(root) == []


async def test_the_advice_of_a_domain_has_each_key(root: Client) -> None:
    (rsa, edwards) = await dkim_key_operations.both(root)
    await done(root, ROTATE, domains=["example.org"], algorithm="RSA", selector="next")
    records = dkim_key_operations.texts([rsa, edwards])
    records[edwards["dnsTxt"]["name"]] = "v=DKIM1; p="
    async with asking(zone(records)) as place:
        dkim_key_operations.asks(root, place)
        domain = (await root(RECORDS, check=True))["domain"]
    assert domain["dkimKey"] == {"selector": "r"}
    found = {
        one["name"].partition(".")[0]: one
        for one in domain["dnsRecords"]
        if "_domainkey" in one["name"]
    }
    assert {name: one["state"] for name, one in found.items()} == {
        "r": "OK", "e": "DIFFERENT", "next": "MISSING"
    }  # fmt: skip
    assert found["r"]["value"] == rsa["dnsTxt"]["value"]
    assert "will be signed" in found["next"]["purpose"]


async def test_states_are_looked_up_together(root: Client) -> None:
    raw = base64.b64encode(bytes(32)).decode()
    keys = [
        await dkim_key_operations.key(root, selector=f"s{nth}", privateKey=raw) for nth in range(10)
    ]
    await dkim_key_operations.key(root, domains=["*"], privateKey=raw)
    async with asking(dkim_key_operations.published(keys[:9])) as place:
        dkim_key_operations.asks(root, place)
        nodes = (await root(STATES))["dkimKeys"]["nodes"]
    assert [one["dnsState"] for one in nodes] == ["UNKNOWN", *["OK"] * 9, "MISSING"]


async def test_what_is_sealed_is_sealed_anew(root: Client, world: Environment) -> None:
    await dkim_key_operations.both(root)
    before = await counter_check.rows(world, "SELECT id, private FROM dkim_keys ORDER BY id")
    fresh = world.secret_box.with_new_key()
    object.__setattr__(world.secret_box, "keys", {**world.secret_box.keys, **fresh.keys})
    came = await secret_rotation.reencrypt_all(world)
    after = await counter_check.rows(world, "SELECT id, private FROM dkim_keys ORDER BY id")
    assert (came.reencrypted_count, came.failed_contexts) == (2, [])
    assert not {one[1] for one in before} & {one[1] for one in after}


async def test_overlap_is_a_setting(root: Client, world: Environment, clock: Clock) -> None:
    document = """mutation ($input: SettingSetInput!) { settingSet(input: $input) {
        errors { message } } }"""
    given = {"key": "dkim.overlap", "value": "P1D"}
    assert (await root(document, input=given))["settingSet"]["errors"] == []
    assert world.options.dkim_overlap == timedelta(days=1)
    await dkim_key_operations.key(root)
    await dkim_key_operations.key(root, selector="new")
    clock.tick(days=2)
    await dkim_rotation.process_due_keys(world)
    assert await selectors(root) == {"new": "ACTIVE"}
