"""With whom an account writes, and which addresses are used."""

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
from models.events.journal import ChangeKind
from models.mailboxes.tables import Mailbox, SpecialUse
from models.messages.tables import Message
from tests.conftest import Client, Clock, raw_message
from tests.support.operations.address_operations import made, of, temporary
from tests.support.operations.domain_operations import key_of
from tests.support.sample_mutations import Call
from tests.support.stores.counter_check import journal, reached

REGISTER = """query ($query: String!, $first: Int) { user {
  addressRegister(query: $query, first: $first) { id name address lastUsedAt } } }"""
pytestmark = pytest.mark.usefixtures("counted")


async def register(client: Client, query: str = "", first: int = 25) -> list[Any]:
    found: list[Any] = (await client(REGISTER, query=query, first=first))["user"]["addressRegister"]
    return found


async def known(client: Client, query: str = "", first: int = 25) -> list[str]:
    """The correspondents, without colleagues."""
    found = await register(client, query, first)
    return [one["address"] for one in found if one["lastUsedAt"]]


async def everybody(client: Client, query: str = "", first: int = 25) -> list[str]:
    return [one["address"] for one in await register(client, query, first)]


async def arrive(client: Client, to: str = "", /, **headers: str) -> None:
    """A letter comes, and is indexed."""
    await deliver(client, to or client.address, **headers)
    await index(client)


async def deliver(client: Client, to: str, **headers: str) -> None:
    letter = await received_messages.read_message(raw_message(**headers))
    recipient = await address_resolution.load_recipient(client.world, to)
    await received_messages.store_for_recipient(
        client.world, letter, recipient, "sender@example.com"
    )


async def index(client: Client) -> None:
    while await index_worker.index_next_batch(client.world):
        pass


async def test_who_writes_is_known_by_name_and_address_newest_first(
    ada: Client, bob: Client, clock: Clock
) -> None:
    for sender in ("Carol C. <Carol.C@far.example>", "dave@far.example", '"Ärger" <e@far.example>'):
        clock.tick(minutes=1)
        await arrive(ada, From=sender)
    assert await known(ada) == ["e@far.example", "dave@far.example", "Carol.C@far.example"]
    assert await known(ada, first=1) == ["e@far.example"]
    for query, expected in (
        ("caro", ["Carol.C@far.example"]), ("CAROL C", ["Carol.C@far.example"]),
        ("carol.c@far", ["Carol.C@far.example"]), ("äRG", ["e@far.example"]),
        ("far", []), ("%", []), ("d", ["dave@far.example"]),
    ):  # fmt: skip
        assert await known(ada, query) == expected, query
    clock.tick(minutes=1)
    await arrive(ada, From="carol.c@FAR.example")
    (first, *rest) = await register(ada)
    assert (first["address"], first["name"], len(rest)) == ("carol.c@FAR.example", "Carol C.", 3)
    assert first["lastUsedAt"] == clock().isoformat().replace("+00:00", "Z")

    # of others nobody sees any
    assert await known(bob) == []
    node = f'{{ node(id: "{first["id"]}") {{ ... on AddressRegisterEntry {{ address }} }} }}'
    assert (await ada(node))["node"] == {"address": "carol.c@FAR.example"}
    assert (await bob(node))["node"] is None


async def test_an_administrator_sees_nobodys_correspondents(ada: Client, root: Client) -> None:
    await arrive(ada, From="carol@far.example")
    document = '{ user(by: {username: "ada"}) { addressRegister(query: "") { address } } }'
    assert (await root(document))["user"]["addressRegister"] == []


@pytest.mark.parametrize(
    ("headers", "is_known"),
    [
        ({}, True),
        ({"Auto-Submitted": "no"}, True),
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
    ],
)
async def test_machines_and_lists_are_nobody(
    headers: dict[str, str], is_known: bool, ada: Client
) -> None:
    await arrive(ada, **{"From": "carol@far.example", **headers})
    assert bool(await known(ada)) is is_known


@pytest.mark.parametrize(
    ("use", "expected"),
    [
        (SpecialUse.JUNK, []),
        (SpecialUse.DRAFTS, []),
        (SpecialUse.SENT, ["b@far.example", "c@far.example", "t@far.example"]),
        (SpecialUse.ARCHIVE, ["carol@far.example"]),
        (None, ["carol@far.example"]),
    ],
)
async def test_it_depends_on_the_folder(
    use: SpecialUse | None, expected: list[str], ada: Client
) -> None:
    """Of what lies in Sent those it went to; of Junk and drafts nobody."""
    to = {"To": "t@far.example", "Cc": "C <c@far.example>", "Bcc": "b@far.example"}
    box = await ada.box()
    async with ada.world.write_session(ada.user.id) as session:
        mine = col(Mailbox.user_id) == ada.user.id
        await session.exec(update(Mailbox).where(mine).values(special_use=None))
        here = update(Mailbox).where(col(Mailbox.id) == box.id)
        await session.exec(here.values(special_use=use))
    raw = raw_message(From="carol@far.example", **to).decode()
    given = {"mailbox": {"path": "INBOX"}, "raw": raw}
    assert (await Call("messageUpload", given)(ada))["errors"] == []
    await index(ada)
    assert sorted(await known(ada)) == expected


async def test_a_draft_is_of_nobody_until_it_is_sent(ada: Client) -> None:
    raw = raw_message(From=ada.address, To="t@far.example").decode()
    given = {"mailbox": {"path": "Sent"}, "raw": raw, "draft": True}
    assert (await Call("messageUpload", given)(ada))["errors"] == []
    await index(ada)
    assert await known(ada) == []


async def test_who_was_not_heard_of_for_longest_is_forgotten(
    ada: Client, bob: Client, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(contacts, "MAX_CONTACTS", 3)
    for n in range(5):
        clock.tick(minutes=1)
        await arrive(ada, From=f"a{n}@far.example")
        await arrive(bob, From=f"b{n}@far.example")
    clock.tick(minutes=1)
    await arrive(ada, From="a2@far.example", Subject="Again")
    assert await known(ada) == ["a2@far.example", "a4@far.example", "a3@far.example"]
    assert await known(bob) == ["b4@far.example", "b3@far.example", "b2@far.example"]
    many = select(func.count()).select_from(Contact)
    assert (await ada.world.database.read(many))[0][0] == 6


async def test_many_messages_are_noted_in_as_few_statements_as_one(
    ada: Client, statements: list[str]
) -> None:
    async def cost(many: int) -> int:
        for n in range(many):
            await deliver(ada, f"ada+{many}x{n}@example.org", From=f"x{many}y{n}@far.example")
        del statements[:]
        assert await index_worker.index_next_batch(ada.world) == many
        return len(statements)

    assert await cost(1) == await cost(20)


@pytest.mark.parametrize(("query", "first"), [("x" * 321, 25), ("", 0), ("", 251)])
async def test_what_cannot_be_asked_is_refused(query: str, first: int, ada: Client) -> None:
    answer = await ada.raw(REGISTER, query=query, first=first)
    assert answer["errors"][0]["extensions"]["code"] == "BAD_USER_INPUT"


async def test_an_address_says_when_mail_came_to_it_last(
    ada: Client, root: Client, clock: Clock
) -> None:
    await made(root, "@example.org", user={"username": "ada"}, allowWildcard=True)
    assert (await of(ada, "*@example.org"))["lastReceivedAt"] is None
    clock.tick(minutes=1)
    await arrive(ada, "any@example.org", From="carol@far.example")
    came = clock().isoformat().replace("+00:00", "Z")
    clock.tick(minutes=1)
    await arrive(ada, "A.da+x@example.org", From="carol@far.example", Subject="Again")
    assert (await of(ada, "*@example.org"))["lastReceivedAt"] == came
    later = clock().isoformat().replace("+00:00", "Z")
    assert (await of(ada, "ada@example.org"))["lastReceivedAt"] == later

    # what was indexed late takes nothing back
    async with ada.world.write_session() as session:
        old = {"indexed": False, "received_at": clock() - timedelta(days=1)}
        await session.exec(update(Message).values(**old))
    await index(ada)
    assert (await of(ada, "ada@example.org"))["lastReceivedAt"] == later


async def test_a_temporary_address_goes_a_while_after_its_end(
    ada: Client, root: Client, clock: Clock
) -> None:
    found, _ = await temporary(ada, validity="P1D")
    kept, _ = await temporary(ada, validity=None)
    clock.tick(days=30)
    assert (await housekeeping.run_round(ada.world)).addresses == 0
    clock.tick(days=2)
    home = await key_of(ada.world, "example.org")
    last = {key: await reached(ada.world, key) for key in (home, ada.user.id)}
    assert (await housekeeping.run_round(ada.world)).addresses == 1
    assert await of(root, found["address"]) is None
    assert await of(root, kept["address"]) is not None
    for key, since in last.items():
        told = await journal(ada.world, key, since)
        assert [(kind, len(ids)) for kind, ids in told] == [(ChangeKind.ADDRESS_CHANGED, 1)]
    left = select(func.count()).select_from(Address)
    assert (await ada.world.database.read(left))[0][0] == 2


async def test_colleagues_come_behind_where_the_domain_says_so(
    ada: Client, bob: Client, root: Client
) -> None:
    other = {"username": "eve", "address": "eve@far.example", "passwordDisabled": True}
    assert (await Call("userCreate", other)(root))["errors"] == []
    assert await everybody(ada) == ["bob@example.org"]
    (row,) = await register(ada, "bo")
    assert (row["lastUsedAt"], await everybody(ada, "bob@ex")) == (None, ["bob@example.org"])
    assert await everybody(ada, "eve") == []
    node = f'{{ node(id: "{row["id"]}") {{ ... on AddressRegisterEntry {{ address }} }} }}'
    assert (await ada(node))["node"] == {"address": "bob@example.org"}
    await arrive(ada, From="carol@far.example")
    await arrive(ada, From="B.ob@example.org")
    assert await everybody(ada, first=2) == ["B.ob@example.org", "carol@far.example"]
    assert await everybody(bob) == ["ada@example.org"]
    assert await everybody(ada, first=1) == ["B.ob@example.org"]
    given = {"domains": [{"name": "example.org"}], "set": {"globalAddressList": False}}
    assert (await Call("domainUpdate", given)(root))["errors"] == []
    assert await everybody(bob) == []
    assert (await bob(node))["node"] is None
