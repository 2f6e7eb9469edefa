"""Domains: making, changing, deleting and listing them, and who sees which."""

import asyncio
from typing import Any

import pytest
from sqlalchemy import delete, text, update
from sqlmodel import col

from graph import ids
from mail import addresses
from models.domains import Domain
from models.errors import NotFound, Refused
from models.journal import PLATFORM, ChangeKind
from models.options import Options
from models.roles import Role, Scope
from models.users import DomainAdmin, User
from models.world import World
from resolvers import domains, userlimits, users
from resolvers.context import Context, Viewer
from resolvers.domains import DomainWhere
from tests.conftest import Client, receive
from tests.counts import examine, journal, reached, rows
from tests.domains import (
    ALIAS,
    CREATE,
    DELETE,
    DOMAIN,
    LIST,
    RENAME,
    UNALIAS,
    UNLIMITED,
    UPDATE,
    administrator,
    done,
    key_of,
    live,
    made,
    of,
)
from tests.test_addresses import add

GIB = 1 << 30
pytestmark = pytest.mark.usefixtures("counted")


def told(errors: list[Any]) -> tuple[Any, ...]:
    """What tells one refusal from another."""
    (error,) = errors
    more = error.get("constraint") or error.get("requires") or error.get("ref")
    return error["code"], error["path"], error["index"], more


async def change(client: Client, name: str, **values: Any) -> tuple[Any, list[Any]]:
    answer, errors = await done(client, UPDATE, domains=[{"name": name}], set=values)
    return answer["domains"], errors


# making


async def test_a_domain_has_what_was_asked_for_and_the_rest_by_default(root: Client) -> None:
    domain = await made(root, "XN--Bcher-KVA.Example", description=" Books ", tags=["b", "A", "a"])
    key = domain.pop("id")
    assert ids.decode("Domain", key)
    assert domain == {
        "name": "bücher.example",
        "description": "Books",
        "active": True,
        "tags": ["A", "b"],
        "maxAddresses": 400,
        "maxUsers": 10,
        "defaultUserQuota": 3 * GIB,
        "maxUserQuota": 10 * GIB,
        "maxNewUserQuota": 10 * GIB,
        "defaultNewUserQuota": 3 * GIB,
        "quota": 10 * GIB,
        "quotaAllocated": 0,
        "addressCount": 0,
        "addressesLeft": 400,
        "userCount": 0,
        "usersLeft": 10,
        "storage": {"bytes": 0, "messages": 0},
        "backupMx": False,
        "relayAllRecipients": False,
        "relayUnknownOnly": False,
        "globalAddressList": True,
    }
    stream = ids.decode("Domain", key)
    expected = [(ChangeKind.DOMAIN_CHANGED, [stream])]
    assert await journal(root.world, stream) == expected
    assert (await journal(root.world, PLATFORM))[-1:] == expected
    for name in ("bücher.example", "BÜCHER.example.", "xn--bcher-kva.example"):
        assert (await of(root, name))["id"] == key
    asked = "SELECT mutation, target_id FROM admin_log"
    assert await rows(root.world, asked) == [("domainCreate", stream)]


async def test_without_limits_nothing_runs_out(root: Client) -> None:
    domain = await made(root, "new.example", **UNLIMITED)
    left = ("addressesLeft", "usersLeft", "maxNewUserQuota")
    assert [domain[name] for name in left] == [None, None, None]
    assert (domain["defaultUserQuota"], domain["defaultNewUserQuota"]) == (GIB, GIB)
    domain = await made(root, "free.example", **{**UNLIMITED, "defaultUserQuota": 0})
    assert (domain["defaultUserQuota"], domain["defaultNewUserQuota"]) == (0, None)


async def test_what_is_left_goes_to_the_last_byte(root: Client) -> None:
    await made(root, "new.example", maxUsers=2, maxAddresses=2, quota="4 GiB", maxUserQuota="4 GiB")
    for name, left, next_, default in (("a", 1, GIB, GIB), ("b", 0, 0, 0)):
        await live(root.world, f"{name}@new.example", quota=None if name == "a" else GIB)
        domain = await of(root, "new.example")
        assert (domain["usersLeft"], domain["addressesLeft"]) == (left, left)
        assert (domain["maxNewUserQuota"], domain["defaultNewUserQuota"]) == (next_, default)
    assert domain["quotaAllocated"] == 4 * GIB
    assert domain["defaultUserQuota"] == 3 * GIB  # what those who inherit it have


@pytest.mark.parametrize(
    ("wrong", "refusal"),
    [
        ({"name": ""}, ("VALIDATION", ["name"], None, "domain")),
        ({"name": "-a.example"}, ("VALIDATION", ["name"], None, "domain")),
        ({"name": "a..example"}, ("VALIDATION", ["name"], None, "domain")),
        ({"name": "eve@new.example"}, ("VALIDATION", ["name"], None, "domain")),
        ({"name": "a" * 64 + ".example"}, ("VALIDATION", ["name"], None, "domain")),
        ({"name": "a." * 5000 + "example"}, ("VALIDATION", ["name"], None, "domain")),
        ({"name": "EXAMPLE.org."}, ("CONFLICT", ["name"], None, None)),
        ({"name": "\uff45xample.org"}, ("CONFLICT", ["name"], None, None)),
        ({"description": "x" * 1001}, ("VALIDATION", ["description"], None, "length")),
        ({"tags": ["a", " "]}, ("VALIDATION", ["tags"], 1, "length")),
        ({"tags": ["a"] * 101}, ("VALIDATION", ["tags"], None, "max")),
        ({"maxUsers": -1}, ("VALIDATION", ["maxUsers"], None, "min")),
        ({"maxAddresses": -1}, ("VALIDATION", ["maxAddresses"], None, "min")),
        ({"maxUserQuota": "11 GiB"}, ("VALIDATION", ["maxUserQuota"], None, "max")),
        ({"quota": "1 GiB"}, ("VALIDATION", ["maxUserQuota"], None, "max")),
        ({"defaultUserQuota": "11 GiB"}, ("VALIDATION", ["defaultUserQuota"], None, "max")),
        ({"defaultUserQuota": 0}, ("VALIDATION", ["defaultUserQuota"], None, "max")),
        (
            {"defaultUserQuota": None, "maxUserQuota": 5},
            ("VALIDATION", ["defaultUserQuota"], None, "max"),
        ),
        ({"relayAllRecipients": True}, ("VALIDATION", ["relayAllRecipients"], None, "requires")),
        (
            {"backupMx": True, "relayUnknownOnly": True},
            ("VALIDATION", ["relayUnknownOnly"], None, "requires"),
        ),
    ],
)  # fmt: skip
@pytest.mark.usefixtures("ada")
async def test_what_makes_no_domain_is_refused_by_name(
    root: Client, wrong: dict[str, Any], refusal: tuple[Any, ...]
) -> None:
    before = await rows(root.world, "SELECT count(*) FROM domains")
    answer, errors = await done(root, CREATE, **{"name": "new.example", **wrong})
    assert (answer["domain"], told(errors)) == (None, refusal)
    assert await rows(root.world, "SELECT count(*) FROM domains") == before


@pytest.mark.parametrize("value", [2**53, -1, 2**63, "a lot"])
async def test_a_size_that_is_none_is_refused_before_anything_runs(
    root: Client, value: Any
) -> None:
    answer = await root.raw(CREATE, input={"name": "new.example", "quota": value})
    assert answer["errors"][0]["extensions"]["code"] == "BAD_USER_INPUT"


async def test_two_that_make_one_name_at_once_have_one_winner(root: Client) -> None:
    tries = [done(root, CREATE, name=name) for name in ("new.example", "NEW.example") * 3]
    done_ = await asyncio.gather(*tries)
    assert sorted(len(errors) for _, errors in done_) == [0, 1, 1, 1, 1, 1]
    assert {error["code"] for _, errors in done_ for error in errors} == {"CONFLICT"}


async def test_a_domain_and_an_alias_of_one_name_at_once_have_one_winner(root: Client) -> None:
    await made(root, "old.example")
    tries = [
        done(root, CREATE, name="new.example"),
        done(root, ALIAS, alias="new.example", domain="old.example"),
    ]
    done_ = await asyncio.gather(*tries)
    assert sorted(len(errors) for _, errors in done_) == [0, 1]
    asked = "SELECT name FROM domains UNION ALL SELECT alias FROM domain_aliases"
    assert [name for (name,) in await rows(root.world, asked)].count("new.example") == 1


async def test_an_admin_makes_domains_on_the_way_unless_that_is_off(
    root: Client, world: World
) -> None:
    user = await live(world, "eve@new.example")
    domain = await of(root, "new.example")
    assert (domain["maxUsers"], domain["quota"], domain["userCount"]) == (0, 0, 1)
    assert domain["id"] == ids.encode("Domain", user.domain_id or 0)
    closed = World(
        world.database,
        world.blobs,
        secret=b"s",
        options=Options(argon2_memory=8, argon2_time=1, auto_create_domains=False),
        now=world.now,
    )
    with pytest.raises(NotFound) as refused:
        await live(closed, "eve@other.example")
    assert (refused.value.ref, refused.value.path) == ("other.example", ["address"])
    assert await of(root, "other.example") is None
    assert (await live(closed, "zoe@new.example")).domain_id == user.domain_id


# limits


@pytest.mark.parametrize(
    ("limits", "path"),
    [({"maxUsers": 2}, "address"), ({"maxAddresses": 2}, "address")],
)
async def test_a_limit_holds_at_and_over_the_edge(
    root: Client, limits: dict[str, Any], path: str
) -> None:
    await made(root, "new.example", **{**UNLIMITED, **limits})
    await live(root.world, "a@new.example")
    await live(root.world, "b@new.example")
    with pytest.raises(Refused) as refused:
        await live(root.world, "c@new.example")
    assert (refused.value.code, refused.value.path) == ("LIMIT_REACHED", [path])
    assert (vars(refused.value)["limit"], vars(refused.value)["used"]) == (2, 2)
    assert (await of(root, "new.example"))["userCount"] == 2


@pytest.mark.parametrize(
    "limits",
    [{"maxUsers": 2}, {"maxAddresses": 2}, {"quota": 2 * GIB}],
    ids=lambda one: next(iter(one)),
)
async def test_two_at_the_edge_at_once_have_one_winner(
    root: Client, limits: dict[str, Any]
) -> None:
    await made(root, "new.example", **{**UNLIMITED, **limits})
    await live(root.world, "a@new.example")
    tries = [live(root.world, f"{name}@new.example") for name in "bcde"]
    won = await asyncio.gather(*tries, return_exceptions=True)
    assert sorted(isinstance(one, User) for one in won) == [False, False, False, True]
    assert {one.code for one in won if isinstance(one, Refused)} == {"LIMIT_REACHED"}
    domain = await of(root, "new.example")
    assert (domain["userCount"], domain["quotaAllocated"]) == (2, 2 * GIB)


@pytest.mark.parametrize("user", [None, 0, 700])
@pytest.mark.parametrize("domain", [None, 0, 800])
@pytest.mark.parametrize("platform", [0, 900])
async def test_all_roads_have_one_rule_for_storage(
    root: Client, user: int | None, domain: int | None, platform: int
) -> None:
    world = World(
        root.world.database,
        root.world.blobs,
        secret=b"s",
        options=Options(default_quota=platform, argon2_memory=8, argon2_time=1),
        now=root.world.now,
    )
    made_ = await live(world, "eve@example.org", quota=user)
    async with world.write() as session:
        await session.exec(update(Domain).values(default_user_quota=domain))
        await session.exec(update(User).values(used=1000))
    given = next(one for one in (user, domain, platform) if one is not None)
    ctx = Context(world, Viewer(role=Role.ROOT))
    (row,) = await users.by_ids(ctx, [made_.id])
    assert row
    assert await userlimits.allowed(ctx, row) == given
    try:
        await addresses.recipient(world, "eve@example.org")
        full = 0
    except Refused as refused:
        full = vars(refused)["allowed"]
    assert full == given
    async with world.write() as session:
        await session.exec(update(User).values(used=0))


async def test_a_message_that_arrives_counts_by_the_same_rule(ada: Client) -> None:
    await receive(ada, "one")
    size = (await ada.box()).size
    async with ada.world.write() as session:
        await session.exec(update(Domain).values(default_user_quota=2 * size + 20))
    await receive(ada, "two")
    with pytest.raises(Refused):
        await receive(ada, "three")


# changing


async def test_many_change_at_once_or_none(root: Client) -> None:
    for name in ("a.example", "b.example", "c.example"):
        await made(root, name)
    await live(root.world, "x@b.example")
    named = [{"name": "c.example"}, {"id": (await of(root, "a.example"))["id"]}]
    stands = {name: await reached(root.world, await key_of(root.world, name)) for name in
              ("a.example", "c.example")}  # fmt: skip
    answer, errors = await done(root, UPDATE, domains=named, set={"maxUsers": 1, "tags": ["x"]})
    assert errors == []
    assert [one["name"] for one in answer["domains"]] == ["c.example", "a.example"]
    assert {(one["maxUsers"], *one["tags"]) for one in answer["domains"]} == {(1, "x")}
    for name, last in stands.items():
        key = await key_of(root.world, name)
        assert await journal(root.world, key, last) == [(ChangeKind.DOMAIN_CHANGED, [key])]
    await live(root.world, "y@b.example")
    named = [{"name": f"{one}.example"} for one in "abc"]
    answer, errors = await done(root, UPDATE, domains=named, set={"maxUsers": 1, "tags": []})
    assert (answer["domains"], told(errors)) == (
        [],
        ("LIMIT_REACHED", ["set", "maxUsers"], 1, None),
    )
    assert errors[0]["used"] == 2
    assert (await of(root, "a.example"))["tags"] == ["x"]
    answer, errors = await done(root, UPDATE, domains=[*named, {"name": "d.example"}], set={})
    assert told(errors)[:2] == ("VALIDATION", ["set"])
    given = {"domains": [*named, {"name": "d.example"}], "set": {"active": False}}
    answer, errors = await done(root, UPDATE, **given)
    assert told(errors) == ("NOT_FOUND", ["domains"], 3, "d.example")
    assert (await of(root, "a.example"))["active"]


@pytest.mark.parametrize(
    ("values", "refusal"),
    [
        ({"maxUsers": 1}, ("LIMIT_REACHED", ["set", "maxUsers"], 1, 2)),
        ({"maxAddresses": 1}, ("LIMIT_REACHED", ["set", "maxAddresses"], 1, 2)),
        ({"maxUserQuota": "2 GiB", "defaultUserQuota": "1 GiB"},
         ("LIMIT_REACHED", ["set", "maxUserQuota"], 2 * GIB, 4 * GIB)),
        ({"quota": "6 GiB", "maxUserQuota": "6 GiB"},
         ("LIMIT_REACHED", ["set", "quota"], 6 * GIB, 7 * GIB)),
        ({"defaultUserQuota": "7 GiB"},
         ("LIMIT_REACHED", ["set", "defaultUserQuota"], 10 * GIB, 11 * GIB)),
    ],
)  # fmt: skip
async def test_no_limit_goes_below_what_is_in_use(
    root: Client, values: dict[str, Any], refusal: tuple[Any, ...]
) -> None:
    await made(root, "new.example")
    await live(root.world, "a@new.example")
    await live(root.world, "b@new.example", quota=4 * GIB)
    before = await of(root, "new.example")
    assert before["quotaAllocated"] == 7 * GIB
    _, (error,) = await change(root, "new.example", **values)
    assert (error["code"], error["path"], error["limit"], error["used"]) == refusal
    assert await of(root, "new.example") == before


async def test_limits_may_come_down_to_what_is_in_use(root: Client) -> None:
    await made(root, "new.example")
    await live(root.world, "a@new.example")
    await live(root.world, "b@new.example", quota=4 * GIB)
    values = {"maxUsers": 2, "maxAddresses": 2, "quota": 7 * GIB, "maxUserQuota": 4 * GIB}
    (domain,), errors = await change(root, "new.example", **values)
    assert errors == []
    assert (domain["usersLeft"], domain["maxNewUserQuota"]) == (0, 0)


async def test_an_unlimited_user_keeps_limits_away(root: Client) -> None:
    await made(root, "new.example", **UNLIMITED)
    await live(root.world, "a@new.example", quota=0)
    for values in ({"quota": "9 GiB"}, {"maxUserQuota": "9 GiB"}):
        _, errors = await change(root, "new.example", **values)
        assert told(errors)[:2] == ("LIMIT_REACHED", ["set", *values])
    await made(root, "heirs.example", **{**UNLIMITED, "defaultUserQuota": 0})
    await live(root.world, "a@heirs.example")
    _, errors = await change(root, "heirs.example", quota="9 GiB")
    assert told(errors)[:2] == ("VALIDATION", ["set", "quota"])
    (domain,), errors = await change(root, "heirs.example", quota="9 GiB", defaultUserQuota="1 GiB")
    assert (errors, domain["quotaAllocated"]) == ([], GIB)


async def test_what_is_given_out_follows_the_default(root: Client, world: World) -> None:
    await made(root, "new.example", **UNLIMITED)
    for name, quota in (("a", None), ("b", None), ("c", 5 * GIB), ("d", 0)):
        await live(world, f"{name}@new.example", quota=quota)
    for default, allocated in ((2 * GIB, 9), (0, 5), (None, 7)):
        (domain,), errors = await change(root, "new.example", defaultUserQuota=default)
        assert (errors, domain["quotaAllocated"]) == ([], allocated * GIB)
        await examine(world)


async def test_null_clears_and_absent_keeps(root: Client) -> None:
    await made(root, "new.example", description="x", tags=["a"])
    cleared = {"description": None, "tags": None, "maxUsers": None, "quota": None}
    (domain,), errors = await change(root, "new.example", **cleared)
    assert errors == []
    assert [domain[name] for name in cleared] == [None, [], 0, 0]
    assert (domain["maxUserQuota"], domain["maxAddresses"]) == (10 * GIB, 400)
    _, errors = await change(root, "new.example", active=None)
    assert told(errors) == ("VALIDATION", ["set", "active"], None, "required")


async def test_flags_agree_whichever_is_changed(root: Client) -> None:
    await made(root, "new.example", backupMx=True, relayAllRecipients=True, relayUnknownOnly=True)
    for values in ({"backupMx": False}, {"relayAllRecipients": False}):
        _, errors = await change(root, "new.example", **values)
        assert told(errors) == ("VALIDATION", ["set", *values], 0, "requires")
    (domain,), errors = await change(root, "new.example", relayUnknownOnly=False)
    assert (errors, domain["relayAllRecipients"]) == ([], True)


async def test_a_domain_that_is_off_takes_no_mail_and_its_users_sign_in(
    root: Client, ada: Client, world: World
) -> None:
    await change(root, "example.org", active=False)
    with pytest.raises(NotFound):
        await addresses.recipient(world, "ada@example.org")
    assert await addresses.login_of(world, "A.da@example.org") == ada.user.id
    user = "query ($by: UserRef) { user(by: $by) { username } }"
    found = await root(user, by={"address": "ada@example.org"})
    assert found == {"user": {"username": "ada"}}


async def test_what_was_changed_is_in_the_log_and_nothing_else(root: Client, world: World) -> None:
    await made(root, "new.example")
    given = {
        "domains": [{"name": "new.example"}],
        "set": {"maxUsers": 10, "description": "Ours"},
        "options": {"reason": "asked for"},
    }
    await done(root, UPDATE, **given)
    asked = "SELECT target_id, domain_id, reason FROM admin_log WHERE mutation = 'domainUpdate'"
    key = await key_of(world, "new.example")
    assert await rows(world, asked) == [(key, key, "asked for")]
    found = await rows(world, "SELECT after FROM admin_log WHERE mutation = 'domainUpdate'")
    assert "Ours" in str(found)
    assert "max" not in str(found)


async def test_many_domains_cost_no_more_statements_than_one(
    root: Client, statements: list[str]
) -> None:
    for n in range(20):
        await made(root, f"d{n}.example")

    async def cost(many: int) -> int:
        del statements[:]
        named = [{"name": f"d{n}.example"} for n in range(many)]
        given = {"defaultUserQuota": many, "maxUsers": 9}
        _, errors = await done(root, UPDATE, domains=named, set=given)
        assert errors == []
        return len([sent for sent in statements if "api_keys" not in sent])

    assert await cost(1) == await cost(20)


# deleting


async def test_a_domain_goes_when_nothing_is_left_in_it(root: Client, world: World) -> None:
    for name in ("a.example", "b.example"):
        await made(root, name)
    eve = await live(world, "eve@a.example")
    await done(root, ALIAS, alias="also.example", domain="b.example")
    named = [{"name": "b.example"}, {"name": "a.example"}]
    answer, errors = await done(root, DELETE, domains=named)
    assert (answer["deletedIds"], told(errors)) == ([], ("CONFLICT", ["domains"], 1, None))
    assert "users" in errors[0]["message"]
    _, errors = await done(root, DELETE, domains=named[:1])
    assert told(errors) == ("CONFLICT", ["domains"], 0, None)
    key = (await of(root, "b.example"))["id"]
    answer, errors = await done(root, DELETE, domains=named[:1], cascade=True)
    assert (answer["deletedIds"], errors) == ([key], [])
    assert await of(root, "b.example") is None
    assert await rows(world, "SELECT count(*) FROM domain_aliases") == [(0,)]
    stream = ids.decode("Domain", key)
    assert await rows(world, "SELECT count(*) FROM streams WHERE id = :id", id=stream) == [(0,)]
    assert (await journal(world, PLATFORM))[-1] == (ChangeKind.DOMAIN_CHANGED, [stream])
    await made(root, "also.example")
    home = (await of(root, "a.example"))["id"]
    answer, errors = await done(root, DELETE, domains=named[1:], cascade=True)
    assert (answer["deletedIds"], errors) == ([home], [])
    asked = "SELECT domain_id, disabled FROM users WHERE id = :id"
    ((domain, disabled),) = await rows(world, asked, id=eve.id)
    assert (domain, bool(disabled)) == (None, True)
    assert await rows(world, "SELECT count(*) FROM addresses") == [(0,)]
    await examine(world)


async def test_cascade_takes_addresses_and_tells_their_owners(
    root: Client, ada: Client, world: World
) -> None:
    await made(root, "old.example")
    key, at = await key_of(world, "old.example"), await reached(world, ada.user.id)
    await add(world, "ada@old.example", user_id=ada.user.id)
    await add(world, "list@old.example")
    async with world.write() as session:
        await session.exec(update(Domain).where(col(Domain.id) == key).values(address_count=2))
    found = await rows(world, "SELECT id FROM addresses WHERE domain_id = :k", k=key)
    _, errors = await done(root, DELETE, domains=[{"name": "old.example"}])
    assert told(errors)[:2] == ("CONFLICT", ["domains"])
    _, errors = await done(root, DELETE, domains=[{"name": "old.example"}], cascade=True)
    assert errors == []
    ((kind, (address,)),) = await journal(world, ada.user.id, at)
    assert (kind, (address,) in found) == (ChangeKind.ADDRESS_CHANGED, True)


async def test_a_user_and_the_end_of_the_domain_at_once(root: Client, world: World) -> None:
    await made(root, "old.example")
    tries: list[Any] = [
        live(world, "eve@old.example"),
        done(root, DELETE, domains=[{"name": "old.example"}]),
    ]
    user, outcome = await asyncio.gather(*tries, return_exceptions=True)
    assert not isinstance(outcome, BaseException)
    _, errors = outcome
    there = await of(root, "old.example")
    if errors:
        assert (isinstance(user, User), there["userCount"]) == (True, 1)
    else:  # gone before the user came: refused, or it was made anew
        assert isinstance(user, NotFound) or there["userCount"] == 1


# aliases


async def test_an_alias_stands_for_its_domain_while_it_is_active(
    root: Client, ada: Client, world: World
) -> None:
    given = {"alias": "XN--Bcher-KVA.example", "domain": "Example.ORG"}
    answer, errors = await done(root, ALIAS, **given)
    alias = answer["domainAlias"]
    assert errors == []
    assert (alias["alias"], alias["active"], alias["domain"]) == (
        "bücher.example",
        True,
        {"name": "example.org"},
    )
    assert (await addresses.recipient(world, "ada@BÜCHER.example")).user_id == ada.user.id
    document = "query ($by: DomainAliasRef!) { domainAlias(by: $by) { id domain { name } } }"
    for by in ({"id": alias["id"]}, {"alias": "bücher.EXAMPLE"}):
        found = (await root(document, by=by))["domainAlias"]
        assert found == {"id": alias["id"], "domain": {"name": "example.org"}}
    node = "query ($id: ID!) { node(id: $id) { ... on DomainAlias { alias } } }"
    assert await root(node, id=alias["id"]) == {"node": {"alias": "bücher.example"}}
    key = await key_of(world, "example.org")
    assert (await journal(world, key))[-1] == (ChangeKind.DOMAIN_CHANGED, [key])
    await done(root, ALIAS, alias="off.example", domain="example.org", active=False)
    with pytest.raises(NotFound):
        await addresses.recipient(world, "ada@off.example")
    answer, errors = await done(root, UNALIAS, ids=[alias["id"]])
    assert (answer["deletedIds"], errors) == ([alias["id"]], [])
    with pytest.raises(NotFound):
        await addresses.recipient(world, "ada@bücher.example")
    _, errors = await done(root, UNALIAS, ids=[alias["id"]])
    assert told(errors)[:3] == ("NOT_FOUND", ["ids"], 0)


@pytest.mark.parametrize(
    ("given", "refusal"),
    [
        ({"alias": "example.org"}, ("VALIDATION", ["alias"], None, "self")),
        ({"alias": "new.example"}, ("CONFLICT", ["alias"], None, None)),
        ({"alias": "ALSO.example"}, ("CONFLICT", ["alias"], None, None)),
        ({"domain": "also.example"}, ("CONFLICT", ["domain"], None, None)),
        ({"domain": "nowhere.example"}, ("NOT_FOUND", ["domain"], None, "nowhere.example")),
        ({"alias": "a b.example"}, ("VALIDATION", ["alias"], None, "domain")),
        ({"alias": "a" * 300}, ("VALIDATION", ["alias"], None, "domain")),
    ],
)
@pytest.mark.usefixtures("ada")
async def test_an_alias_has_one_level_and_a_name_of_its_own(
    root: Client, given: dict[str, Any], refusal: tuple[Any, ...]
) -> None:
    await made(root, "new.example")
    await done(root, ALIAS, alias="also.example", domain="new.example")
    _, errors = await done(root, ALIAS, **{"alias": "x.example", "domain": "example.org", **given})
    assert told(errors) == refusal
    _, errors = await done(root, CREATE, name="also.example")
    assert told(errors) == ("CONFLICT", ["name"], None, None)


ALIASES = """
query ($query: String, $first: Int, $after: String, $last: Int, $before: String) {
  domainAliases(query: $query, first: $first, after: $after, last: $last, before: $before) {
    nodes { alias domain { name } } totalCount pageInfo { endCursor startCursor hasNextPage } } }
"""


async def test_aliases_are_found_by_part_of_either_name(root: Client) -> None:
    for name in ("pond.example", "lake.example"):
        await made(root, name)
    for alias, domain in (("b.org", "pond"), ("a.org", "pond"), ("c.org", "lake")):
        await done(root, ALIAS, alias=alias, domain=f"{domain}.example")

    async def found(**ask: Any) -> tuple[str, int]:
        page = (await root(ALIASES, **ask))["domainAliases"]
        return "".join(node["alias"][0] for node in page["nodes"]), page["totalCount"]

    assert await found() == ("abc", 3)
    assert await found(query="POND") == ("ab", 2)
    assert await found(query="c.o") == ("c", 1)
    assert await found(query="%") == ("", 0)
    assert await found(last=2) == ("bc", 3)
    page = (await root(ALIASES, first=2))["domainAliases"]["pageInfo"]
    assert await found(first=2, after=page["endCursor"]) == ("c", 3)


# lists


async def names(client: Client, **condition: Any) -> list[str]:
    page = (await client(LIST, filter=condition))["domains"]
    assert page["totalCount"] == len(page["nodes"])
    return [node["name"] for node in page["nodes"]]


async def test_a_list_of_domains_is_narrowed(root: Client, ada: Client) -> None:
    await made(root, "bücher.example", description="Größe 100%", tags=["Lesen", "x"])
    await made(root, "a.example", active=False, tags=["ÄX"])
    await made(root, "z.example", backupMx=True)
    admin = await administrator(ada.world, root.http, "adm", "example.org", "a.example")
    all_ = ["a.example", "bücher.example", "example.org", "z.example"]
    for condition, expected in (
        ({}, all_),
        ({"query": "BÜCH"}, ["bücher.example"]),
        ({"query": "größe 1"}, ["bücher.example"]),
        ({"query": "%"}, ["bücher.example"]),
        ({"query": "_"}, []),
        ({"active": False}, ["a.example"]),
        ({"backupMx": True}, ["z.example"]),
        ({"backupMx": True, "active": False}, []),
        ({"tags": ["LESEN"]}, ["bücher.example"]),
        ({"tags": ["les"]}, []),
        ({"tags": ["äx", "X"]}, ["a.example", "bücher.example"]),
        ({"administeredBy": {"username": "adm@example.org"}}, ["a.example", "example.org"]),
        ({"notAdministeredBy": {"username": "adm@example.org"}}, ["bücher.example", "z.example"]),
        ({"administeredBy": {"username": "nobody"}}, []),
        ({"notAdministeredBy": {"username": "nobody"}}, all_),
    ):
        assert await names(root, **condition) == expected, condition
    assert await names(admin) == ["a.example", "example.org"]


async def test_pages_of_domains_meet_both_ways(root: Client) -> None:
    for n in range(5):
        await made(root, f"d{n}.example")
    seen, at = [], {"hasNextPage": True, "endCursor": None}
    while at["hasNextPage"]:
        page = (await root(LIST, first=2, after=at["endCursor"]))["domains"]
        seen.append([node["name"][1] for node in page["nodes"]])
        at = page["pageInfo"]
    assert seen == [["0", "1"], ["2", "3"], ["4"]]
    page = (await root(LIST, last=2, before=at["startCursor"]))["domains"]
    assert [node["name"][1] for node in page["nodes"]] == ["2", "3"]
    cursor = page["pageInfo"]["endCursor"]
    answer = await root.raw(LIST, filter={"active": True}, after=cursor)
    assert answer["errors"][0]["extensions"] == {"code": "BAD_CURSOR"}


PARENTS = """{ domains(first: 50) { totalCount nodes { name storage { bytes } defaultUserQuota
  users(first: 2) { totalCount nodes { username domain { name } } }
  addresses(first: 2) { totalCount nodes { address user { username } } }
  aliases { alias } admins { username }
  dnsRecords { name } } } }"""


async def test_many_domains_are_read_in_as_few_statements_as_one(
    root: Client, ada: Client, statements: list[str]
) -> None:
    await administrator(ada.world, root.http, "adm", "example.org")

    async def cost() -> int:
        del statements[:]
        await root(PARENTS)
        return len([sent for sent in statements if "api_keys" not in sent])

    one = await cost()
    for n in range(20):
        await live(ada.world, f"x@d{n}.example")
        await done(root, ALIAS, alias=f"a{n}.example", domain=f"d{n}.example")
    await administrator(ada.world, root.http, "two", *(f"d{n}.example" for n in range(20)))
    assert [await cost(), await cost()] == [one, one]


async def test_storage_is_kept_as_mail_comes(root: Client, ada: Client) -> None:
    await receive(ada, "one")
    await receive(ada, "two")
    size = (await ada.box()).size
    assert (await of(root, "example.org"))["storage"] == {"bytes": size, "messages": 2}


@pytest.mark.usefixtures("ada", "bob")
async def test_lists_of_large_domains_go_by_an_index(world: World) -> None:
    asked = {
        "users": "SELECT id FROM users WHERE domain_id = 7 ORDER BY username_key, id LIMIT 21",
        "addresses": "SELECT id FROM addresses WHERE domain_id = 7 ORDER BY local, id LIMIT 21",
        "domains": "SELECT id FROM domains ORDER BY name, id LIMIT 21",
    }
    index = {
        "users": "ix_users_of_domain",
        "addresses": "ix_addresses_domain_id_local",
        "domains": {"sqlite": "autoindex_domains", "postgresql": "uq_domains_name"}[
            world.database.dialect
        ],
    }
    explain = {"sqlite": "EXPLAIN QUERY PLAN ", "postgresql": "EXPLAIN "}[world.database.dialect]
    for table, sql in asked.items():
        async with world.database.engine.connect() as connection:
            if world.database.dialect == "postgresql":
                for other in ("seqscan", "bitmapscan", "sort"):  # a small table may do as well
                    await connection.execute(text(f"SET LOCAL enable_{other} = off"))
            plan = "\n".join(str(row) for row in await connection.execute(text(explain + sql)))
        assert index[table] in plan, plan
        assert "TEMP B-TREE FOR ORDER BY" not in plan


# who may


@pytest.mark.usefixtures("ada")
async def test_a_domain_admin_knows_nothing_of_other_domains(root: Client, world: World) -> None:
    await made(root, "far.example", tags=["x"])
    await done(root, ALIAS, alias="far-too.example", domain="far.example")
    await live(world, "zoe@far.example")
    permissions = ("DOMAIN_DESC", "ALIAS_DOMAINS", "UNLIMITED_QUOTA")
    admin = await administrator(world, root.http, "adm", "example.org", permissions=permissions)
    await administrator(world, root.http, "far", "far.example")
    far = (await of(root, "far.example"))["id"]
    alias = (await root(ALIASES))["domainAliases"]["nodes"][0]
    assert alias["alias"] == "far-too.example"
    ((key,),) = await rows(world, "SELECT id FROM domain_aliases")
    alias_id = ids.encode("DomainAlias", key)

    assert await names(admin) == ["example.org"]
    assert await names(admin, query="far") == []
    assert await names(admin, tags=["x"]) == []
    assert await names(admin, administeredBy={"username": "far@far.example"}) == []
    assert await names(admin, notAdministeredBy={"username": "far@far.example"}) == ["example.org"]
    assert await admin(DOMAIN, by={"id": far}) == {"domain": None}
    assert await admin(DOMAIN, by={"name": "far.example"}) == {"domain": None}
    nodes = "query ($ids: [ID!]!) { nodes(ids: $ids) { id } }"
    assert await admin(nodes, ids=[far, alias_id]) == {"nodes": [None, None]}
    page = (await admin(ALIASES))["domainAliases"]
    assert (page["nodes"], page["totalCount"]) == ([], 0)
    assert (await admin(ALIASES, query="far"))["domainAliases"]["totalCount"] == 0
    document = "query ($by: DomainAliasRef!) { domainAlias(by: $by) { id } }"
    for by in ({"id": alias_id}, {"alias": "far-too.example"}):
        assert await admin(document, by=by) == {"domainAlias": None}

    nothing = {"name": "nothing.example"}
    before = await rows(world, "SELECT * FROM domains ORDER BY id")
    for ref, named in (({"name": "far.example"}, "far.example"), (nothing, "nothing.example")):
        given = {"domains": [ref], "set": {"description": "mine"}}
        _, errors = await done(admin, UPDATE, **given)
        assert told(errors) == ("NOT_FOUND", ["domains"], 0, named)
        _, errors = await done(admin, ALIAS, alias="x.example", domain=named)
        assert told(errors) == ("NOT_FOUND", ["domain"], None, named)
    _, errors = await done(admin, ALIAS, alias="x.example", domain="far-too.example")
    assert told(errors) == ("NOT_FOUND", ["domain"], None, "far-too.example")
    taken = [(await done(admin, ALIAS, alias=name, domain="example.org"))[1]
             for name in ("far.example", "far-too.example")]  # fmt: skip
    assert [error["message"] for (error,) in taken] == ["far.example is taken",
                                                        "far-too.example is taken"]  # fmt: skip
    _, errors = await done(admin, UNALIAS, ids=[alias_id])
    assert told(errors)[:3] == ("NOT_FOUND", ["ids"], 0)
    refused: tuple[tuple[str, dict[str, Any]], ...] = (
        (CREATE, {"name": "x.example"}),
        (DELETE, {"domains": [{"name": "example.org"}]}),
        (RENAME, {"oldDomain": "example.org", "newDomain": "x.example"}),
    )
    for document, given in refused:
        _, errors = await done(admin, document, **given)
        assert told(errors) == ("FORBIDDEN", [], None, "ADMIN")
    assert await rows(world, "SELECT * FROM domains ORDER BY id") == before
    assert await rows(world, "SELECT id FROM domain_aliases") == [(key,)]


async def test_lists_inside_a_domain_are_for_those_who_administer_it(
    root: Client, ada: Client, world: World
) -> None:
    await made(root, "home.example")
    await live(world, "neighbour@home.example")
    admin = await administrator(world, root.http, "adm", "home.example", "example.org")
    async with world.write() as session:
        key = await key_of(world, "home.example")
        await session.exec(delete(DomainAdmin).where(col(DomainAdmin.domain_id) == key))
    inside = """domain { name users { totalCount nodes { username } } addresses { totalCount }
      aliases { alias } admins { username } storage { messages } }"""
    seen = (await admin(f"{{ viewer {{ user {{ {inside} }} }} }}"))["viewer"]["user"]["domain"]
    assert seen == {
        "name": "home.example",
        "users": {"totalCount": 0, "nodes": []},
        "addresses": {"totalCount": 0},
        "aliases": [],
        "admins": [],
        "storage": {"messages": 0},
    }
    answer = await ada.raw("{ viewer { user { domain { users { totalCount } } } } }")
    assert answer["errors"][0]["extensions"] == {"code": "FORBIDDEN"}


@pytest.mark.usefixtures("ada")
async def test_a_domain_admin_changes_what_is_delegated(root: Client, world: World) -> None:
    with_it = await administrator(world, root.http, "a", "example.org", permissions=["DOMAIN_DESC"])
    without = await administrator(world, root.http, "b", "example.org", permissions=["RATELIMIT"])
    (domain,), errors = await change(with_it, "example.org", description="Ours")
    assert (errors, domain["description"]) == ([], "Ours")
    _, errors = await change(without, "example.org", description="Mine")
    assert told(errors) == ("FORBIDDEN", ["set", "description"], None, "DOMAIN_DESC")
    for name, value in (
        ("active", False), ("tags", []), ("maxUsers", 0), ("quota", 0), ("backupMx", True),
        ("defaultUserQuota", 0), ("maxUserQuota", 0), ("maxAddresses", 0),
        ("globalAddressList", False),
    ):  # fmt: skip
        _, errors = await change(with_it, "example.org", **{"description": "x", name: value})
        assert told(errors) == ("FORBIDDEN", ["set", name], None, "ADMIN")
    given = {"alias": "also.example", "domain": "example.org"}
    _, errors = await done(with_it, ALIAS, **given)
    assert told(errors) == ("FORBIDDEN", [], None, "ALIAS_DOMAINS")
    assert await rows(world, "SELECT count(*) FROM domain_aliases") == [(0,)]
    owner = await administrator(world, root.http, "c", "example.org", permissions=["ALIAS_DOMAINS"])
    _, errors = await done(owner, ALIAS, **given)
    assert errors == []


@pytest.mark.parametrize("role", [Role.PUBLIC, Role.USER])
async def test_below_a_domain_admin_nobody_lists_domains(ada: Client, role: Role) -> None:
    viewer = Viewer(ada.user.id, role, frozenset({Scope.MASTER}))
    ctx = Context(ada.world, viewer)
    assert await domains.count(ctx, DomainWhere()) == 0
    answer = await ada.raw("{ domains { nodes { id } } }")
    assert answer["errors"][0]["extensions"] == {"code": "FORBIDDEN"}
