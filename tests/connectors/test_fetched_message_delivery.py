"""What is fetched into INBOX goes the way of mail that comes in, where something acts there."""

import asyncio
from collections.abc import AsyncIterator
from datetime import datetime, timedelta
from itertools import product
from typing import Any

import pytest
from sqlalchemy import select, update
from sqlmodel import col

from models.admin.tasks import TaskState
from models.connectors import ConnectorProtocol
from models.events.journal import Change, ChangeKind
from models.mailboxes.tables import SpecialUse
from models.messages.tables import Message
from models.runtime.environment import Environment
from models.store.columns import core_table, select_columns
from models.submission.tables import Submission
from models.users.tables import User
from tests.conftest import Client, Clock, raw_message
from tests.support.accounts.key_value_operations import limit
from tests.support.accounts.openpgp_keys import opened, pair_of, public_of
from tests.support.accounts.user_operations import run as call
from tests.support.accounts.user_operations import set_user_columns
from tests.support.mail.stored_messages import message_special_use
from tests.support.mail_servers.scanner_servers import clamd_hears, http, report, rude
from tests.support.operations.connector_operations import (
    again,
    connector,
    far,
    message,
    newest,
    ran,
    run_connectors_until_killed,
    server,
    stored,
)
from tests.support.operations.filter_operations import listed, made
from tests.support.operations.quarantine_operations import CAROL, held
from tests.support.operations.sieve_operations import put
from tests.support.servers.dovecot_server import DovecotAccount
from tests.support.servers.webhook_receiver import Got, Receiver, receiving
from tests.support.stores.counter_check import rows
from tests.support.stores.other_processes import taken_for_dead

pytestmark = pytest.mark.usefixtures("examined")
__all__ = ["far", "server"]
INBOX, JUNK = SpecialUse.INBOX, SpecialUse.JUNK
RETENTION = {"source_retention": 0}
DOWN = http(b"no", "500 broken")
MANY = 40  # messages: more than a unit
FILES = 'require ["fileinto", "mailbox"]; fileinto :create "Lists";'


class Clamd:
    """Finds what it is told to; counts what it was asked about."""

    def __init__(self) -> None:
        self.answer, self.asked = b"stream: OK\0", 0

    async def way(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await clamd_hears(reader)
        self.asked += 1
        writer.write(self.answer)
        await writer.drain()


@pytest.fixture
async def spam(world: Environment) -> AsyncIterator[Receiver]:
    """What answers as rspamd does."""
    async with receiving() as one:
        one.answer = report(1.0)
        limit(world, rspamd=f"http://127.0.0.1:{one.port}")
        yield one


@pytest.fixture
async def viruses(world: Environment) -> AsyncIterator[Clamd]:
    """What answers as clamd does."""
    one = Clamd()
    async with rude(one.way) as port:
        limit(world, clamd=f"127.0.0.1:{port}")
        yield one


async def queued(world: Environment) -> list[Any]:
    """What is to be sent."""
    return list(await world.database.read(select(col(Submission.id))))


async def filed(ada: Client, **action: Any) -> None:
    """A filter that acts on all mail."""
    await made(ada, {}, action or {"labels": ["work"]}, name="all")


# scanners


async def test_spam_goes_to_junk_and_other_mail_does_not(
    ada: Client, far: DovecotAccount, spam: Receiver
) -> None:
    far.save_message(raw_message("Offer"))
    key = await connector(ada, far, **RETENTION)
    spam.answer = report(10.0)
    run = await ran(ada.world, key)
    assert (run.state, run.imported, run.deleted_remote) == (TaskState.SUCCEEDED, 1, 1), run.log
    spam.answer = report(3.0)
    far.save_message(raw_message("Letter"))
    await again(ada.world, key)
    assert [await message_special_use(ada, name) for name in ("Offer", "Letter")] == [JUNK, INBOX]
    assert (await message(ada.world, "Offer")).spam["score"] == 10.0
    assert len(spam.got) == 2


@pytest.mark.parametrize("protocol", [ConnectorProtocol.IMAP, ConnectorProtocol.POP3])
async def test_what_is_refused_stays_there_and_is_fetched_no_more(
    ada: Client, far: DovecotAccount, spam: Receiver, protocol: ConnectorProtocol
) -> None:
    far.save_message(raw_message("Bad"))
    spam.answer = report(20.0)
    key = await connector(ada, far, protocol=protocol, **RETENTION)
    for skipped in (1, 0):
        run = await again(ada.world, key)
        assert (run.state, run.imported, run.skipped) == (TaskState.SUCCEEDED, 0, skipped)
        assert (run.deleted_remote, far.count_messages(), len(spam.got)) == (0, 1, 1)
        assert any("refused: it is spam" in line for line in run.log) is bool(skipped)
    assert await stored(ada.world) == {}


@pytest.mark.parametrize(
    ("virus", "ends"),
    [("reject", (1, [], None)), ("quarantine", (0, ["Win.Test"], None)), ("tag", (0, [], JUNK))],
)
async def test_a_virus_is_refused_held_or_told(
    ada: Client, far: DovecotAccount, viruses: Clamd, virus: str, ends: tuple[Any, ...]
) -> None:
    limit(ada.world, virus=virus)
    viruses.answer = b"stream: Win.Test FOUND\0"
    far.save_message(raw_message("Ill"))
    key = await connector(ada, far, **RETENTION)
    for _ in range(2):
        run = await again(ada.world, key)
        assert run.state is TaskState.SUCCEEDED, run.log
        found = [row.virus for row in await held(ada.world)]
        assert (far.count_messages(), found, await message_special_use(ada, "Ill")) == ends
        assert viruses.asked == 1


async def test_spam_of_a_high_score_is_held_where_that_is_set(
    ada: Client, far: DovecotAccount, spam: Receiver
) -> None:
    limit(ada.world, spam_quarantine=60)
    spam.answer = report(14.0)
    far.save_message(raw_message("Offer"))
    await ran(ada.world, await connector(ada, far))
    (row,) = await held(ada.world)
    assert (row.subject, await stored(ada.world)) == ("Offer", {})


@pytest.mark.parametrize("checks", list(product((True, False), repeat=2)))
async def test_each_scanner_is_asked_where_it_is_to_be(
    ada: Client, far: DovecotAccount, spam: Receiver, viruses: Clamd, checks: tuple[bool, bool]
) -> None:
    spam.answer = report(10.0)
    far.save_message(raw_message("Offer"))
    key = await connector(ada, far, spam_check=checks[0], virus_check=checks[1])
    run = await ran(ada.world, key)
    assert (run.state, run.imported) == (TaskState.SUCCEEDED, 1), run.log
    assert (len(spam.got), viruses.asked) == checks
    assert await message_special_use(ada, "Offer") is (JUNK if checks[0] else INBOX)


async def test_other_folders_are_not_sifted(
    ada: Client, far: DovecotAccount, spam: Receiver
) -> None:
    spam.answer = report(40.0)
    await put(ada, FILES)
    far.save_message(raw_message("Work"), "Work")
    far.save_message(raw_message("In"))
    run = await ran(ada.world, await connector(ada, far, apply_filters=True))
    assert (run.imported, run.skipped) == (1, 1)
    assert (await stored(ada.world), len(spam.got)) == ({"Work": ["Work"]}, 1)
    below = await connector(ada, far, target_folder="Far", apply_filters=True)
    await ran(ada.world, below)
    assert (await stored(ada.world))["Far/INBOX"] == ["In"]
    assert len(spam.got) == 1


@pytest.mark.parametrize("down", ["defer", "accept"])
async def test_while_a_scanner_is_down_mail_waits_where_that_is_set(
    ada: Client, far: DovecotAccount, clock: Clock, viruses: Clamd, down: str
) -> None:
    limit(ada.world, clamd_down=down)
    viruses.answer = b"no sense"
    for name in ("One", "Two"):
        far.save_message(raw_message(name))
    key = await connector(ada, far, **RETENTION)
    run = await ran(ada.world, key)
    if down == "accept":
        assert (run.state, run.imported, far.count_messages()) == (TaskState.SUCCEEDED, 2, 0), (
            run.log
        )
        return
    assert (run.state, run.stage, run.imported) == (TaskState.FAILED, "STORE", 0)
    assert "scanner" in run.error
    assert (await stored(ada.world), far.count_messages()) == ({}, 2)
    viruses.answer = b"stream: OK\0"
    clock.tick(minutes=1)
    run = await again(ada.world, key)
    assert (run.state, run.imported, far.count_messages()) == (TaskState.SUCCEEDED, 2, 0), run.log
    assert {path: sorted(names) for path, names in (await stored(ada.world)).items()} == {
        "INBOX": ["One", "Two"]
    }


async def test_what_went_well_beside_a_failure_does_not_come_again(
    ada: Client, far: DovecotAccount, clock: Clock, spam: Receiver
) -> None:
    bad = [True]

    async def answer(got: Got, writer: asyncio.StreamWriter) -> None:
        fails = bad[0] and b"Nr 1\r\n" in got.raw
        writer.write(DOWN if fails else report(20.0 if b"Nr 2\r\n" in got.raw else 1.0))

    spam.answer = answer
    limit(ada.world, rspamd_down="defer")
    for nth in range(4):
        far.save_message(raw_message(f"Nr {nth}"))
    key = await connector(ada, far, remove_duplicates=False, **RETENTION)
    run = await ran(ada.world, key)
    assert (run.state, run.stage, run.imported, run.skipped) == (TaskState.FAILED, "STORE", 2, 1)
    assert (far.count_messages(), sorted((await stored(ada.world))["INBOX"])) == (
        4,
        ["Nr 0", "Nr 3"],
    )
    bad[0] = False
    clock.tick(days=2)  # no receipt tells of them any more
    run = await again(ada.world, key)
    assert (run.state, run.imported, far.count_messages()) == (TaskState.SUCCEEDED, 1, 1), run.log
    assert sorted((await stored(ada.world))["INBOX"]) == ["Nr 0", "Nr 1", "Nr 3"]


# rules, filters and scripts


@pytest.mark.parametrize("spam_check", [True, False])
async def test_rules_about_senders_are_a_part_of_the_spam_filter(
    ada: Client, far: DovecotAccount, *, spam_check: bool
) -> None:
    rule = {"scope": {"user": {"username": "ada"}}, "action": "BLOCK", "patterns": [CAROL]}
    assert (await call(ada, "senderRuleCreate", "rules { id }", **rule))["errors"] == []
    await filed(ada)
    far.save_message(raw_message("Hers"))
    far.save_message(raw_message("His", From="eve@else.example"))
    key = await connector(ada, far, spam_check=spam_check, apply_filters=True)
    await ran(ada.world, key)
    found = [await message_special_use(ada, name) for name in ("Hers", "His")]
    assert found == [JUNK if spam_check else INBOX, INBOX]


@pytest.mark.parametrize("apply_filters", [True, False])
async def test_filters_act_where_they_are_to(
    ada: Client, far: DovecotAccount, spam: Receiver, *, apply_filters: bool
) -> None:
    await ada('mutation { mailboxCreate(input: {paths: ["A"]}) { errors { code } } }')
    await made(ada, {"subject": "one"}, {"mailbox": {"path": "A"}, "flag": True}, name="a")
    await made(ada, {"subject": "bin"}, {"delete": True}, name="b")
    await made(ada, {"subject": "one"}, {"labels": ["work"], "seen": True}, name="c")
    for name in ("One", "Bin", "Rest"):
        far.save_message(raw_message(name))
    run = await ran(ada.world, await connector(ada, far, apply_filters=apply_filters))
    assert (run.state, run.imported) == (TaskState.SUCCEEDED, 3), run.log
    one = await message(ada.world, "One")
    lain = (one.flagged, one.seen, one.keywords)
    assert lain == ((True, True, ["work"]) if apply_filters else (False, False, []))
    ruled, plain = {"A": ["One"], "INBOX": ["Rest"]}, {"INBOX": ["Bin", "One", "Rest"]}
    found = {path: sorted(names) for path, names in (await stored(ada.world)).items()}
    assert found == (ruled if apply_filters else plain)
    counts = [each["matchCount"] for each in (await listed(ada))["nodes"]]
    assert counts == [int(apply_filters)] * 3
    assert len(spam.got) == 3


@pytest.mark.parametrize(
    ("script", "wanted", "skipped"),
    [
        (FILES, {"Lists": ["One"]}, 0),
        ('require "imap4flags"; addflag ["\\\\Flagged", "mine"];', {"INBOX": ["One"]}, 0),
        ("discard;", {}, 0),
        ('require "reject"; reject "No, thank you";', {}, 1),
        ('require "variables"; set "a" "b"; stop;', {"INBOX": ["One"]}, 0),
    ],
)
async def test_a_script_has_its_way(
    ada: Client, far: DovecotAccount, script: str, wanted: dict[str, list[str]], skipped: int
) -> None:
    await put(ada, script)
    far.save_message(raw_message("One"))
    key = await connector(ada, far, apply_filters=True, **RETENTION)
    run = await ran(ada.world, key)
    assert (run.state, run.imported, run.skipped) == (TaskState.SUCCEEDED, 1 - skipped, skipped)
    assert (await stored(ada.world), far.count_messages()) == (wanted, skipped)
    if "addflag" in script:
        one = await message(ada.world, "One")
        assert (one.flagged, one.keywords) == (True, ["mine"])
    assert await queued(ada.world) == []
    run = await again(ada.world, key, apply_filters=False)
    assert (run.imported, run.skipped) == (0, 0)


async def test_a_script_does_not_act_where_it_is_not_to(ada: Client, far: DovecotAccount) -> None:
    await put(ada, "discard;")
    far.save_message(raw_message("One"))
    await ran(ada.world, await connector(ada, far))
    assert await stored(ada.world) == {"INBOX": ["One"]}


@pytest.mark.parametrize("by", ["account", "filter", "script"])
async def test_nothing_that_is_fetched_is_answered(
    ada: Client, far: DovecotAccount, by: str
) -> None:
    if by == "account":
        away = {"enabled": True, "text": "I am away."}
        given = {"users": {"usernames": ["ada"]}, "set": away}
        assert (await call(ada, "autoreplySet", "autoreplies { id }", **given))["errors"] == []
        await filed(ada)
    elif by == "filter":
        await filed(ada, reply={"text": "I am away."})
    else:
        await put(ada, 'require "vacation"; vacation "I am away.";')
    far.save_message(raw_message("One", Return_Path=f"<{CAROL}>"))
    run = await ran(ada.world, await connector(ada, far, apply_filters=True))
    assert (run.imported, await stored(ada.world)) == (1, {"INBOX": ["One"]}), run.log
    assert await queued(ada.world) == []


async def test_filters_see_the_recipient_in_the_domain_that_is_set(
    ada: Client, far: DovecotAccount
) -> None:
    test = 'envelope :is "to" "ada@else.example"'
    await put(ada, f'require ["envelope", "fileinto", "mailbox"]; if {test} '
              '{ fileinto :create "Else"; }')  # fmt: skip
    far.save_message(raw_message("One"))
    key = await connector(ada, far, apply_filters=True)
    await ran(ada.world, key)
    far.save_message(raw_message("Two"))
    await again(ada.world, key, target_domain="else.example")
    assert await stored(ada.world) == {"INBOX": ["One"], "Else": ["Two"]}


# how it lies here


async def test_it_lies_here_as_it_lay_there(ada: Client, far: DovecotAccount) -> None:
    await filed(ada)
    raw = raw_message("One", Return_Path=f"<{CAROL}>")
    far.save_message(raw)
    far.run_doveadm(
        "flags add", "\\Seen \\Flagged \\Answered \\Draft $Mine", "mailbox", "INBOX", "all"
    )
    key = await connector(ada, far, apply_filters=True)
    await ran(ada.world, key)
    told = far.run_doveadm("fetch", "date.received", "mailbox", "INBOX", "all").decode()
    one = await message(ada.world, "One")
    assert told.split(maxsplit=1)[1].startswith(f"{one.received_at:%Y-%m-%d %H:%M:%S}")
    assert (one.seen, one.flagged, one.answered, one.draft) == (True, True, True, True)
    assert sorted(one.keywords) == ["$Mine", "work"]
    document = (
        '{ viewer { user { mailbox(by: {path: "INBOX"}) { messages { nodes { source } } } } } }'
    )
    (node,) = (await ada(document))["viewer"]["user"]["mailbox"]["messages"]["nodes"]
    assert node["source"].encode() == raw
    # And what changes there is followed.
    far.run_doveadm("flags remove", "\\Flagged", "mailbox", "INBOX", "all")
    await again(ada.world, key)
    one = await message(ada.world, "One")
    assert (one.seen, one.flagged, sorted(one.keywords)) == (True, False, ["$Mine", "work"])


async def test_what_is_here_already_is_known_by_its_content(
    ada: Client, far: DovecotAccount
) -> None:
    await filed(ada)
    far.save_message(raw_message("One"))
    first = await connector(ada, far, apply_filters=True)
    assert (await ran(ada.world, first)).imported == 1
    for apply_filters in (True, False):
        other = await connector(ada, far, apply_filters=apply_filters)
        run = await ran(ada.world, other)
        assert (run.imported, run.skipped) == (0, 1)


@pytest.mark.parametrize("sifted", [True, False])
async def test_what_came_lately_is_told_as_news_but_no_first_copy(
    ada: Client, far: DovecotAccount, *, sifted: bool
) -> None:
    script = 'require ["copy", "fileinto", "mailbox"]; fileinto :copy :create "Copies";'
    if sifted:
        await put(ada, script)
    now = ada.world.now()
    far.save_message(raw_message("Before"))
    far.save_with_date(raw_message("First"), now - timedelta(hours=1))
    key = await connector(ada, far, apply_filters=True)
    await ran(ada.world, key)
    assert await news(ada) == []
    far.save_with_date(raw_message("New"), now - timedelta(hours=1))
    far.save_with_date(raw_message("Old"), now - timedelta(days=2))
    far.save_with_date(raw_message("Read"), now - timedelta(hours=1), "S")
    run = await again(ada.world, key)
    assert run.imported == 3, run.log
    assert await news(ada) == ["New"] * (1 + sifted)  # each copy of it
    ((came,),) = await rows(ada.world, "SELECT received FROM users WHERE id = :id", id=ada.user.id)
    assert came == 1  # of what may come in an hour
    for name, at in (("New", now - timedelta(hours=1)), ("Old", now - timedelta(days=2))):
        assert await arrived(ada.world, name) == [at] * (1 + sifted)


async def news(client: Client) -> list[str]:
    """Subjects of what was told to have been received."""
    asked = select(*select_columns(Change)).where(col(Change.stream_id) == client.user.id)
    found = list[int]()
    for row in await client.world.database.read(asked.order_by(col(Change.last))):
        if row.kind is ChangeKind.MESSAGE_ADDED and row.facts.get("did") == "received":
            found += row.ids
    named = select(col(Message.subject)).where(col(Message.id).in_(found))
    return [row.subject for row in await client.world.database.read(named)]


async def arrived(world: Environment, subject: str) -> list[datetime]:
    """When the messages with this subject arrived."""
    asked = select(col(Message.received_at)).where(col(Message.subject) == subject)
    return [row.received_at for row in await world.database.read(asked)]


@pytest.mark.parametrize("switches", [True, False])
async def test_what_comes_into_an_account_that_encrypts_is_encrypted(
    ada: Client, far: DovecotAccount, *, switches: bool
) -> None:
    pair = pair_of("Ada <ada@example.org>", seconds=400_000_000)
    await set_user_columns(ada, encrypt_messages=True, pub_key=public_of(pair))
    far.save_message(raw_message("One", body="A secret."))
    far.save_message(raw_message("Two"), "Work")
    checks = dict.fromkeys(("spam_check", "virus_check"), switches)
    run = await ran(ada.world, await connector(ada, far, **checks))
    assert (run.state, run.imported) == (TaskState.SUCCEEDED, 2), run.log
    document = (
        '{ viewer { user { mailbox(by: {path: "INBOX"}) { messages { nodes { source } } } } } }'
    )
    (node,) = (await ada(document))["viewer"]["user"]["mailbox"]["messages"]["nodes"]
    assert "A secret." not in node["source"]
    assert b"A secret." in opened(node["source"].encode(), pair)


# what is cut off


@pytest.mark.parametrize("place", ["sifted", "commit", "fetched"])
@pytest.mark.parametrize("remove_duplicates", [True, False])
async def test_a_crash_doubles_nothing_and_loses_nothing(
    ada: Client, far: DovecotAccount, place: str, *, remove_duplicates: bool
) -> None:
    await filed(ada)
    names = [f"Nr {nth}" for nth in range(MANY)]
    far.save_messages([raw_message(name) for name in names])
    key = await connector(
        ada, far, apply_filters=True, remove_duplicates=remove_duplicates, **RETENTION
    )
    await run_connectors_until_killed(ada.world, 5 if place == "commit" else 1, place)
    assert (await newest(ada.world, key)).state is TaskState.RUNNING
    before = len((await stored(ada.world)).get("INBOX", []))
    assert 0 < before < MANY
    assert far.count_messages() == MANY
    await taken_for_dead(ada.world)
    run = await ran(ada.world, key)
    assert run.state is TaskState.SUCCEEDED, run.log
    assert sorted((await stored(ada.world))["INBOX"]) == sorted(names)
    assert far.count_messages() == 0


async def test_what_came_before_a_crash_is_followed_behind_it(
    ada: Client, far: DovecotAccount
) -> None:
    await filed(ada)
    for name in ("One", "Two"):
        far.save_message(raw_message(name))
    key = await connector(ada, far, apply_filters=True)
    await run_connectors_until_killed(ada.world, 1, "sifted")
    await taken_for_dead(ada.world)
    assert (await ran(ada.world, key)).imported == 2
    far.run_doveadm("flags add", "\\Flagged", "mailbox", "INBOX", "all")
    await again(ada.world, key)
    assert [(await message(ada.world, name)).flagged for name in ("One", "Two")] == [True, True]


async def test_a_full_account_takes_what_fits_and_the_rest_later(
    ada: Client, far: DovecotAccount, clock: Clock
) -> None:
    await filed(ada)
    for nth in range(5):
        far.save_message(raw_message(f"Nr {nth}", body="x" * 50_000))
    await room(ada, 170_000)
    key = await connector(ada, far, apply_filters=True, remove_duplicates=False)
    run = await ran(ada.world, key)
    assert (run.state, run.stage, run.imported) == (TaskState.FAILED, "STORE", 3), run.log
    assert len(await letters(ada)) == 3
    await room(ada, 1 << 30)
    clock.tick(days=2)  # no receipt tells of them any more
    run = await again(ada.world, key)
    assert (run.state, run.imported) == (TaskState.SUCCEEDED, 2), run.log
    assert await letters(ada) == [f"Nr {nth}" for nth in range(5)]


async def letters(client: Client) -> list[str]:
    """What has come, without what we have written about the quota."""
    return sorted(name for name in (await stored(client.world))["INBOX"] if name[:3] == "Nr ")


async def room(client: Client, quota: int) -> None:
    async with client.world.write_session() as session:
        this = update(core_table(User)).where(col(User.id) == client.user.id)
        await (await session.connection()).execute(this.values(quota=quota))
