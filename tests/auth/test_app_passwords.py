"""Application passwords: made, found by one hash, used, ended."""

import asyncio
import re
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import select, text
from sqlmodel import col

from models.admin.admin_log import AdminLogEntry
from models.auth.application_passwords import ApplicationPassword
from models.auth.security_log import SecurityEvent
from models.errors import Forbidden, LimitReached, NotFound, RequestError
from models.runtime.environment import Environment
from models.store.columns import core_table
from models.users.roles import AdminPermission, Role, Scope, UserPermission
from resolvers.auth import app_passwords
from resolvers.auth.app_passwords import AppPasswordPatch, AppPasswordScope, NewAppPassword
from resolvers.auth.passwords import password_hashes
from resolvers.context import Context, Viewer
from tests.conftest import Client, Clock, context, make_client
from tests.support.accounts.two_factor_operations import admin_of, all_of, ask, codes

GIVEN = "qwmzrtpkvbnhjdfg"
SHOWN = "appPassword { id description scopes active lastUse { at } createdAt updatedAt expiresAt }"
LIST = "query ($all: Boolean!) { user { appPasswords(showAll: $all) { description } } }"


async def make(client: Client, **given: Any) -> Any:
    done = await ask(
        client, "appPasswordCreate", f"{SHOWN} password", **{"description": "Phone", **given}
    )
    assert done["errors"] == [], done
    return done


async def found(world: Environment, client: Client, password: str) -> Any:
    return await app_passwords.find_app_password(world, client.user.id, password)


async def use(client: Client, row: Any, ip: str = "192.0.2.9") -> bool:
    ctx = Context(client.world, Viewer(), client_ip=ip)
    async with ctx.write_session(client.user.id) as session:
        return await app_passwords.record_use(ctx, session, row)


async def test_a_password_is_made_and_found(ada: Client) -> None:
    done = await make(ada)
    assert re.fullmatch(r"[a-z]{16}", done["password"])
    shown = done["appPassword"]
    assert (shown["scopes"], shown["active"], shown["lastUse"]) == (["ALL"], True, None)
    for typed in (
        done["password"],
        done["password"].upper(),
        " ".join(done["password"][n : n + 4] for n in range(0, 16, 4)),
        f"\t{done['password']}\n",
    ):
        assert (await found(ada.world, ada, typed)).description == "Phone"
    for wrong in (done["password"][:-1], done["password"] + "a", "", "x" * 10_000, "ß" * 8):
        assert await found(ada.world, ada, wrong) is None


async def test_the_store_keeps_no_password(ada: Client) -> None:
    done = await make(ada)
    (row,) = await all_of(ada.world, ApplicationPassword)
    assert done["password"] not in repr(row)
    assert row.password.startswith("$argon2id$")
    assert len(row.selector) == 5


async def test_exactly_one_hash_is_checked_whatever_is_typed(
    ada: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = await make(ada)
    for n in range(5):
        await make(ada, description=str(n))
    checked: list[bool] = []
    real = password_hashes.check_password

    async def counted(world: Environment, stored: str | None, password: str) -> bool:
        checked.append(stored is not None)
        return await real(world, stored, password)

    monkeypatch.setattr(password_hashes, "check_password", counted)
    for typed, hit in ((done["password"], True), (GIVEN, False), ("correct horse", False)):
        del checked[:]
        await found(ada.world, ada, typed)
        assert checked == [hit]


async def test_it_is_found_by_an_index(ada: Client) -> None:
    asked = select(col(ApplicationPassword.id)).where(
        col(ApplicationPassword.user_id) == 7, col(ApplicationPassword.selector) == "abcde"
    )
    engine = ada.world.database.engine
    sql = str(asked.compile(engine, compile_kwargs={"literal_binds": True}))
    async with ada.world.database.write_session() as session:
        connection = await session.connection()
        if ada.world.database.dialect == "sqlite":
            rows = await connection.execute(text(f"EXPLAIN QUERY PLAN {sql}"))
        else:
            await connection.execute(text("SET LOCAL enable_seqscan = off"))
            rows = await connection.execute(text(f"EXPLAIN {sql}"))
        plan = " ".join(str(row) for row in rows)
    assert "uq_app_passwords_selector" in plan


async def test_a_password_may_be_brought_along(ada: Client) -> None:
    assert (await make(ada, password=GIVEN))["password"] == GIVEN
    assert await found(ada.world, ada, GIVEN)
    again = await codes(ada, "appPasswordCreate", description="x", password=GIVEN)
    assert again == ["CONFLICT"]


@pytest.mark.parametrize(
    "password",
    ["", "short", GIVEN.upper(), f"{GIVEN}a", "qwmz rtpk vbnh jdfg", "qwmzrtpkvbnhjdf1", "ä" * 16,
     "a" * 16, "abababababababab", "passwordpassword", "abcdefghijklmnop", "zyxwvutsrqponmlk",
     "aaabbbcccdddeeea", "x" * 10_000],
)  # fmt: skip
async def test_a_bad_or_weak_password_is_refused(ada: Client, password: str) -> None:
    done = await ask(ada, "appPasswordCreate", description="x", password=password)
    assert [(e["code"], e["path"]) for e in done["errors"]] == [("VALIDATION", ["password"])]


@pytest.mark.parametrize("description", ["", "  ", "x" * 256, "a\nb", "x" * 10_000])
async def test_a_description_says_something(ada: Client, description: str) -> None:
    done = await ask(ada, "appPasswordCreate", description=description)
    assert [(e["code"], e["path"]) for e in done["errors"]] == [("VALIDATION", ["description"])]


SINGLE = ["IMAP", "POP3", "SMTP", "SIEVE", "MAIL_READ", "MAIL", "SUBMIT"]


@pytest.mark.parametrize(
    ("scopes", "kept"),
    [
        (["SMTP", "IMAP", "IMAP"], ["IMAP", "SMTP"]),
        (["ALL"], ["ALL"]),
        (["IMAP", "ALL"], ["ALL"]),
        (SINGLE, ["ALL"]),
        (["IMAP", "POP3", "SMTP"], ["IMAP", "POP3", "SMTP"]),  # which ALL is more than
    ],
)
async def test_scopes_collapse(ada: Client, scopes: list[str], kept: list[str]) -> None:
    assert (await make(ada, scopes=scopes))["appPassword"]["scopes"] == kept


async def test_no_scope_is_refused(ada: Client) -> None:
    done = await ask(ada, "appPasswordCreate", description="x", scopes=[])
    assert [(e["code"], e["path"]) for e in done["errors"]] == [("VALIDATION", ["scopes"])]


def test_no_password_is_good_for_master() -> None:
    assert app_passwords.opened_scopes(["ALL"]) == {Scope(name) for name in SINGLE}
    assert app_passwords.opened_scopes(["MAIL"]) == {Scope.MAIL, Scope.MAIL_READ}
    assert app_passwords.opened_scopes(["IMAP"]) == {Scope.IMAP}
    names = [each.value for each in AppPasswordScope]
    assert not {Scope.MASTER, Scope.READ, Scope.SETTINGS} & app_passwords.opened_scopes(names)


async def test_a_use_is_noted_and_puts_the_end_off(ada: Client, clock: Clock) -> None:
    done = await make(ada, ttl="PT1H")
    end = clock() + timedelta(hours=1)
    assert done["appPassword"]["expiresAt"] == end.isoformat().replace("+00:00", "Z")
    clock.tick(minutes=50)
    row = await found(ada.world, ada, done["password"])
    assert await use(ada, row)
    (kept,) = await all_of(ada.world, ApplicationPassword)
    assert (kept.last_used_at, kept.last_used_ip) == (clock(), "192.0.2.9")
    clock.tick(minutes=59)
    assert await found(ada.world, ada, done["password"])
    clock.tick(minutes=1)
    assert await found(ada.world, ada, done["password"]) is None
    assert not await use(ada, row)
    text_ = "query ($id: ID!) { node(id: $id) { id } }"
    assert (await ada(text_, id=done["appPassword"]["id"]))["node"] is None


async def test_the_last_use_is_shown(ada: Client, clock: Clock) -> None:
    done = await make(ada)
    await use(ada, await found(ada.world, ada, done["password"]))
    text_ = "{ user { appPasswords { lastUse { at event { action } } } } }"
    (shown,) = (await ada(text_))["user"]["appPasswords"]
    at = clock().isoformat().replace("+00:00", "Z")
    assert shown == {"lastUse": {"at": at, "event": None}}

    sign_in = """mutation ($password: String!) { authenticate(input: {
        username: "ada", password: $password, scope: IMAP}) { errors { code } } }"""
    signed = await ada(sign_in, password=done["password"])
    assert signed["authenticate"]["errors"] == []
    (shown,) = (await ada(text_))["user"]["appPasswords"]
    assert shown == {"lastUse": {"at": at, "event": {"action": "authenticate"}}}


async def test_what_has_ended_is_tidied_away(ada: Client, clock: Clock) -> None:
    from mail.maintenance.housekeeping import run_round

    await make(ada, ttl="PT1H")
    await make(ada)
    clock.tick(hours=1)
    assert (await run_round(ada.world)).app_passwords == 1
    assert len(await all_of(ada.world, ApplicationPassword)) == 1


@pytest.mark.parametrize("ttl", ["PT0S", "PT59S", "P3651D", "P999999D"])
async def test_a_ttl_has_its_bounds(ada: Client, ttl: str) -> None:
    done = await ask(ada, "appPasswordCreate", description="x", ttl=ttl)
    assert [(e["code"], e["path"]) for e in done["errors"]] == [("VALIDATION", ["ttl"])]


async def test_those_that_end_are_listed_when_asked_for(ada: Client) -> None:
    await make(ada, description="stays")
    await make(ada, description="ends", ttl="P1D")
    names = [
        [one["description"] for one in (await ada(LIST, all=flag))["user"]["appPasswords"]]
        for flag in (False, True)
    ]
    assert names == [["stays"], ["ends", "stays"]]


async def test_there_is_a_limit(ada: Client, clock: Clock) -> None:
    async with ada.world.write_session() as session:
        session.add_all(
            ApplicationPassword(
                id=ada.world.new_id(),
                user_id=ada.user.id,
                description="x",
                selector=f"{n:05x}",
                password="x",  # noqa: S106
                scopes=["ALL"],
                created_at=clock(),
                expires_at=clock() + timedelta(hours=1) if n < 2 else None,
            )
            for n in range(49)
        )
    new = NewAppPassword("Phone")

    async def tried() -> bool:
        try:
            await app_passwords.create_app_password(context(ada), None, new)
        except LimitReached as refusal:
            return (refusal.limit, refusal.used) != (50, 50)
        return True

    assert sum(await asyncio.gather(*(tried() for _ in range(4)))) == 1
    clock.tick(hours=1)
    assert [await tried(), await tried(), await tried()] == [True, True, False]


async def test_a_password_is_changed(ada: Client) -> None:
    done = await make(ada)
    key, password = done["appPassword"]["id"], done["password"]
    payload = "appPasswords { description scopes active updatedAt }"
    given = {"ids": [key], "description": "Tablet", "scopes": ["IMAP"], "active": False}
    (shown,) = (await ask(ada, "appPasswordUpdate", payload, **given))["appPasswords"]
    assert shown["updatedAt"]
    assert (shown["description"], shown["scopes"], shown["active"]) == ("Tablet", ["IMAP"], False)
    assert await found(ada.world, ada, password) is None
    assert await codes(ada, "appPasswordUpdate", ids=[key], active=True) == []
    assert await found(ada.world, ada, password)
    assert await codes(ada, "appPasswordUpdate", ids=[key]) == ["VALIDATION"]
    assert await codes(ada, "appPasswordUpdate", ids=["app_x"], active=True) == ["VALIDATION"]


async def test_one_that_was_switched_off_since_it_was_found_is_not_used(ada: Client) -> None:
    done = await make(ada)
    row = await found(ada.world, ada, done["password"])
    await app_passwords.update_app_passwords(context(ada), [row.id], AppPasswordPatch(active=False))
    assert not await use(ada, row)


async def test_deleted_ones_stay_legible_in_the_log(ada: Client) -> None:
    done = await make(ada, description="Old phone")
    key = done["appPassword"]["id"]
    assert (await ask(ada, "appPasswordDelete", "deletedIds", ids=[key]))["deletedIds"] == [key]
    assert await codes(ada, "appPasswordDelete", ids=[key]) == ["NOT_FOUND"]
    events = {row.action: row.detail for row in await all_of(ada.world, SecurityEvent)}
    for action in ("app password create", "app password delete"):
        assert events[action]["description"] == "Old phone"


async def test_others_see_and_change_nothing(ada: Client, bob: Client, root: Client) -> None:
    key = (await make(ada))["appPassword"]["id"]
    mine = (await make(bob))["appPassword"]["id"]
    user = {"username": "ada"}
    node = "query ($id: ID!) { node(id: $id) { id } }"
    assert (await bob(node, id=key))["node"] is None
    assert await codes(bob, "appPasswordCreate", user=user, description="x") == ["NOT_FOUND"]
    for name, more in (("appPasswordUpdate", {"active": False}), ("appPasswordDelete", {})):
        done = await ask(bob, name, ids=[mine, key], **more)
        assert [(e["code"], e["index"]) for e in done["errors"]] == [("NOT_FOUND", 1)]
    assert all(row.active for row in await all_of(ada.world, ApplicationPassword))
    assert await codes(root, "appPasswordUpdate", ids=[mine, key], active=False) == []
    assert not any(row.active for row in await all_of(ada.world, ApplicationPassword))
    done = {row.mutation for row in await all_of(ada.world, AdminLogEntry)}
    assert done == {"appPasswordUpdate", "userCreate"}


async def test_an_administrator_of_the_domain_needs_the_permission(
    ada: Client, bob: Client
) -> None:
    phone = NewAppPassword("Phone")
    row = (await app_passwords.create_app_password(context(ada), None, phone)).row
    without, with_ = await admin_of(bob), await admin_of(bob, AdminPermission.APP_PASSWDS)
    other = await admin_of(bob, AdminPermission.APP_PASSWDS, domain="elsewhere.example")
    new, off = NewAppPassword("x"), AppPasswordPatch(active=False)
    with pytest.raises(Forbidden) as refusal:
        await app_passwords.create_app_password(without, ada.user.id, new)
    assert refusal.value.requires == AdminPermission.APP_PASSWDS
    for ctx in (without, other):
        assert await app_passwords.load_app_passwords_of_users(ctx, [(ada.user.id, True)]) == [[]]
        assert await app_passwords.load_app_passwords_by_id(ctx, [row.id]) == [None]
        with pytest.raises(NotFound):
            await app_passwords.update_app_passwords(ctx, [row.id], off)
        with pytest.raises(NotFound):
            await app_passwords.delete_app_passwords(ctx, [row.id])
    with pytest.raises(NotFound):
        await app_passwords.create_app_password(other, ada.user.id, new)
    await app_passwords.create_app_password(without, None, new)  # one's own
    await app_passwords.create_app_password(with_, ada.user.id, new)
    assert (
        len((await app_passwords.load_app_passwords_of_users(with_, [(ada.user.id, True)]))[0]) == 2
    )
    await app_passwords.update_app_passwords(with_, [row.id], off)
    boss = await make_client(ada.world, ada.http, "boss", role=Role.ADMIN)
    his = (await app_passwords.create_app_password(context(boss), None, new)).row
    for work in (
        app_passwords.update_app_passwords(with_, [his.id], off),
        app_passwords.create_app_password(with_, boss.user.id, new),
    ):
        with pytest.raises(RequestError):
            await work


async def test_a_user_needs_the_permission(ada: Client) -> None:
    from sqlalchemy import update

    from models.users.tables import User
    from resolvers.auth import authentication

    rest = [one.value for one in UserPermission if one is not UserPermission.APP_PASSWDS]
    async with ada.world.write_session() as session:
        mine = col(User.id) == ada.user.id
        await session.exec(update(User).where(mine).values(permissions=rest))
    authentication.drop_credentials(ada.world, ada.user.id)
    assert await codes(ada, "appPasswordCreate", description="x") == ["FORBIDDEN"]
    assert await codes(ada, "appPasswordDelete", ids=[]) == ["FORBIDDEN"]


async def test_an_unknown_user_is_not_found(root: Client) -> None:
    given = {"user": {"username": "nobody"}, "description": "x"}
    assert await codes(root, "appPasswordCreate", **given) == ["NOT_FOUND"]


async def test_generated_ones_use_every_letter_alike(ada: Client) -> None:
    letters = "".join(app_passwords._generate_password(ada.world) for _ in range(2000))  # noqa: SLF001
    counts = [letters.count(letter) for letter in app_passwords.LETTERS]
    mean = len(letters) / 26
    assert sum((count - mean) ** 2 / mean for count in counts) < 60  # chi², p < 0.0001


async def test_one_statement_finds_it(ada: Client, statements: list[str]) -> None:
    done = await make(ada)
    del statements[:]
    await found(ada.world, ada, done["password"])
    assert len(statements) == 1


async def test_a_repeated_call_makes_one_and_tells_the_password_once(ada: Client) -> None:
    given = {"description": "x", "options": {"idempotencyKey": "once"}}
    first = await ask(ada, "appPasswordCreate", f"password {SHOWN}", **given)
    again = await ask(ada, "appPasswordCreate", f"password {SHOWN}", **given)
    assert again["appPassword"]["id"] == first["appPassword"]["id"]
    assert (bool(first["password"]), again["password"]) == (True, None)


def test_rows_name_no_password() -> None:
    shown = {column.name for column in core_table(ApplicationPassword).c}
    assert shown - app_passwords.VISIBLE_COLUMNS == {"password", "selector"}
