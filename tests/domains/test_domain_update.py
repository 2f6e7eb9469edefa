"""Domains that are changed: values, limits, and what is told of it."""

from typing import Any

import pytest

from mail.recipients import address_resolution
from models.errors import NotFound
from models.events.journal import ChangeKind
from models.runtime.environment import Environment
from tests.conftest import Client
from tests.support.operations.domain_operations import (
    UNLIMITED,
    UPDATE,
    change,
    done,
    key_of,
    live,
    made,
    of,
    told,
)
from tests.support.stores.counter_check import examine, journal, reached, rows

GIB = 1 << 30
pytestmark = pytest.mark.usefixtures("counted")


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


async def test_what_is_given_out_follows_the_default(root: Client, world: Environment) -> None:
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
    root: Client, ada: Client, world: Environment
) -> None:
    await change(root, "example.org", active=False)
    with pytest.raises(NotFound):
        await address_resolution.load_recipient(world, "ada@example.org")
    assert await address_resolution.find_sign_in_user(world, "A.da@example.org") == ada.user.id
    user = "query ($by: UserRef) { user(by: $by) { username } }"
    found = await root(user, by={"address": "ada@example.org"})
    assert found == {"user": {"username": "ada"}}


async def test_what_was_changed_is_in_the_log_and_nothing_else(
    root: Client, world: Environment
) -> None:
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
