"""Renaming a domain: what changes, what prevents it, and concurrent operations."""

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
from models.events.event_types import USER_EVENT_TYPES, EventType
from models.events.journal import PLATFORM, Stream
from models.runtime.environment import Environment
from models.store.columns import core_table
from models.users.search_index import search_text
from models.users.tables import User
from tests.conftest import GraphQLClient, raw_message
from tests.support.accounts.address_rows import add_addresses
from tests.support.operations.domain_operations import (
    ALIAS_DOMAIN_CREATE,
    DOMAIN_RENAME,
    NO_DOMAIN_LIMITS,
    create_domain,
    load_domain,
    load_domain_id,
    make_domain_user,
    run_mutation,
)
from tests.support.stores.counter_check import (
    assert_store_consistent,
    load_journal_entries,
    load_stream_position,
    select_rows,
)

OLD_DOMAIN, NEW_DOMAIN = "old.example", "new.example"


async def rename_domain(
    client: GraphQLClient, old: str = OLD_DOMAIN, new: str = NEW_DOMAIN, **extra: Any
) -> tuple[Any, Any]:
    return await run_mutation(client, DOMAIN_RENAME, domain={"name": old}, newName=new, **extra)


async def load_user_names(environment: Environment) -> dict[int, tuple[Any, ...]]:
    """Return username, username key and search words of all users by ID."""
    user_rows = await select_rows(
        environment, "SELECT id, username, username_key, words FROM users"
    )
    return {row[0]: row[1:] for row in user_rows}


@pytest.fixture
async def user_ids(
    root: GraphQLClient, ada: GraphQLClient, environment: Environment
) -> dict[str, int]:
    """The IDs of two users of the old domain, and of a user with an address in it."""
    await create_domain(root, OLD_DOMAIN, **NO_DOMAIN_LIMITS)
    await run_mutation(root, ALIAS_DOMAIN_CREATE, alias="also.example", domain={"name": OLD_DOMAIN})
    eve = await make_domain_user(environment, "e.ve@old.example", name="Eve @old.example")
    dan = await make_domain_user(environment, "dan", address="D.an@Old.Example")
    await add_addresses(environment, "ada@old.example", "*@old.example", user_id=ada.user.id)
    await add_addresses(environment, "list@old.example", kind=AddressKind.FORWARD)
    async with environment.write_session() as session:
        is_old_domain = col(Domain.name) == OLD_DOMAIN
        await session.exec(
            update(Domain).where(is_old_domain).values(address_count=Domain.address_count + 3)
        )
    return {"eve": eve.id, "dan": dan.id, "ada": ada.user.id}


async def test_rename_from_unicode_domain_changes_usernames(
    root: GraphQLClient, user_ids: dict[str, int], environment: Environment
) -> None:
    assert (await rename_domain(root, new="bücher.example"))[1] == []
    payload, errors = await rename_domain(root, old="bücher.example", new="back.example")
    assert (errors, payload["userCount"]) == ([], 2)
    name = "e.ve@back.example"
    words = search_text(name, "Eve @old.example", name)
    assert (await load_user_names(environment))[user_ids["eve"]] == (
        name,
        "eve@back.example",
        words,
    )


async def test_rename_changes_all_usernames_and_addresses(
    root: GraphQLClient, user_ids: dict[str, int], environment: Environment
) -> None:
    domain_id = await load_domain_id(environment, OLD_DOMAIN)
    positions = {
        name: await load_stream_position(environment, id_) for name, id_ in user_ids.items()
    }
    domain_position = await load_stream_position(environment, domain_id)
    platform_position = await load_stream_position(environment, PLATFORM)
    payload, errors = await rename_domain(root, new="XN--Bcher-KVA.example")
    assert errors == []
    assert payload["domain"]["name"] == "bücher.example"
    counts = [payload[f"{name}Count"] for name in ("address", "user", "aliasDomain")]
    assert counts == [5, 2, 1]

    names_by_id = await load_user_names(environment)
    name = "e.ve@xn--bcher-kva.example"
    words = search_text(name, "Eve @old.example", "e.ve@bücher.example")
    assert names_by_id[user_ids["eve"]] == (name, "eve@bücher.example", words)
    assert names_by_id[user_ids["dan"]] == (
        "dan",
        "dan",
        search_text("dan", None, "D.an@bücher.example"),
    )
    assert names_by_id[user_ids["ada"]][0] == "ada"
    shown = await select_rows(
        environment, "SELECT display_address FROM addresses WHERE domain_id = :k", k=domain_id
    )
    assert sorted(address for (address,) in shown) == [
        "*@bücher.example",
        "D.an@bücher.example",
        "ada@bücher.example",
        "e.ve@bücher.example",
        "list@bücher.example",
    ]
    for login in ("E.ve@bücher.example", "eve@xn--bcher-kva.example", "d.an@also.example", "dan"):
        assert await address_resolution.find_sign_in_user_id(environment, login) in (
            user_ids["eve"],
            user_ids["dan"],
        ), login
    assert await address_resolution.find_sign_in_user_id(environment, "eve@old.example") is None

    domain_entries = await load_journal_entries(environment, domain_id, domain_position)
    assert domain_entries == [
        (EventType.USER_UPDATED, [user_ids["eve"], user_ids["dan"]]),
        (EventType.DOMAIN_UPDATED, [domain_id]),
    ]
    (address_entry, domain_entry) = await load_journal_entries(
        environment, PLATFORM, platform_position
    )
    assert (address_entry[0], len(address_entry[1])) == (EventType.ADDRESS_UPDATED, 1)
    assert domain_entry == (EventType.DOMAIN_UPDATED, [domain_id])
    for owner, change_count in (("eve", 1), ("dan", 1), ("ada", 2)):
        ((kind, changed),) = await load_journal_entries(
            environment, user_ids[owner], positions[owner]
        )
        assert (kind, len(changed)) == (EventType.ADDRESS_UPDATED, change_count)
    query = "SELECT target_id, domain_id FROM audit_log WHERE mutation = 'domainRename'"
    assert await select_rows(environment, query) == [(domain_id, domain_id)]
    await assert_store_consistent(environment)


async def test_renaming_back_restores_all_names(
    root: GraphQLClient, user_ids: dict[str, int], environment: Environment
) -> None:
    address_query = "SELECT id, display_address, local FROM addresses ORDER BY id"
    state_before = await load_user_names(environment), await select_rows(environment, address_query)
    for old, new in ((OLD_DOMAIN, "straße.example"), ("STRASSE.example", NEW_DOMAIN)):
        _, errors = await rename_domain(root, old, new)
        if old == OLD_DOMAIN:
            assert errors == []
        else:  # a different name, since ß is not ss in IDNA 2008
            assert errors[0]["code"] == "NOT_FOUND"
    _, errors = await rename_domain(root, "straße.example", OLD_DOMAIN)
    assert errors == []
    assert (
        await load_user_names(environment),
        await select_rows(environment, address_query),
    ) == state_before
    assert user_ids


async def test_refused_or_validated_rename_lists_conflicts_only(
    root: GraphQLClient, user_ids: dict[str, int], environment: Environment
) -> None:
    await create_domain(root, NEW_DOMAIN, **NO_DOMAIN_LIMITS)
    await make_domain_user(environment, "E.v.e@new.example", address="other@example.org")
    long_domain = f"{'a' * 63}.{'b' * 40}.example"
    state_before = (
        await load_user_names(environment),
        await select_rows(environment, "SELECT * FROM changes"),
    )
    for options in ({"validateOnly": True}, {}):
        payload, errors = await rename_domain(root, options=options)
        assert (payload["domain"], payload["userCount"]) == (None, 0)
        assert [error["code"] for error in errors] == ["CONFLICT", "CONFLICT"]
        assert errors[0]["message"] == "The domain new.example already exists."
        assert "e.ve@old.example" in errors[1]["message"]
        assert {error["path"][0] for error in errors} == {"newName"}
        _, errors = await rename_domain(root, new="also.example", options=options)
        assert [error["code"] for error in errors] == ["CONFLICT"]
        assert "alias" in errors[0]["message"]
        _, errors = await rename_domain(root, new=f"{long_domain}.{long_domain}", options=options)
        assert errors[0]["constraint"] == "LENGTH"
        for old, new, constraint in (
            (OLD_DOMAIN, "OLD.example.", "SAME"),
            (OLD_DOMAIN, "a b", "DOMAIN"),
            (OLD_DOMAIN, "eve@x.example", "DOMAIN"),
        ):
            _, (error,) = await rename_domain(root, old, new, options=options)
            assert (error["code"], error["constraint"]) == ("VALIDATION", constraint)
        for old in ("nowhere.example", "also.example"):  # an alias does not name the domain
            _, (error,) = await rename_domain(root, old, "x.example", options=options)
            assert (error["code"], error["path"]) == ("NOT_FOUND", ["domain"])
    assert (
        await load_user_names(environment),
        await select_rows(environment, "SELECT * FROM changes"),
    ) == state_before
    payload, errors = await rename_domain(root, new="fine.example", options={"validateOnly": True})
    assert errors == []
    assert (
        await load_user_names(environment),
        await select_rows(environment, "SELECT * FROM changes"),
    ) == state_before
    assert user_ids


async def insert_users(environment: Environment, count: int) -> None:
    """Insert this number of users of the old domain, each with an address."""
    domain_id, now = await load_domain_id(environment, OLD_DOMAIN), environment.now()
    user_ids = [environment.new_id() for _ in range(count)]
    common: dict[str, Any] = {"created_at": now, "updated_at": now}
    users = [
        User(
            id=user_id,
            username=f"u{number}@old.example",
            username_key=f"u{number}@old.example",
            words=search_text(f"u{number}@old.example", None, f"u{number}@old.example"),
            domain_id=domain_id,
            tenant_id=domain_id,
            **common,
        ).model_dump()
        for number, user_id in enumerate(user_ids)
    ]
    addresses = [
        Address(
            id=environment.new_id(),
            local=f"u{number}",
            domain_id=domain_id,
            display_address=f"u{number}@old.example",
            user_id=user_id,
            main=True,
            **common,
        ).model_dump()
        for number, user_id in enumerate(user_ids)
    ]
    async with environment.write_session() as session:
        connection = await session.connection()
        await connection.execute(insert(core_table(User)), users)
        await connection.execute(
            insert(core_table(Stream)),
            [{"id": user_id, "last": 0, "gone": 0} for user_id in user_ids],
        )
        await connection.execute(insert(core_table(Address)), addresses)


async def test_rename_of_large_domain_runs_constant_statements(
    root: GraphQLClient, environment: Environment, statements: list[str]
) -> None:
    await create_domain(root, OLD_DOMAIN, **NO_DOMAIN_LIMITS)
    await make_domain_user(environment, "eve@old.example")

    async def count_statements(old: str, new: str) -> tuple[int, Any]:
        del statements[:]
        payload, errors = await rename_domain(root, old, new)
        assert errors == []
        return len([statement for statement in statements if "api_keys" not in statement]), payload

    count_for_one, payload = await count_statements(OLD_DOMAIN, NEW_DOMAIN)
    assert (payload["userCount"], payload["journalCursor"][:2]) == (1, "1.")
    await count_statements(NEW_DOMAIN, OLD_DOMAIN)
    await insert_users(environment, 1000)
    count_for_many, payload = await count_statements(OLD_DOMAIN, NEW_DOMAIN)
    assert (count_for_many, payload["userCount"], payload["addressCount"]) == (
        count_for_one,
        1001,
        1001,
    )
    assert payload["journalCursor"] is None  # the cursor of so many streams would be too long
    domain_id = await load_domain_id(environment, NEW_DOMAIN)
    entry_sizes = [
        len(ids)
        for kind, ids in await load_journal_entries(environment, domain_id)
        if kind in USER_EVENT_TYPES
    ]
    assert (sum(entry_sizes), entry_sizes[-1]) == (
        1 + 1 + 1 + 1001,
        1,
    )  # an entry has at most a thousand IDs
    query = "SELECT count(*) FROM users WHERE words LIKE '%old.example%'"
    assert await select_rows(environment, query) == [(0,)]


async def test_one_of_concurrent_renames_succeeds(
    root: GraphQLClient, environment: Environment
) -> None:
    await create_domain(root, OLD_DOMAIN, **NO_DOMAIN_LIMITS)
    await create_domain(root, "another.example", **NO_DOMAIN_LIMITS)
    outcomes = await asyncio.gather(
        rename_domain(root),
        rename_domain(root, "another.example"),
        rename_domain(root, new="x.example"),
    )
    first, second, third = (not errors for _, errors in outcomes)
    assert first is not third
    assert second is third
    names = {name for (name,) in await select_rows(environment, "SELECT name FROM domains")}
    assert names == ({NEW_DOMAIN, "another.example"} if first else {NEW_DOMAIN, "x.example"})


async def test_user_created_during_rename_has_a_consistent_domain(
    root: GraphQLClient, environment: Environment
) -> None:
    await create_domain(root, OLD_DOMAIN, **NO_DOMAIN_LIMITS)
    attempts: list[Any] = [make_domain_user(environment, f"u{n}@old.example") for n in range(6)]
    attempts.insert(3, rename_domain(root))
    outcomes = await asyncio.gather(*attempts, return_exceptions=True)
    assert {type(outcome) for outcome in outcomes} <= {User, NotFound, tuple}
    query = """SELECT a.display_address, d.name, u.username FROM addresses a
        JOIN domains d ON d.id = a.domain_id JOIN users u ON u.id = a.user_id"""
    for shown, name, username in await select_rows(environment, query):
        assert shown == username
        assert shown.endswith(f"@{name}")
    await assert_store_consistent(environment)


async def test_message_received_during_rename_is_not_lost(
    root: GraphQLClient, environment: Environment
) -> None:
    await create_domain(root, OLD_DOMAIN, **NO_DOMAIN_LIMITS)
    eve = await make_domain_user(environment, "eve@old.example")
    stored_ids: list[int] = []
    is_finished = asyncio.Event()

    async def deliver(number: int) -> None:
        """Resolve the recipient as at RCPT of LMTP, then store the message as at DATA."""
        recipient = None
        while recipient is None:
            for name in (OLD_DOMAIN, NEW_DOMAIN):
                with contextlib.suppress(NotFound):
                    recipient = await address_resolution.load_recipient_below_limits(
                        environment, f"eve@{name}"
                    )
        message = await received_messages.parse_storable_message(raw_message(f"number {number}"))
        stored_message = await received_messages.store_once_for_recipient(
            environment, message, recipient, "carol@example.com"
        )
        stored_ids.append(stored_message.message_id)

    async def rename_repeatedly() -> None:
        for old, new in (
            (OLD_DOMAIN, NEW_DOMAIN),
            (NEW_DOMAIN, OLD_DOMAIN),
            (OLD_DOMAIN, NEW_DOMAIN),
        ):
            await asyncio.sleep(0.02)
            _, errors = await rename_domain(root, old, new)
            assert errors == []
        is_finished.set()

    async def deliver_until_finished() -> None:
        number = 0
        while not is_finished.is_set() or number < 10:
            number += 1
            await deliver(number)

    await asyncio.gather(rename_repeatedly(), deliver_until_finished())
    message_rows = await select_rows(
        environment, "SELECT id FROM messages WHERE user_id = :k", k=eve.id
    )
    assert sorted(stored_ids) == sorted(message_id for (message_id,) in message_rows)
    assert len(stored_ids) >= 10
    assert (await load_domain(root, NEW_DOMAIN))["storage"]["messageCount"] == len(stored_ids)
    await assert_store_consistent(environment)
