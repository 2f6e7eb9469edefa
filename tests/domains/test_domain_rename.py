"""Giving a domain another name: what follows, what is in the way, and who else is at work."""

import asyncio
import contextlib
from typing import Any

import pytest
from sqlalchemy import insert, update
from sqlmodel import col

from mail.recipients import address_resolution
from mail.storage import received_messages
from models.addresses.tables import Address, AddressKind
from models.domains.tables import Domain
from models.errors import NotFound
from models.events.journal import PLATFORM, ChangeKind, Stream
from models.runtime.environment import Environment
from models.store.columns import core_table
from models.users.search_index import search_text
from models.users.tables import User
from tests.conftest import Client, raw_message
from tests.support.accounts.address_rows import add_addresses
from tests.support.operations.domain_operations import (
    ALIAS,
    RENAME,
    UNLIMITED,
    done,
    key_of,
    live,
    made,
    of,
)
from tests.support.stores.counter_check import examine, journal, reached, rows

OLD, NEW = "old.example", "new.example"


async def renamed(client: Client, old: str = OLD, new: str = NEW, **more: Any) -> tuple[Any, Any]:
    return await done(client, RENAME, oldDomain=old, newDomain=new, **more)


async def called(world: Environment) -> dict[int, tuple[Any, ...]]:
    """User name, as shown and as compared, and words of all accounts."""
    found = await rows(world, "SELECT id, username, username_key, words FROM users")
    return {row[0]: row[1:] for row in found}


@pytest.fixture
async def town(root: Client, ada: Client, world: Environment) -> dict[str, int]:
    """Accounts of the old domain, and one of another that has an address there."""
    await made(root, OLD, **UNLIMITED)
    await done(root, ALIAS, alias="also.example", domain=OLD)
    eve = await live(world, "e.ve@old.example", name="Eve @old.example")
    dan = await live(world, "dan", address="D.an@Old.Example")
    await add_addresses(world, "ada@old.example", "*@old.example", user_id=ada.user.id)
    await add_addresses(world, "list@old.example", kind=AddressKind.FORWARD)
    async with world.write_session() as session:
        here = col(Domain.name) == OLD
        await session.exec(
            update(Domain).where(here).values(address_count=Domain.address_count + 3)
        )
    return {"eve": eve.id, "dan": dan.id, "ada": ada.user.id}


async def test_names_follow_from_a_domain_in_unicode_too(
    root: Client, town: dict[str, int], world: Environment
) -> None:
    assert (await renamed(root, new="bücher.example"))[1] == []
    answer, errors = await renamed(root, old="bücher.example", new="back.example")
    assert (errors, answer["usersUpdated"]) == ([], 2)
    name = "e.ve@back.example"
    words = search_text(name, "Eve @old.example", name)
    assert (await called(world))[town["eve"]] == (name, "eve@back.example", words)


async def test_all_that_is_called_after_it_follows(
    root: Client, town: dict[str, int], world: Environment
) -> None:
    key = await key_of(world, OLD)
    streams = {name: await reached(world, id_) for name, id_ in town.items()}
    at, all_ = await reached(world, key), await reached(world, PLATFORM)
    answer, errors = await renamed(root, new="XN--Bcher-KVA.example")
    assert errors == []
    assert answer["domain"]["name"] == "bücher.example"
    counts = [answer[f"{name}Updated"] for name in ("addresses", "users", "domainAliases")]
    assert counts == [5, 2, 1]

    found = await called(world)
    name = "e.ve@xn--bcher-kva.example"
    words = search_text(name, "Eve @old.example", "e.ve@bücher.example")
    assert found[town["eve"]] == (name, "eve@bücher.example", words)
    assert found[town["dan"]] == ("dan", "dan", search_text("dan", None, "D.an@bücher.example"))
    assert found[town["ada"]][0] == "ada"
    shown = await rows(world, "SELECT shown FROM addresses WHERE domain_id = :k", k=key)
    assert sorted(one for (one,) in shown) == [
        "*@bücher.example",
        "D.an@bücher.example",
        "ada@bücher.example",
        "e.ve@bücher.example",
        "list@bücher.example",
    ]
    for login in ("E.ve@bücher.example", "eve@xn--bcher-kva.example", "d.an@also.example", "dan"):
        assert await address_resolution.find_sign_in_user(world, login) in (
            town["eve"],
            town["dan"],
        ), login
    assert await address_resolution.find_sign_in_user(world, "eve@old.example") is None

    own = await journal(world, key, at)
    assert own == [
        (ChangeKind.USER_CHANGED, [town["eve"], town["dan"]]),
        (ChangeKind.DOMAIN_CHANGED, [key]),
    ]
    (unowned, domain) = await journal(world, PLATFORM, all_)
    assert (unowned[0], len(unowned[1])) == (ChangeKind.ADDRESS_CHANGED, 1)
    assert domain == (ChangeKind.DOMAIN_CHANGED, [key])
    for who, many in (("eve", 1), ("dan", 1), ("ada", 2)):
        ((kind, changed),) = await journal(world, town[who], streams[who])
        assert (kind, len(changed)) == (ChangeKind.ADDRESS_CHANGED, many)
    asked = "SELECT target_id, domain_id FROM admin_log WHERE mutation = 'domainRename'"
    assert await rows(world, asked) == [(key, key)]
    await examine(world)


async def test_there_and_back_is_as_it_was(
    root: Client, town: dict[str, int], world: Environment
) -> None:
    tables = "SELECT id, shown, local FROM addresses ORDER BY id"
    before = await called(world), await rows(world, tables)
    for old, new in ((OLD, "straße.example"), ("STRASSE.example", NEW)):
        _, errors = await renamed(root, old, new)
        if old == OLD:
            assert errors == []
        else:  # another name: ß is a letter of its own
            assert errors[0]["code"] == "NOT_FOUND"
    _, errors = await renamed(root, "straße.example", OLD)
    assert errors == []
    assert (await called(world), await rows(world, tables)) == before
    assert town


async def test_a_dry_run_lists_all_that_is_in_the_way_and_changes_nothing(
    root: Client, town: dict[str, int], world: Environment
) -> None:
    await made(root, NEW, **UNLIMITED)
    await live(world, "E.v.e@new.example", address="other@example.org")
    long = f"{'a' * 63}.{'b' * 40}.example"
    before = await called(world), await rows(world, "SELECT * FROM changes")
    for options in ({"validateOnly": True}, {}):
        answer, errors = await renamed(root, options=options)
        assert (answer["domain"], answer["usersUpdated"]) == (None, 0)
        assert [error["code"] for error in errors] == ["CONFLICT", "CONFLICT"]
        assert "is a domain" in errors[0]["message"]
        assert "e.ve@old.example" in errors[1]["message"]
        assert {error["path"][0] for error in errors} == {"newDomain"}
        _, errors = await renamed(root, new="also.example", options=options)
        assert [error["code"] for error in errors] == ["CONFLICT"]
        assert "alias" in errors[0]["message"]
        _, errors = await renamed(root, new=f"{long}.{long}", options=options)
        assert errors[0]["constraint"] == "length"
        for old, new, constraint in (
            (OLD, "OLD.example.", "same"),
            (OLD, "a b", "domain"),
            (OLD, "eve@x.example", "domain"),
        ):
            _, (error,) = await renamed(root, old, new, options=options)
            assert (error["code"], error["constraint"]) == ("VALIDATION", constraint)
        for old in ("nowhere.example", "also.example"):  # no alias names the domain
            _, (error,) = await renamed(root, old, "x.example", options=options)
            assert (error["code"], error["path"]) == ("NOT_FOUND", ["oldDomain"])
    assert (await called(world), await rows(world, "SELECT * FROM changes")) == before
    answer, errors = await renamed(root, new="fine.example", options={"validateOnly": True})
    assert errors == []
    assert (await called(world), await rows(world, "SELECT * FROM changes")) == before
    assert town


async def crowd(world: Environment, many: int) -> None:
    """Many accounts of the old domain, each with an address, put there by hand."""
    key, at = await key_of(world, OLD), world.now()
    keys = [world.new_id() for _ in range(many)]
    common: dict[str, Any] = {"created_at": at, "updated_at": at}
    people = [
        User(
            id=user,
            username=f"u{nth}@old.example",
            username_key=f"u{nth}@old.example",
            words=search_text(f"u{nth}@old.example", None, f"u{nth}@old.example"),
            domain_id=key,
            tenant_id=key,
            **common,
        ).model_dump()
        for nth, user in enumerate(keys)
    ]
    places = [
        Address(
            id=world.new_id(),
            local=f"u{nth}",
            domain_id=key,
            shown=f"u{nth}@old.example",
            user_id=user,
            main=True,
            **common,
        ).model_dump()
        for nth, user in enumerate(keys)
    ]
    async with world.write_session() as session:
        connection = await session.connection()
        await connection.execute(insert(core_table(User)), people)
        await connection.execute(
            insert(core_table(Stream)), [{"id": user, "last": 0, "gone": 0} for user in keys]
        )
        await connection.execute(insert(core_table(Address)), places)


async def test_many_accounts_cost_no_more_statements_than_one(
    root: Client, world: Environment, statements: list[str]
) -> None:
    await made(root, OLD, **UNLIMITED)
    await live(world, "eve@old.example")

    async def cost(old: str, new: str) -> tuple[int, Any]:
        del statements[:]
        answer, errors = await renamed(root, old, new)
        assert errors == []
        return len([sent for sent in statements if "api_keys" not in sent]), answer

    few, answer = await cost(OLD, NEW)
    assert (answer["usersUpdated"], answer["journalCursor"][:2]) == (1, "1.")
    await cost(NEW, OLD)
    await crowd(world, 3000)
    many, answer = await cost(OLD, NEW)
    assert (many, answer["usersUpdated"], answer["addressesUpdated"]) == (few, 3001, 3001)
    assert answer["journalCursor"] is None  # of so many accounts it would be longer than any mail
    key = await key_of(world, NEW)
    told = [len(ids) for kind, ids in await journal(world, key) if kind == "USER_CHANGED"]
    assert (sum(told), told[-1]) == (1 + 1 + 1 + 3001, 1)  # rows of a thousand at most
    asked = "SELECT count(*) FROM users WHERE words LIKE '%old.example%'"
    assert await rows(world, asked) == [(0,)]


async def test_two_renamings_at_once_have_one_winner(root: Client, world: Environment) -> None:
    await made(root, OLD, **UNLIMITED)
    await made(root, "another.example", **UNLIMITED)
    outcomes = await asyncio.gather(
        renamed(root), renamed(root, "another.example"), renamed(root, new="x.example")
    )
    first, other, third = (not errors for _, errors in outcomes)
    assert first is not third
    assert other is third
    names = {name for (name,) in await rows(world, "SELECT name FROM domains")}
    assert names == ({NEW, "another.example"} if first else {NEW, "x.example"})


async def test_a_user_that_comes_while_it_is_renamed_is_of_one_domain(
    root: Client, world: Environment
) -> None:
    await made(root, OLD, **UNLIMITED)
    tries: list[Any] = [live(world, f"u{n}@old.example") for n in range(6)]
    tries.insert(3, renamed(root))
    outcomes = await asyncio.gather(*tries, return_exceptions=True)
    assert {type(one) for one in outcomes} <= {User, NotFound, tuple}
    sql = """SELECT a.shown, d.name, u.username FROM addresses a
        JOIN domains d ON d.id = a.domain_id JOIN users u ON u.id = a.user_id"""
    for shown, name, username in await rows(world, sql):
        assert shown == username
        assert shown.endswith(f"@{name}")
    await examine(world)


async def test_mail_that_comes_while_it_is_renamed_is_not_lost(
    root: Client, world: Environment
) -> None:
    await made(root, OLD, **UNLIMITED)
    eve = await live(world, "eve@old.example")
    taken: list[int] = []
    over = asyncio.Event()

    async def deliver(nth: int) -> None:
        """As LMTP does: who it is for is settled at RCPT, and stored at DATA."""
        to = None
        while to is None:
            for name in (OLD, NEW):
                with contextlib.suppress(NotFound):
                    to = await address_resolution.load_recipient(world, f"eve@{name}")
        letter = await received_messages.read_message(raw_message(f"number {nth}"))
        placed = await received_messages.store_for_recipient(world, letter, to, "carol@example.com")
        taken.append(placed.message_id)

    async def rename() -> None:
        for old, new in ((OLD, NEW), (NEW, OLD), (OLD, NEW)):
            await asyncio.sleep(0.02)
            _, errors = await renamed(root, old, new)
            assert errors == []
        over.set()

    async def stream() -> None:
        nth = 0
        while not over.is_set() or nth < 10:
            nth += 1
            await deliver(nth)

    await asyncio.gather(rename(), stream())
    stored = await rows(world, "SELECT id FROM messages WHERE user_id = :k", k=eve.id)
    assert sorted(taken) == sorted(key for (key,) in stored)
    assert len(taken) >= 10
    assert (await of(root, NEW))["storage"]["messages"] == len(taken)
    await examine(world)
