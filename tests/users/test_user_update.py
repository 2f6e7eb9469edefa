"""Changing accounts: one or many, all or nothing, and who may change what."""

import asyncio
from datetime import timedelta
from typing import Any

import pytest

from graph.types import global_ids
from models.events.journal import PLATFORM, ChangeKind
from models.users.roles import AdminPermission, Role, Scope
from models.users.tables import Usage, UsageKind
from tests.conftest import Client, make_client, make_key, make_user
from tests.support.accounts.legacy_password_hashes import LEGACY_HASHES
from tests.support.accounts.openpgp_keys import SIGNS_ONLY, key_of
from tests.support.accounts.user_operations import (
    NEW,
    UPDATE,
    change,
    chief,
    create,
    events,
    id_of,
    row_of,
    run,
)
from tests.support.operations.domain_operations import set_domain_columns
from tests.support.stores.counter_check import examine, reached, rows

GIB = 1 << 30
pytestmark = pytest.mark.usefixtures("examined")


async def test_a_patch_changes_what_it_names_and_clears_what_is_null(ada: Client) -> None:
    key = key_of("Ada <ada@example.org>")
    (user,), errors = await change(
        ada,
        name="Ada L.",
        language="de",
        retention="P1D",
        pubKey=key,
        metaData={"a": 1},
        spamLevel=7,
    )
    assert errors == []
    assert (user["name"], user["language"], user["retention"]) == ("Ada L.", "de", "P1D")
    assert (user["metaData"], user["spam"]["level"]) == ({"a": 1}, 7)
    assert user["keyInfo"]["address"] == "ada@example.org"
    (user,), errors = await change(ada, name="Ada")
    assert (user["language"], user["pubKey"] is None) == ("de", False)
    (user,), errors = await change(
        ada, name=None, language=None, retention=None, pubKey=None, metaData=None, spamLevel=None
    )
    assert errors == []
    cleared = ("name", "language", "retention", "pubKey", "keyInfo", "metaData")
    assert [user[name] for name in cleared] == [None] * 6
    assert user["spam"]["level"] == 50


async def test_what_changes_is_told_to_the_account_and_its_domain(
    ada: Client, root: Client
) -> None:
    world, domain = ada.world, ada.user.domain_id or 0
    own, theirs = await reached(world, ada.user.id), await reached(world, domain)
    assert (await change(ada, name="New", language="de"))[1] == []
    told = (ChangeKind.USER_CHANGED, [ada.user.id], [["language", "name"]])
    assert await events(world, ada.user.id, own) == [told]
    assert await events(world, domain, theirs) == [told]
    own = await reached(world, ada.user.id)
    assert (await change(ada, name="New"))[1] == []  # as it is: nothing to tell
    assert await events(world, ada.user.id, own) == []
    assert await rows(world, "SELECT id FROM admin_log WHERE mutation = 'userUpdate'") == []
    dan, _ = await create(root, username="dan", address=None, emptyAddress=True)
    before = await reached(world, PLATFORM)
    key = global_ids.decode("User", dan["id"])
    assert (await change(root, key, name="D"))[1] == []
    assert await events(world, PLATFORM, before) == [(ChangeKind.USER_CHANGED, [key], [["name"]])]


async def test_many_are_changed_at_once_or_none(root: Client, statements: list[str]) -> None:
    made = [await make_user(root.world, f"n{nth}") for nth in range(30)]
    keys = [user.id for user in made]
    given = {"tags": ["a", "B"], "quota": 5, "spamLevel": 3, "suspended": True, "recipients": 9}

    async def cost(some: list[int]) -> int:
        del statements[:]
        users, errors = await change(root, *some, **given)
        assert (len(users), errors) == (len(some), [])
        return len([one for one in statements if "api_keys" not in one])

    assert await cost(keys[:1]) == await cost(keys[1:])
    ((allocated,),) = await rows(root.world, "SELECT quota_allocated FROM domains")
    assert allocated == 150
    ((many,),) = await rows(root.world, "SELECT count(*) FROM user_tags")
    assert many == 60
    await set_domain_columns(root.world, quota=200)
    before = await rows(root.world, "SELECT id, quota, name FROM users ORDER BY id")
    users, (error,) = await change(root, *keys, quota=7, name="X")
    assert (users, error["code"], error["path"]) == ([], "LIMIT_REACHED", ["set", "quota"])
    users, (error,) = await change(root, *keys, 77, name="X")
    assert (users, error["code"]) == ([], "NOT_FOUND")
    assert await rows(root.world, "SELECT id, quota, name FROM users ORDER BY id") == before


@pytest.mark.parametrize(
    ("given", "path", "rule"),
    [
        ({}, "", "required"),
        ({"passwordDisabled": False, "hashedPassword": True}, "", "required"),
        ({"username": "a..b"}, "username", "pattern"),
        ({"username": ""}, "username", "pattern"),
        ({"name": "a\nb"}, "name", "pattern"),
        ({"password": ""}, "password", "min"),
        ({"password": "short"}, "password", "min"),
        ({"password": "x" * 257}, "password", "max"),
        ({"password": "password1", "allowUnsafe": False}, "password", "breached"),
        ({"password": "$9$x", "hashedPassword": True}, "password", "hash"),
        ({"password": NEW, "passwordDisabled": True}, "password", "exclusive"),
        ({"pubKey": SIGNS_ONLY}, "pubKey", "key"),
        ({"metaData": [1]}, "metaData", "object"),
        ({"recipients": -1}, "recipients", "range"),
        ({"tags": [""]}, "tags", "length"),
        ({"fromWhitelist": ["a*b"]}, "fromWhitelist", "pattern"),
        ({"retention": "P999Y"}, "retention", "range"),
    ],
)
async def test_what_cannot_be_is_refused_by_field_and_rule(
    root: Client, ada: Client, given: dict[str, Any], path: str, rule: str
) -> None:
    before = await row_of(root.world, ada)
    users, (error,) = await change(root, ada, **given)
    where = ["set", *filter(None, [path])]
    assert (users, error["path"], error["constraint"]) == ([], where, rule)
    assert await row_of(root.world, ada) == before


async def test_a_rename_keeps_names_apart_and_search_in_step(
    root: Client, ada: Client, bob: Client
) -> None:
    (user,), errors = await change(root, ada, username="Ada.Byron")
    assert (errors, user["username"]) == ([], "ada.byron")
    row = await row_of(root.world, ada)
    assert (row.username_key, row.words) == ("adabyron", "ada.byron\nada@example.org\nadabyron")
    for taken in ("adabyron", "a.dabyron", "ADA.byron"):
        users, (error,) = await change(root, bob, username=taken)
        assert (users, error["code"], error["path"]) == ([], "CONFLICT", ["set", "username"])
    assert (await change(root, ada, username="adabyron"))[1] == []  # its own
    answer = await root('{ user(by: {username: "ada.byron"}) { username } }')
    assert answer["user"] == {"username": "adabyron"}
    users, (error,) = await change(root, ada, bob, username="both")
    assert (error["constraint"], error["path"]) == ("exclusive", ["set", "username"])
    (user,), _ = await change(root, ada, name="Ada Ö")
    assert (await row_of(root.world, ada)).words == "adabyron\nada ö\nada@example.org"


async def test_of_two_renames_to_one_name_exactly_one_wins(root: Client, ada: Client) -> None:
    elsewhere, _ = await create(root, address="x@elsewhere.example")
    keys = [ada.user.id, global_ids.decode("User", elsewhere["id"])]
    answers = await asyncio.gather(*(change(root, key, username="ra.ce") for key in keys))
    assert sorted(len(errors) for _, errors in answers) == [0, 1]
    ((error,),) = [errors for _, errors in answers if errors]
    assert (error["code"], error["path"]) == ("CONFLICT", ["set", "username"])


async def test_quotas_obey_the_domain_and_never_drift(
    root: Client, ada: Client, bob: Client
) -> None:
    async def given(quota: Any, *who: Client) -> Any:
        users, errors = await change(root, *who, quota=quota)
        await examine(root.world)
        return (
            (errors[0]["limit"], errors[0]["used"])
            if errors
            else users[0]["limits"]["quota"]["allowed"]
        )

    assert await given("3 GiB", ada) == 3 * GIB
    assert await given(None, ada) == GIB
    await set_domain_columns(root.world, quota=4 * GIB, max_user_quota=3 * GIB)
    assert await given(3 * GIB, ada) == 3 * GIB  # at the edge
    assert await given(GIB + 1, bob) == (4 * GIB, 4 * GIB)
    assert await given(3 * GIB + 1, ada) == (3 * GIB, 3 * GIB + 1)
    assert await given(0, ada) == (3 * GIB, 0)
    assert await given(2 * GIB, ada, bob) == 2 * GIB
    assert await given(2 * GIB + 1, ada, bob) == (4 * GIB, 4 * GIB)
    await set_domain_columns(root.world, quota=GIB, max_user_quota=0)  # less than is given away
    assert await given(GIB, ada) == GIB  # but less than before
    assert await given(GIB + 1, ada) == (GIB, 3 * GIB)
    await set_domain_columns(root.world, quota=0)
    assert await given(0, ada) == 0
    many = [asyncio.create_task(given(n * 1000, ada if n % 2 else bob)) for n in range(1, 9)]
    await asyncio.gather(*many)


async def test_changing_a_limit_begins_to_count_afresh(
    root: Client, ada: Client, bob: Client
) -> None:
    until = root.world.now() + timedelta(hours=1)
    async with root.world.write_session() as session:
        for who in (ada, bob):
            kind = UsageKind.RECIPIENTS  # all others are counted in the account's row
            session.add(Usage(user_id=who.user.id, kind=kind, used=3, until=until))

    async def left() -> set[tuple[int, str]]:
        return set(await rows(root.world, "SELECT user_id, kind FROM usages"))

    everything = await left()
    assert (await change(root, ada, recipients=5))[1] == []
    assert everything - await left() == {(ada.user.id, "RECIPIENTS")}
    assert (await change(root, ada, bob, receivedMax=5, recipients=5))[1] == []
    assert await left() == {(bob.user.id, "RECIPIENTS")} - {(bob.user.id, "RECIPIENTS")}
    assert (await row_of(root.world, bob)).received_max == 5


# Who may change what.
OWN: dict[str, Any] = {
    "name": "N",
    "language": "fr",
    "retention": "P2D",
    "metaData": {"x": 1},
    "pubKey": None,
    "encryptMessages": False,
    "spamLevel": 20,
    "tlsEnforceIn": True,
    "tlsEnforceOut": True,
    "uploadSentMessages": True,
    "targets": ["x@far.example"],
    "encryptForwarded": False,
    "delimiterAction": "SUBJECT",
}
OTHERS: dict[str, Any] = {
    "username": "other",
    "requirePasswordChange": True,
    "disabled": True,
    "suspended": True,
    "tags": ["t"],
    "internalData": {"y": 1},
    "fromWhitelist": ["*"],
    "disabledScopes": ["IMAP"],
    "quota": 7,
    "recipients": 0,
    "forwards": 0,
    "receivedMax": 0,
    "smtpAllowedNetworks": ["192.0.2.0/24"],
    "webmailAccess": False,
}


async def test_a_user_changes_some_things_and_no_others(ada: Client) -> None:
    for name, value in OWN.items():
        assert (await change(ada, **{name: value}))[1] == [], name
    before = await row_of(ada.world, ada)
    for name, value in OTHERS.items():
        users, (error,) = await change(ada, name="X", **{name: value})
        assert (users, error["code"], error["requires"]) == ([], "FORBIDDEN", "DOMAIN_ADMIN"), name
        assert error["path"] == ["set", name]
    _, (error,) = await change(ada, password=LEGACY_HASHES[0][1], hashedPassword=True)
    assert error["requires"] == "DOMAIN_ADMIN"
    assert await row_of(ada.world, ada) == before
    assert (await run(ada, "userPermissionsSet", users={"usernames": ["ada"]}, permissions=[]))[
        "errors"
    ][0]["requires"]


async def test_every_field_of_a_patch_is_judged(root: Client) -> None:
    answer = await root('{ __type(name: "UserPatch") { inputFields { name } } }')
    named = {one["name"] for one in answer["__type"]["inputFields"]}
    words = {"password", "passwordDisabled", "hashedPassword", "allowUnsafe", "disable2fa"}
    assert named == {*OWN, *OTHERS, *words}


async def test_what_a_user_may_no_longer(root: Client, ada: Client) -> None:
    given = await run(root, "userPermissionsSet", users={"ids": [id_of(ada)]}, permissions=[])
    assert given["errors"] == []
    _, (error,) = await change(ada, spamLevel=1)
    assert (error["requires"], error["path"]) == ("SPAM_SCORE", ["set", "spamLevel"])


async def test_a_key_for_settings_reaches_ones_own_only(root: Client, ada: Client) -> None:
    async def with_scope(who: Client, scope: Scope) -> Client:
        name = f"{who.user.username}{scope}"
        secret = await make_key(
            root.world, name, user_id=who.user.id, role=who.user.role, scopes=[scope]
        )
        return Client(root.http, root.world, who.user, secret)

    boss = await make_client(root.world, root.http, "boss", role=Role.ADMIN)
    narrow = await with_scope(boss, Scope.SETTINGS)
    assert (await change(narrow, name="B"))[1] == []
    for who, given in ((ada, {"name": "X"}), (boss, {"quota": 0}), (boss, {"password": NEW})):
        _, (error,) = await change(narrow, who, **given)
        assert error["requires"] == "MASTER"
    _, (error,) = await change(await with_scope(boss, Scope.MAIL), name="B")
    assert error["requires"] == "SETTINGS"


async def test_others_see_and_change_nothing(root: Client, ada: Client, bob: Client) -> None:
    far, _ = await create(root, address="x@elsewhere.example", tags=["t"])
    key = global_ids.decode("User", far["id"])
    boss = await chief(root, *AdminPermission)
    before = await row_of(root.world, key), await row_of(root.world, bob)
    texts = set()
    for client, target in (
        (ada, bob.user.id),
        (ada, key),
        (ada, 12345),
        (boss, key),
        (boss, 12345),
    ):
        users, (error,) = await change(client, target, name="X")
        texts.add((error["code"], error["message"], *error["path"]))
        assert users == []
    assert texts == {("NOT_FOUND", "no such object", "users", "ids")}
    for chosen in ({"usernames": ["x@elsewhere.example"]}, {"usernames": ["nobody"]}):
        answer = await boss(UPDATE, input={"users": chosen, "set": {"name": "X"}})
        assert answer["userUpdate"]["errors"][0]["code"] == "NOT_FOUND"
    for chosen in ({"domains": ["elsewhere.example"]}, {"masks": ["x*"]}, {"tags": ["t"]}):
        answer = await boss(UPDATE, input={"users": chosen, "set": {"name": "X"}})
        assert answer["userUpdate"] == {"users": [], "errors": []}
    answer = await boss(UPDATE, input={"users": {"all": True}, "set": {"name": "X"}})
    assert answer["userUpdate"]["errors"][0]["requires"] == "ADMIN"
    assert (await row_of(root.world, key), await row_of(root.world, bob)) == before


async def test_a_domain_admin_changes_users_of_the_domain_and_nobody_above(
    root: Client, ada: Client
) -> None:
    boss = await chief(root, *AdminPermission)
    given = {**OTHERS, "fromWhitelist": ["x@example.org"], "quota": 0, "disabled": False}
    (user,), errors = await change(boss, ada, **given)
    assert (errors, user["username"], user["limits"]["quota"]["allowed"]) == ([], "other", 0)
    assert (await change(boss, ada, password=NEW))[1] == []
    for role in (Role.DOMAIN_ADMIN, Role.ADMIN, Role.ROOT):
        other = await make_client(root.world, root.http, f"o{role.lower()}", role=role)
        for more in ({"name": "X"}, {"password": NEW}, {"disabled": True}):
            users, (error,) = await change(boss, other, **more)
            assert (users, error["code"], error["requires"]) == ([], "FORBIDDEN", role)
    admin = await make_client(root.world, root.http, "admin2", role=Role.ADMIN)
    _, (error,) = await change(admin, other, password=NEW)  # a ROOT
    assert error["requires"] == "ROOT"
    _, (error,) = await change(boss, ada, fromWhitelist=["*"])
    assert (error["requires"], error["path"]) == ("ADMIN", ["set", "fromWhitelist"])


@pytest.mark.usefixtures("ada")
async def test_a_domain_admin_who_lives_elsewhere_is_a_user_there(root: Client) -> None:
    await create(root, address="x@elsewhere.example")
    boss = await chief(root, *AdminPermission, domain="elsewhere.example")
    assert (await change(boss, name="Me"))[1] == []
    for name, value in OTHERS.items():
        _, (error,) = await change(boss, **{name: value})
        assert error["requires"] == "ADMIN", name


# What the fields do.
SEND = """mutation ($input: MessageSendInput!) {
  messageSend(input: $input) { submission { id } errors { code path message } } }"""


@pytest.mark.usefixtures("bob")
async def test_further_senders_may_be_sent_as(root: Client, ada: Client) -> None:
    async def sends(address: str, **more: Any) -> bool:
        given = {"from": {"address": address}, "to": [{"address": "c@x.example"}], "text": "Hi"}
        answer = (await ada(SEND, input={**given, **more}))["messageSend"]
        assert [one["code"] for one in answer["errors"]] in ([], ["FORBIDDEN_OPERATION"])
        return not answer["errors"]

    cases = {
        "bob@example.org": (["Bob@EXAMPLE.org"], "bob@example.org", "bobby@example.org"),
        "domain": (["other.example"], "any.body@other.example", "x@sub.other.example"),
        "idn": (["xn--bcher-kva.example"], "x@bücher.example", "x@bucher.example"),
        "suffix": (["*@other.example"], "x@OTHER.example", "x@another.example"),
        "sub": (["*.other.example"], "x@a.other.example", "x@other.example"),
        "prefix": (["news*"], "news-1@any.example", "x@news.example"),
        "all": (["*"], "who@ever.example", None),
    }
    for patterns, good, bad in cases.values():
        assert not await sends(good)
        assert (await change(root, ada, fromWhitelist=patterns))[1] == []
        assert await sends(good), patterns
        assert bad is None or not await sends(bad), patterns
        envelope = {"from": {"address": good}, "to": [{"address": "c@x.example"}]}
        assert await sends("ada@example.org", envelope=envelope)
        assert (await change(root, ada, fromWhitelist=None))[1] == []
    assert not await sends("bob@example.org")


async def test_spam_policies(root: Client, ada: Client, bob: Client) -> None:
    fields = "users { spam { level junkScore rejectScore } }"
    answer = await run(ada, "spamPolicySet", fields, level=10, junkScore=4.5)
    assert answer == {
        "users": [{"spam": {"level": 10, "junkScore": 4.5, "rejectScore": 15}}],
        "errors": [],
    }
    answer = await run(ada, "spamPolicySet", fields, level=None, junkScore=None, rejectScore=8)
    assert answer["users"] == [{"spam": {"level": 50, "junkScore": 8, "rejectScore": 8}}]
    both = {"ids": [id_of(ada), id_of(bob)]}
    for given, path in (
        ({"junkScore": 9}, "rejectScore"),  # ada's is 8
        ({"junkScore": 0}, "junkScore"),
        ({"rejectScore": -1}, "rejectScore"),
        ({"rejectScore": 1e308}, "rejectScore"),
        ({"level": 101}, "level"),
        ({}, "level"),
    ):
        answer = await run(root, "spamPolicySet", fields, users=both, **given)
        assert (answer["users"], answer["errors"][0]["path"]) == ([], [path])
    answer = await run(root, "spamPolicySet", fields, users=both, junkScore=7)
    assert [user["spam"]["junkScore"] for user in answer["users"]] == [7, 7]
    assert (
        len(await rows(root.world, "SELECT id FROM admin_log WHERE mutation = 'spamPolicySet'"))
        == 2
    )
    answer = await run(ada, "spamPolicySet", users={"ids": [id_of(bob)]}, level=1)
    assert answer["errors"][0]["code"] == "NOT_FOUND"
    boss = await chief(root)
    answer = await run(boss, "spamPolicySet", users={"ids": [id_of(bob)]}, level=1)
    assert answer["errors"][0]["requires"] == "SPAM_POLICY"
