"""Letters to accounts whose storage is running out."""

import asyncio
from dataclasses import replace
from email import message_from_bytes
from email.message import EmailMessage
from email.policy import default
from string import Formatter
from typing import Any

import pytest
from sqlalchemy import update

from mail.text.languages import text_in_language
from models.admin.tasks import Task
from models.errors import OverQuota
from models.runtime.environment import CommittedOptions, Environment
from resolvers.admin import tasks
from resolvers.users.quota.quota_warning_texts import TEXTS_BY_LANGUAGE, QuotaWarningTexts
from tests.conftest import Client, Clock
from tests.support.accounts.quota_accounts import (
    QUOTA,
    bounded,
    change,
    fill,
    letters,
    storage,
    told,
)
from tests.support.operations.bulk_operations import DELETE
from tests.support.stores.counter_check import examine, rows

INBOX = """{ viewer { user { mailbox(by: {path: "INBOX"}) {
  messages(first: 50) { nodes { source } } } } } }"""


async def work(world: Environment) -> int:
    """Do all that is waiting; how many tasks that were."""
    done = 0
    while await tasks.run_next_task(world):
        done += 1
    return done


async def found(client: Client) -> list[EmailMessage]:
    """The letters of ours in the INBOX, the oldest first."""
    nodes = (await client(INBOX))["viewer"]["user"]["mailbox"]["messages"]["nodes"]
    parsed: list[Any] = [
        message_from_bytes(node["source"].encode(), policy=default) for node in reversed(nodes)
    ]
    return [each for each in parsed if each["Auto-Submitted"]]


async def subjects(client: Client) -> list[str]:
    return [str(each["Subject"]) for each in await found(client)]


async def test_a_letter_says_how_full_the_mailbox_is(ada: Client) -> None:
    await bounded(ada, quota=QUOTA)
    await change(ada.world, ada, name="Ada L.")
    await fill(ada, 7_500, 600)
    assert await found(ada) == []
    assert await work(ada.world) == 1
    (letter,) = await found(ada)
    assert letter["Subject"] == "Your mailbox is 81 % full"
    assert letter["From"] == "Postmaster <postmaster@example.org>"
    assert letter["To"] == '"Ada L." <ada@example.org>'
    assert letter["Auto-Submitted"] == "auto-generated"  # so no automatic answer comes
    assert letter.get_content().replace("\r\n", "\n") == (
        "7.9 KiB of 9.8 KiB in your mailbox ada@example.org are in use.\n\n"
        "Once it is full, new messages are turned away, and their senders hear of it.\n\n"
        "Delete what you no longer need, or ask for more room.\n"
    )
    ((sender, seen),) = await rows(
        ada.world, "SELECT envelope_from, seen FROM messages WHERE subject LIKE 'Your%'"
    )
    assert (sender, bool(seen)) == ("", False)
    assert await work(ada.world) == 0
    await examine(ada.world)


async def test_each_mark_has_its_letter_once(ada: Client, clock: Clock) -> None:
    await bounded(ada, quota=100_000)
    await fill(ada, 80_000, 1_000)
    await work(ada.world)
    await fill(ada, 1_000, 13_000, 500)
    await work(ada.world)
    for _ in range(3):
        with pytest.raises(OverQuota):
            await fill(ada, 5_000)
        await work(ada.world)
        clock.tick(days=1)
    assert await subjects(ada) == [
        "Your mailbox is 81 % full",
        "Your mailbox is 96 % full",
        "Your mailbox is full",
    ]
    turned_away = (await found(ada))[-1].get_content()
    assert turned_away.startswith("A message was turned away, because there is no room for it.")
    await examine(ada.world)


async def test_two_marks_that_are_passed_before_the_worker_comes_have_one_letter(
    ada: Client,
) -> None:
    await bounded(ada, quota=QUOTA)
    await fill(ada, 8_000, 1_500)
    assert await work(ada.world) == 2
    assert await subjects(ada) == ["Your mailbox is 95 % full"]


async def test_a_letter_goes_into_a_full_mailbox_and_leads_to_no_other(ada: Client) -> None:
    world = ada.world
    await bounded(ada, quota=QUOTA)
    await fill(ada, QUOTA)
    assert await work(world) == 1
    assert await subjects(ada) == ["Your mailbox is full"]
    ((used,),) = await rows(world, "SELECT used FROM users")
    assert QUOTA < used < QUOTA + 2_000
    with pytest.raises(OverQuota):
        await fill(ada, 500)
    assert (await told(ada))[0] == storage("FULL", QUOTA)
    assert await work(world) == 0  # it says already that mail is turned away
    await examine(world)


async def test_a_letter_that_passes_a_mark_by_itself_leads_to_no_other(ada: Client) -> None:
    await bounded(ada, quota=QUOTA)
    await fill(ada, 9_490)
    assert await work(ada.world) == 1
    assert await subjects(ada) == ["Your mailbox is 94 % full"]
    limit, level, used, _, refused = (await told(ada))[-1]
    assert (limit, level, refused, used > QUOTA) == ("STORAGE", "FULL", False, True)
    assert await letters(ada.world) == 1
    with pytest.raises(OverQuota):
        await fill(ada, 500)
    assert await work(ada.world) == 1
    assert await subjects(ada) == ["Your mailbox is 94 % full", "Your mailbox is full"]
    for _ in range(2):
        with pytest.raises(OverQuota):
            await fill(ada, 500)
    assert await work(ada.world) == 0
    await examine(ada.world)


async def test_an_account_that_was_given_less_than_it_has_hears_of_what_is_turned_away(
    ada: Client,
) -> None:
    await fill(ada, 50_000)
    await bounded(ada, quota=QUOTA)
    for _ in range(3):
        with pytest.raises(OverQuota):
            await fill(ada, 500)
    assert await work(ada.world) == 1
    (letter,) = await found(ada)
    assert letter["Subject"] == "Your mailbox is full"
    assert "48.8 KiB of 9.8 KiB" in letter.get_content()
    await examine(ada.world)


async def test_what_is_below_the_mark_when_the_worker_comes_is_not_written_of(ada: Client) -> None:
    await bounded(ada, quota=QUOTA)
    await fill(ada, 5_000, 4_000)
    select = {"mailbox": {"path": "INBOX"}, "uids": "1:*"}
    assert (await ada(DELETE, input={"select": select}))["messageDelete"]["deletedCount"] == 2
    assert await work(ada.world) == 1
    assert await found(ada) == []
    await fill(ada, 8_100)
    await work(ada.world)
    assert await subjects(ada) == ["Your mailbox is 81 % full"]


async def test_a_worker_that_dies_behind_the_letter_writes_no_second(
    ada: Client, world: Environment, clock: Clock
) -> None:
    await bounded(ada, quota=QUOTA)
    await fill(ada, 8_100)
    await work(world)
    async with world.write_session() as session:  # as it was right before the end
        again = update(Task).values(state="RUNNING", finished_at=None)
        await (await session.connection()).execute(again)
    clock.tick(seconds=61)
    assert await work(world) == 1
    assert len(await found(ada)) == 1
    ((state,),) = await rows(world, "SELECT state FROM tasks")
    assert state == "SUCCEEDED"


async def test_two_workers_write_one_letter(ada: Client) -> None:
    await bounded(ada, quota=QUOTA)
    await fill(ada, 8_100)
    assert sum(await asyncio.gather(work(ada.world), work(ada.world))) == 1
    assert len(await found(ada)) == 1


async def test_nobody_is_written_to_where_letters_are_off(ada: Client) -> None:
    ada.world.apply_options(
        CommittedOptions(replace(ada.world.options, limit_letters=False), 10**6)
    )
    await bounded(ada, quota=QUOTA)
    await fill(ada, 9_600)
    assert await told(ada) == [storage("CRITICAL", 9_600)]
    assert await work(ada.world) == 0


async def test_an_account_that_has_gone_is_not_written_to(ada: Client, root: Client) -> None:
    await bounded(ada, quota=QUOTA)
    await fill(ada, 9_600)
    document = """mutation { userDelete(input: {users: {usernames: ["ada"]},
      deleteAfter: "2031-01-01T00:00:00Z"}) { errors { code } } }"""
    assert (await root(document))["userDelete"]["errors"] == []
    assert await work(ada.world) == 1
    ((state, error),) = await rows(
        ada.world, "SELECT state, error FROM tasks WHERE kind = 'LIMIT_LETTER'"
    )
    assert (state, error) == ("SUCCEEDED", None)
    assert await rows(ada.world, "SELECT id FROM messages WHERE subject LIKE 'Your%'") == []


async def test_an_account_without_an_address_is_written_to_by_its_name(ada: Client) -> None:
    async with ada.world.write_session() as session:
        connection = await session.connection()
        await connection.exec_driver_sql("UPDATE addresses SET main = false")
    await bounded(ada, quota=QUOTA)
    await fill(ada, 8_100)
    await work(ada.world)
    (letter,) = await found(ada)
    assert letter["To"] == "ada@mx.example.org"


@pytest.mark.parametrize(
    ("language", "subject", "number"),
    [
        ("de", "Ihr Postfach ist zu 81 % voll", "7,9 KiB"),
        ("pt-BR", "A sua caixa de correio está 81 % cheia", "7,9 KiB"),
        ("fr_CA", "Votre boîte aux lettres est pleine à 81 %", "7,9 KiB"),
        ("tlh", "Your mailbox is 81 % full", "7.9 KiB"),
    ],
)
async def test_a_letter_is_in_the_language_of_the_account(
    ada: Client, language: str, subject: str, number: str
) -> None:
    await bounded(ada, quota=QUOTA)
    await change(ada.world, ada, language=language)
    await fill(ada, 8_100)
    await work(ada.world)
    (letter,) = await found(ada)
    assert letter["Subject"] == subject
    assert number in letter.get_content()


@pytest.mark.parametrize("language", TEXTS_BY_LANGUAGE)
def test_every_language_says_the_same(language: str) -> None:
    words: QuotaWarningTexts | None = text_in_language(language, TEXTS_BY_LANGUAGE)
    assert words is not None

    def named(text: str) -> set[str | None]:
        return {name for _, name, _, _ in Formatter().parse(text) if name}

    assert named(words.nearly_full_subject) == {"percent"}
    assert named(words.usage_text) == {"address", "used", "allowed"}
    for text in (
        words.full_subject,
        words.nearly_full_text,
        words.full_text,
        words.message_refused_text,
        words.advice,
    ):
        assert named(text) == set()
        assert text == text.strip() != ""
