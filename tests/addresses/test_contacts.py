"""Contacts of a user: which messages create them, search, limits and expiry."""

from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import func, select, update
from sqlmodel import col

from mail.maintenance import housekeeping
from mail.recipients import address_resolution, contacts
from mail.search import index_worker
from mail.storage import received_messages
from models.addresses.tables import Address, Contact
from models.events.event_types import EventType
from models.mailboxes.tables import Mailbox, SpecialUse
from models.messages.tables import Message
from tests.conftest import GraphQLClient, ManualClock, raw_message
from tests.support.case_loop import each_case
from tests.support.operations.address_operations import (
    create_address,
    load_address,
    try_create_temporary_address,
)
from tests.support.operations.domain_operations import load_domain_id
from tests.support.sample_mutations import MutationCall
from tests.support.stores.counter_check import load_journal_entries, load_stream_position

CONTACTS = """query ($query: String!, $first: Int) { user {
  contactSuggestions(query: $query, first: $first) { id name address lastUsedAt } } }"""
pytestmark = pytest.mark.usefixtures("verify_counters")


async def list_contacts(client: GraphQLClient, query: str = "", first: int = 25) -> list[Any]:
    contacts_: list[Any] = (await client(CONTACTS, query=query, first=first))["user"][
        "contactSuggestions"
    ]
    return contacts_


async def list_used_contacts(client: GraphQLClient, query: str = "", first: int = 25) -> list[str]:
    """Return the addresses of contacts, without users of the same domain."""
    contacts_ = await list_contacts(client, query, first)
    return [contact["address"] for contact in contacts_ if contact["lastUsedAt"]]


async def list_contact_addresses(
    client: GraphQLClient, query: str = "", first: int = 25
) -> list[str]:
    return [contact["address"] for contact in await list_contacts(client, query, first)]


async def deliver_and_index(client: GraphQLClient, address: str = "", /, **headers: str) -> None:
    """Deliver a message and index it."""
    await deliver_message(client, address or client.address, **headers)
    await index_all(client)


async def deliver_message(client: GraphQLClient, address: str, **headers: str) -> None:
    message = await received_messages.parse_storable_message(raw_message(**headers))
    recipient = await address_resolution.load_recipient_below_limits(client.environment, address)
    await received_messages.store_once_for_recipient(
        client.environment, message, recipient, "sender@example.com"
    )


async def index_all(client: GraphQLClient) -> None:
    while await index_worker.index_next_batch_and_record_contacts(client.environment):
        pass


async def test_senders_become_contacts_newest_first(
    ada: GraphQLClient, bob: GraphQLClient, clock: ManualClock
) -> None:
    for sender in ("Carol C. <Carol.C@far.example>", "dave@far.example", '"Ärger" <e@far.example>'):
        clock.tick(minutes=1)
        await deliver_and_index(ada, From=sender)
    assert await list_used_contacts(ada) == [
        "e@far.example",
        "dave@far.example",
        "Carol.C@far.example",
    ]
    assert await list_used_contacts(ada, first=1) == ["e@far.example"]
    for query, expected in (
        ("caro", ["Carol.C@far.example"]), ("CAROL C", ["Carol.C@far.example"]),
        ("carol.c@far", ["Carol.C@far.example"]), ("äRG", ["e@far.example"]),
        ("far", []), ("%", []), ("d", ["dave@far.example"]),
    ):  # fmt: skip
        assert await list_used_contacts(ada, query) == expected, query
    clock.tick(minutes=1)
    await deliver_and_index(ada, From="carol.c@FAR.example")
    (first, *others) = await list_contacts(ada)
    assert (first["address"], first["name"], len(others)) == ("carol.c@FAR.example", "Carol C.", 3)
    assert first["lastUsedAt"] == clock().isoformat().replace("+00:00", "Z")

    # other users don't see the contacts
    assert await list_used_contacts(bob) == []
    node = f'{{ node(id: "{first["id"]}") {{ ... on ContactSuggestion {{ address }} }} }}'
    assert (await ada(node))["node"] == {"address": "carol.c@FAR.example"}
    assert (await bob(node))["node"] is None


async def test_administrator_cannot_read_contacts_of_a_user(
    ada: GraphQLClient, root: GraphQLClient
) -> None:
    await deliver_and_index(ada, From="carol@far.example")
    document = '{ user(by: {username: "ada"}) { contactSuggestions(query: "") { address } } }'
    assert (await root(document))["user"]["contactSuggestions"] == []


# for each case: the header fields of a message, and whether its sender becomes a contact
SENDERS_OF_MESSAGES: list[tuple[dict[str, str], bool]] = [
    ({}, True),
    ({"Auto-Submitted": "no"}, True),
    ({"Auto-Submitted": "(by hand) no (comment)"}, True),
    ({"Auto-Submitted": "auto-replied; owner"}, False),
    ({"List-Id": "<list.far.example>"}, False),
    ({"LIST-ID": "x"}, False),
    ({"X-Auto-Response-Suppress": "OOF"}, False),
    ({"From": "no-reply@far.example"}, False),
    ({"From": "Shop <shop.noreply@far.example>"}, False),
    ({"From": "do-not-reply@far.example"}, False),
    ({"From": "NoReply+123@far.example"}, False),
    ({"From": "MAILER-DAEMON@far.example"}, False),
    ({"From": "connor.eply@far.example"}, True),
    ({"From": "nothing"}, False),
    ({"From": "a" * 330 + "@far.example"}, False),
]


async def test_automatic_senders_and_lists_are_no_contacts(ada: GraphQLClient) -> None:
    for case in each_case(enumerate(SENDERS_OF_MESSAGES)):
        with case as (number, (headers, is_contact)):
            count_before = len(await list_used_contacts(ada))
            await deliver_and_index(ada, **{"From": f"carol{number}@far.example", **headers})
            assert len(await list_used_contacts(ada)) - count_before == is_contact


@pytest.mark.parametrize(
    ("special_use", "expected"),
    [
        (SpecialUse.JUNK, []),
        (SpecialUse.DRAFTS, []),
        (SpecialUse.SENT, ["b@far.example", "c@far.example", "t@far.example"]),
        (SpecialUse.ARCHIVE, ["carol@far.example"]),
        (None, ["carol@far.example"]),
    ],
)
async def test_special_use_of_mailbox_decides_who_becomes_a_contact(
    special_use: SpecialUse | None, expected: list[str], ada: GraphQLClient
) -> None:
    """Messages in Sent add their recipients. Messages in Junk and Drafts add no contacts."""
    recipients = {"To": "t@far.example", "Cc": "C <c@far.example>", "Bcc": "b@far.example"}
    inbox = await ada.load_mailbox()
    async with ada.environment.write_session(ada.user.id) as session:
        is_own_mailbox = col(Mailbox.user_id) == ada.user.id
        await session.exec(update(Mailbox).where(is_own_mailbox).values(special_use=None))
        update_statement = update(Mailbox).where(col(Mailbox.id) == inbox.id)
        await session.exec(update_statement.values(special_use=special_use))
    raw = raw_message(From="carol@far.example", **recipients).decode()
    arguments = {"mailbox": {"path": "INBOX"}, "raw": raw}
    assert (await MutationCall("messageImport", arguments)(ada))["errors"] == []
    await index_all(ada)
    assert sorted(await list_used_contacts(ada)) == expected


async def test_draft_adds_no_contacts(ada: GraphQLClient) -> None:
    raw = raw_message(From=ada.address, To="t@far.example").decode()
    arguments = {"mailbox": {"path": "Sent"}, "raw": raw, "draft": True}
    assert (await MutationCall("messageImport", arguments)(ada))["errors"] == []
    await index_all(ada)
    assert await list_used_contacts(ada) == []


async def test_least_recently_used_contacts_are_deleted(
    ada: GraphQLClient, bob: GraphQLClient, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(contacts, "MAX_CONTACTS", 3)
    for n in range(5):
        clock.tick(minutes=1)
        await deliver_and_index(ada, From=f"a{n}@far.example")
        await deliver_and_index(bob, From=f"b{n}@far.example")
    clock.tick(minutes=1)
    await deliver_and_index(ada, From="a2@far.example", Subject="Again")
    assert await list_used_contacts(ada) == ["a2@far.example", "a4@far.example", "a3@far.example"]
    assert await list_used_contacts(bob) == ["b4@far.example", "b3@far.example", "b2@far.example"]
    count_statement = select(func.count()).select_from(Contact)
    assert (await ada.environment.database.read(count_statement))[0][0] == 6


async def test_contacts_of_a_batch_need_a_constant_number_of_statements(
    ada: GraphQLClient, statements: list[str]
) -> None:
    async def count_statements(message_count: int) -> int:
        for n in range(message_count):
            await deliver_message(
                ada,
                f"ada+{message_count}x{n}@example.org",
                From=f"x{message_count}y{n}@far.example",
            )
        del statements[:]
        assert (
            await index_worker.index_next_batch_and_record_contacts(ada.environment)
            == message_count
        )
        return len(statements)

    assert await count_statements(1) == await count_statements(20)


@pytest.mark.parametrize(("query", "first"), [("x" * 321, 25), ("", 0), ("", 251)])
async def test_invalid_contact_query_is_refused(query: str, first: int, ada: GraphQLClient) -> None:
    answer = await ada.execute(CONTACTS, query=query, first=first)
    assert answer["errors"][0]["extensions"]["code"] == "BAD_USER_INPUT"


async def test_address_shows_when_it_last_received_mail(
    ada: GraphQLClient, root: GraphQLClient, clock: ManualClock
) -> None:
    await create_address(root, "@example.org", user={"username": "ada"}, allowWildcard=True)
    assert (await load_address(ada, "*@example.org"))["lastReceivedAt"] is None
    clock.tick(minutes=1)
    await deliver_and_index(ada, "any@example.org", From="carol@far.example")
    first_time = clock().isoformat().replace("+00:00", "Z")
    clock.tick(minutes=1)
    await deliver_and_index(ada, "A.da+x@example.org", From="carol@far.example", Subject="Again")
    assert (await load_address(ada, "*@example.org"))["lastReceivedAt"] == first_time
    second_time = clock().isoformat().replace("+00:00", "Z")
    assert (await load_address(ada, "ada@example.org"))["lastReceivedAt"] == second_time

    # a message that is indexed late doesn't change it
    async with ada.environment.write_session() as session:
        column_values = {"indexed": False, "received_at": clock() - timedelta(days=1)}
        await session.exec(update(Message).values(**column_values))
    await index_all(ada)
    assert (await load_address(ada, "ada@example.org"))["lastReceivedAt"] == second_time


async def test_expired_temporary_address_is_deleted_after_30_days(
    ada: GraphQLClient, root: GraphQLClient, clock: ManualClock
) -> None:
    expiring, _ = await try_create_temporary_address(ada, validity="P1D")
    unlimited, _ = await try_create_temporary_address(ada, validity=None)
    clock.tick(days=30)
    assert (await housekeeping.run_housekeeping_round(ada.environment)).addresses == 0
    clock.tick(days=2)
    domain_id = await load_domain_id(ada.environment, "example.org")
    positions = {
        stream_id: await load_stream_position(ada.environment, stream_id)
        for stream_id in (domain_id, ada.user.id)
    }
    assert (await housekeeping.run_housekeeping_round(ada.environment)).addresses == 1
    assert await load_address(root, expiring["address"]) is None
    assert await load_address(root, unlimited["address"]) is not None
    for stream_id, position in positions.items():
        changes = await load_journal_entries(ada.environment, stream_id, position)
        assert [(kind, len(ids)) for kind, ids in changes] == [(EventType.ADDRESS_DELETED, 1)]
    count_statement = select(func.count()).select_from(Address)
    assert (await ada.environment.database.read(count_statement))[0][0] == 2


async def test_users_of_the_domain_follow_contacts_if_enabled(
    ada: GraphQLClient, bob: GraphQLClient, root: GraphQLClient
) -> None:
    user_input = {"username": "eve", "address": "eve@far.example", "passwordDisabled": True}
    assert (await MutationCall("userCreate", user_input)(root))["errors"] == []
    assert await list_contact_addresses(ada) == ["bob@example.org"]
    (colleague,) = await list_contacts(ada, "bo")
    assert (colleague["lastUsedAt"], await list_contact_addresses(ada, "bob@ex")) == (
        None,
        ["bob@example.org"],
    )
    assert await list_contact_addresses(ada, "eve") == []
    node = f'{{ node(id: "{colleague["id"]}") {{ ... on ContactSuggestion {{ address }} }} }}'
    assert (await ada(node))["node"] == {"address": "bob@example.org"}
    await deliver_and_index(ada, From="carol@far.example")
    await deliver_and_index(ada, From="B.ob@example.org")
    assert await list_contact_addresses(ada, first=2) == ["B.ob@example.org", "carol@far.example"]
    assert await list_contact_addresses(bob) == ["ada@example.org"]
    assert await list_contact_addresses(ada, first=1) == ["B.ob@example.org"]
    arguments = {"domains": [{"name": "example.org"}], "set": {"globalAddressList": False}}
    assert (await MutationCall("domainUpdate", arguments)(root))["errors"] == []
    assert await list_contact_addresses(bob) == []
    assert (await bob(node))["node"] is None
