"""Letters that tell accounts of mail that is held for them."""

from datetime import timedelta
from email import message_from_bytes
from email.message import EmailMessage
from email.policy import default
from string import Formatter
from typing import Any

import pytest
from sqlalchemy import delete
from sqlmodel import col

from mail.delivery import quarantine
from mail.delivery.quarantine import QuarantineReason
from models.events.journal import ChangeKind
from models.runtime.environment import Environment
from models.spam.quarantine import QuarantineItem
from resolvers.admin import tasks
from resolvers.spam.quarantine_digest import MAX_LISTED_MESSAGES
from resolvers.spam.quarantine_digest_texts import TEXTS_BY_LANGUAGE, DigestTexts
from tests.conftest import Client, Clock, raw_message
from tests.support.accounts.quota_accounts import bounded, change, fill
from tests.support.operations.bulk_operations import DELETE
from tests.support.operations.quarantine_operations import held, hold, set_options
from tests.support.stores.counter_check import journal, reached, rows

INBOX = """{ viewer { user { mailbox(by: {path: "INBOX"}) {
  messages(first: 50) { nodes { id source } } } } } }"""
pytestmark = pytest.mark.usefixtures("examined")


async def work(world: Environment) -> int:
    """Look who is to be written to, and do all that is waiting; how many tasks that were."""
    await quarantine.schedule_notifications(world)
    done = 0
    while await tasks.run_next_task(world):
        done += 1
    return done


async def letters(client: Client) -> list[EmailMessage]:
    """The letters of ours in the INBOX, the oldest first."""
    nodes = (await client(INBOX))["viewer"]["user"]["mailbox"]["messages"]["nodes"]
    parsed: list[Any] = [
        message_from_bytes(node["source"].encode(), policy=default) for node in reversed(nodes)
    ]
    return [each for each in parsed if each["Auto-Submitted"]]


def text(letter: EmailMessage) -> str:
    content: str = letter.get_content()
    return content.replace("\r\n", "\n")


async def often(client: Client, how: str) -> None:
    document = """mutation ($input: QuarantineNotificationSetInput!) {
      quarantineNotificationSet(input: $input) { errors { message } } }"""
    answer = await client(document, input={"frequency": how})
    assert answer["quarantineNotificationSet"]["errors"] == []


async def test_a_letter_tells_of_what_is_held(ada: Client, clock: Clock) -> None:
    world = ada.world
    set_options(world, quarantine_url="https://mail.example.org/held")
    await hold(ada, raw_message("Cheap\tpills \u202e!", From="Carol\u200b C. <carol@x.example>"))
    clock.tick(hours=2)
    await hold(
        ada, raw_message("", From=""), QuarantineReason(1.0, (), "Eicar"), sender="b@x.example"
    )
    clock.tick(hours=21)
    assert await work(world) == 0
    clock.tick(hours=1)
    since = await reached(world, ada.user.id)
    assert await work(world) == 1
    (letter,) = await letters(ada)
    assert letter["Subject"] == "Messages held for you: 2"
    assert letter["From"] == "Postmaster <postmaster@example.org>"
    assert letter["Auto-Submitted"] == "auto-generated"
    assert text(letter) == (
        "These messages for ada@example.org look unwanted or dangerous, and were not delivered.\n\n"
        "-\n  <b@x.example>\n  2030-01-01 02:00 UTC, held until 2030-01-31, holds a virus\n\n"
        "Cheap pills !\n  Carol C. <carol@x.example>\n"
        "  2030-01-01 00:00 UTC, held until 2030-01-31\n\n"
        "Let in what you want to have. All else is deleted on its day.\n\n"
        "See all of them: https://mail.example.org/held\n"
    )
    told = [keys for kind, keys in await journal(world, ada.user.id, since)
            if kind is ChangeKind.QUARANTINE_CHANGED]  # fmt: skip
    assert told == [[row.id for row in await held(world)]]
    assert all(row.notified for row in await held(world))
    ((sender,),) = await rows(world, "SELECT envelope_from FROM messages")
    assert sender == ""


async def test_each_message_is_told_of_once(ada: Client, clock: Clock) -> None:
    world = ada.world
    await hold(ada, "a")
    clock.tick(days=1)
    assert (await work(world), await work(world)) == (1, 0)
    clock.tick(days=5)
    assert await work(world) == 0
    await hold(ada, "b")
    clock.tick(hours=23)
    assert await work(world) == 0
    clock.tick(hours=1)
    assert await work(world) == 1
    first, second = await letters(ada)
    assert ("\na\n" in text(first), "\nb\n" in text(first)) == (True, False)
    assert ("\na\n" in text(second), "\nb\n" in text(second)) == (False, True)


@pytest.mark.parametrize(
    ("how", "wait"),
    [("HOURLY", timedelta(hours=1)), ("WEEKLY", timedelta(days=7)), ("NEVER", None)],
)
async def test_everybody_waits_as_they_chose(
    how: str, wait: timedelta | None, ada: Client, clock: Clock
) -> None:
    await often(ada, how)
    await hold(ada, "a")
    if wait:
        clock.tick(seconds=wait.total_seconds() - 1)
        assert await work(ada.world) == 0
        clock.tick(seconds=1)
        assert await work(ada.world) == 1
    else:
        clock.tick(days=29)
        assert await work(ada.world) == 0
        assert await letters(ada) == []


async def test_nobody_waits_until_it_is_gone(ada: Client, clock: Clock) -> None:
    set_options(ada.world, quarantine_for=timedelta(days=4))
    await often(ada, "WEEKLY")
    await hold(ada, "a")
    clock.tick(days=2)
    assert await work(ada.world) == 1
    assert len(await letters(ada)) == 1


async def test_of_many_some_are_named(ada: Client, clock: Clock) -> None:
    for nth in range(MAX_LISTED_MESSAGES + 2):
        await hold(ada, f"Offer {nth:03}")
        clock.tick(seconds=1)
    clock.tick(days=1)
    await work(ada.world)
    (letter,) = await letters(ada)
    assert letter["Subject"] == f"Messages held for you: {MAX_LISTED_MESSAGES + 2}"
    assert text(letter).count("Offer") == MAX_LISTED_MESSAGES
    assert "\nNot shown here: 2 more.\n" in text(letter)
    assert "Offer 001" not in text(letter)
    assert all(row.notified for row in await held(ada.world))


async def test_long_words_of_strangers_are_cut(ada: Client, clock: Clock) -> None:
    await hold(ada, raw_message("x" * 5000, From=f"{'y' * 3000} <c@x.example>"))
    clock.tick(days=1)
    await work(ada.world)
    (letter,) = await letters(ada)
    assert max(map(len, text(letter).splitlines())) <= 110
    assert "x" * 99 + "…" in text(letter)


async def test_what_was_let_in_or_deleted_meanwhile_is_not_told_of(
    ada: Client, bob: Client, clock: Clock
) -> None:
    world = ada.world
    for client in (ada, bob):
        await hold(client, "a")
    clock.tick(days=1)
    assert await quarantine.schedule_notifications(world) == 2
    assert await quarantine.schedule_notifications(world) == 0  # both are being written to
    async with world.write_session(ada.user.id) as session:
        mine = delete(QuarantineItem).where(col(QuarantineItem.user_id) == ada.user.id)
        await (await session.connection()).execute(mine)
    await often(bob, "NEVER")
    while await tasks.run_next_task(world):
        pass
    assert (await letters(ada), await letters(bob)) == ([], [])


async def test_a_letter_goes_into_a_full_mailbox_and_to_nobody_who_is_closed(
    ada: Client, bob: Client, clock: Clock
) -> None:
    world = ada.world
    for client in (ada, bob):
        await hold(client, "a")
    await bounded(ada, quota=3000)
    await fill(ada, 3000)
    while await tasks.run_next_task(world):
        pass
    clock.tick(days=1)
    before = len(await letters(ada))
    assert await work(world) == 2
    assert len(await letters(ada)) == before + 1
    await hold(bob, "b")
    await change(world, bob, disabled=True)
    clock.tick(days=1)
    assert await quarantine.schedule_notifications(world) == 0


@pytest.mark.parametrize("language", TEXTS_BY_LANGUAGE)
async def test_it_is_written_in_the_language_of_its_reader(
    language: str, ada: Client, clock: Clock
) -> None:
    await change(ada.world, ada, language=language)
    await hold(ada, "a", QuarantineReason(1.0, (), "Eicar"))
    clock.tick(days=1)
    await work(ada.world)
    (letter,) = await letters(ada)
    words = TEXTS_BY_LANGUAGE[language]
    assert letter["Subject"] == words.subject.format(many=1)
    assert words.virus in text(letter)
    assert words.advice in text(letter)


@pytest.mark.parametrize("language", TEXTS_BY_LANGUAGE)
def test_the_sentences_of_all_languages_have_the_same_places(language: str) -> None:
    def places(words: DigestTexts) -> list[set[str | None]]:
        texts = (getattr(words, name) for name in words.__dataclass_fields__)
        return [{place for _, place, _, _ in Formatter().parse(text)} - {None} for text in texts]

    assert places(TEXTS_BY_LANGUAGE[language]) == places(TEXTS_BY_LANGUAGE["en"])


async def test_a_deleted_letter_is_not_written_again(ada: Client, clock: Clock) -> None:
    await hold(ada, "a")
    clock.tick(days=1)
    await work(ada.world)
    nodes = (await ada(INBOX))["viewer"]["user"]["mailbox"]["messages"]["nodes"]
    gone = {"select": {"ids": [nodes[0]["id"]]}}
    assert (await ada(DELETE, input=gone))["messageDelete"]["errors"] == []
    clock.tick(days=3)
    assert await work(ada.world) == 0
