"""Messages that notify accounts of their quarantined mail."""

from datetime import timedelta
from email import message_from_bytes
from email.message import EmailMessage
from email.policy import default
from string import Formatter
from typing import Any

import httpx
import pytest
from sqlalchemy import delete
from sqlmodel import col

from mail.delivery import quarantine
from mail.delivery.quarantine import QuarantineReason
from models.events.event_types import EventType
from models.runtime.environment import Environment
from models.spam.quarantine import QuarantineItem
from resolvers.admin import tasks
from resolvers.spam.quarantine_digest import MAX_LISTED_MESSAGES
from resolvers.spam.quarantine_digest_texts import TEXTS_BY_LANGUAGE, DigestTexts
from tests.conftest import GraphQLClient, ManualClock, make_client, raw_message
from tests.support.accounts.quota_accounts import (
    receive_messages_of_sizes,
    set_user_limits,
    update_user_columns,
)
from tests.support.case_loop import each_case
from tests.support.operations.bulk_operations import MESSAGE_DELETE
from tests.support.operations.quarantine_operations import (
    load_quarantine_rows,
    quarantine_message,
    set_options,
)
from tests.support.stores.counter_check import (
    load_journal_entries,
    load_stream_position,
    select_rows,
)

INBOX = """{ viewer { user { mailbox(by: {path: "INBOX"}) {
  messages(first: 50) { nodes { id rawSource } } } } } }"""
pytestmark = pytest.mark.usefixtures("verify_consistency")


async def run_due_tasks(environment: Environment) -> int:
    """Create due notification tasks and run all waiting tasks; return the number of tasks."""
    await quarantine.insert_due_notification_tasks(environment)
    task_count = 0
    while await tasks.run_next_task(environment):
        task_count += 1
    return task_count


async def digest_messages(client: GraphQLClient) -> list[EmailMessage]:
    """Return the digest messages in the INBOX, the oldest first."""
    nodes = (await client(INBOX))["viewer"]["user"]["mailbox"]["messages"]["nodes"]
    parsed: list[Any] = [
        message_from_bytes(node["rawSource"].encode(), policy=default) for node in reversed(nodes)
    ]
    return [message for message in parsed if message["Auto-Submitted"]]


def digest_text(message: EmailMessage) -> str:
    content: str = message.get_content()
    return content.replace("\r\n", "\n")


async def set_frequency(client: GraphQLClient, frequency: str) -> None:
    document = """mutation ($input: UserUpdateInput!) {
      userUpdate(input: $input) { errors { message } } }"""
    answer = await client(document, input={"set": {"quarantineNotification": frequency}})
    assert answer["userUpdate"]["errors"] == []


async def test_digest_lists_quarantined_messages(ada: GraphQLClient, clock: ManualClock) -> None:
    environment = ada.environment
    set_options(environment, quarantine_url="https://mail.example.org/held")
    await quarantine_message(
        ada, raw_message("Cheap\tpills \u202e!", From="Carol\u200b C. <carol@x.example>")
    )
    clock.tick(hours=2)
    await quarantine_message(
        ada, raw_message("", From=""), QuarantineReason(1.0, (), "Eicar"), sender="b@x.example"
    )
    clock.tick(hours=21)
    assert await run_due_tasks(environment) == 0
    clock.tick(hours=1)
    position = await load_stream_position(environment, ada.user.id)
    assert await run_due_tasks(environment) == 1
    (digest,) = await digest_messages(ada)
    assert digest["Subject"] == "Messages held for you: 2"
    assert digest["From"] == "Postmaster <postmaster@example.org>"
    assert digest["Auto-Submitted"] == "auto-generated"
    assert digest_text(digest) == (
        "These messages for ada@example.org look unwanted or dangerous and were not delivered.\n\n"
        "-\n  <b@x.example>\n  2030-01-01 02:00 UTC, held until 2030-01-31, contains a virus\n\n"
        "Cheap pills !\n  Carol C. <carol@x.example>\n"
        "  2030-01-01 00:00 UTC, held until 2030-01-31\n\n"
        "Release the messages that you want. All others are deleted on the date shown.\n\n"
        "See all of them: https://mail.example.org/held\n"
    )
    changed_items = [
        keys
        for kind, keys in await load_journal_entries(environment, ada.user.id, position)
        if kind is EventType.QUARANTINE_NOTIFIED
    ]
    assert changed_items == [[row.id for row in await load_quarantine_rows(environment)]]
    assert all(row.notified for row in await load_quarantine_rows(environment))
    ((sender,),) = await select_rows(environment, "SELECT envelope_from FROM messages")
    assert sender == ""


async def test_each_message_is_listed_in_one_digest_only(
    ada: GraphQLClient, clock: ManualClock
) -> None:
    environment = ada.environment
    await quarantine_message(ada, "a")
    clock.tick(days=1)
    assert (await run_due_tasks(environment), await run_due_tasks(environment)) == (1, 0)
    clock.tick(days=5)
    assert await run_due_tasks(environment) == 0
    await quarantine_message(ada, "b")
    clock.tick(hours=23)
    assert await run_due_tasks(environment) == 0
    clock.tick(hours=1)
    assert await run_due_tasks(environment) == 1
    first, second = await digest_messages(ada)
    assert ("\na\n" in digest_text(first), "\nb\n" in digest_text(first)) == (True, False)
    assert ("\na\n" in digest_text(second), "\nb\n" in digest_text(second)) == (False, True)


async def test_digest_is_sent_at_the_chosen_frequency(
    environment: Environment, http: httpx.AsyncClient, clock: ManualClock
) -> None:
    cases: list[tuple[str, timedelta | None]] = [
        ("HOURLY", timedelta(hours=1)),
        ("WEEKLY", timedelta(days=7)),
        ("NEVER", None),
    ]
    for case in each_case(cases):
        with case as (frequency, wait):
            client = await make_client(environment, http, frequency.lower())
            await set_frequency(client, frequency)
            await quarantine_message(client, "a")
            if wait:
                clock.tick(seconds=wait.total_seconds() - 1)
                assert await run_due_tasks(environment) == 0
                clock.tick(seconds=1)
                assert await run_due_tasks(environment) == 1
            else:
                clock.tick(days=29)
                assert await run_due_tasks(environment) == 0
            assert len(await digest_messages(client)) == bool(wait)


async def test_digest_is_sent_before_messages_expire(
    ada: GraphQLClient, clock: ManualClock
) -> None:
    set_options(ada.environment, quarantine_retention=timedelta(days=4))
    await set_frequency(ada, "WEEKLY")
    await quarantine_message(ada, "a")
    clock.tick(days=2)
    assert await run_due_tasks(ada.environment) == 1
    assert len(await digest_messages(ada)) == 1


async def test_digest_lists_at_most_maximum_number_of_messages(
    ada: GraphQLClient, clock: ManualClock
) -> None:
    for number in range(MAX_LISTED_MESSAGES + 2):
        await quarantine_message(ada, f"Offer {number:03}")
        clock.tick(seconds=1)
    clock.tick(days=1)
    await run_due_tasks(ada.environment)
    (digest,) = await digest_messages(ada)
    assert digest["Subject"] == f"Messages held for you: {MAX_LISTED_MESSAGES + 2}"
    assert digest_text(digest).count("Offer") == MAX_LISTED_MESSAGES
    assert "\n2 more are not shown here.\n" in digest_text(digest)
    assert "Offer 001" not in digest_text(digest)
    assert all(row.notified for row in await load_quarantine_rows(ada.environment))


async def test_long_subject_and_sender_are_truncated_in_digest(
    ada: GraphQLClient, clock: ManualClock
) -> None:
    await quarantine_message(ada, raw_message("x" * 5000, From=f"{'y' * 3000} <c@x.example>"))
    clock.tick(days=1)
    await run_due_tasks(ada.environment)
    (digest,) = await digest_messages(ada)
    assert max(map(len, digest_text(digest).splitlines())) <= 110
    assert "x" * 99 + "…" in digest_text(digest)


async def test_no_digest_for_messages_deleted_or_notifications_turned_off(
    ada: GraphQLClient, bob: GraphQLClient, clock: ManualClock
) -> None:
    environment = ada.environment
    for client in (ada, bob):
        await quarantine_message(client, "a")
    clock.tick(days=1)
    assert await quarantine.insert_due_notification_tasks(environment) == 2
    # both already have a task
    assert await quarantine.insert_due_notification_tasks(environment) == 0
    async with environment.write_session(ada.user.id) as session:
        delete_items = delete(QuarantineItem).where(col(QuarantineItem.user_id) == ada.user.id)
        await (await session.connection()).execute(delete_items)
    await set_frequency(bob, "NEVER")
    while await tasks.run_next_task(environment):
        pass
    assert (await digest_messages(ada), await digest_messages(bob)) == ([], [])


async def test_digest_is_stored_over_quota_but_not_for_disabled_account(
    ada: GraphQLClient, bob: GraphQLClient, clock: ManualClock
) -> None:
    environment = ada.environment
    for client in (ada, bob):
        await quarantine_message(client, "a")
    await set_user_limits(ada, quota=3000)
    await receive_messages_of_sizes(ada, 3000)
    while await tasks.run_next_task(environment):
        pass
    clock.tick(days=1)
    count_before = len(await digest_messages(ada))
    assert await run_due_tasks(environment) == 2
    assert len(await digest_messages(ada)) == count_before + 1
    await quarantine_message(bob, "b")
    await update_user_columns(environment, bob, active=False)
    clock.tick(days=1)
    assert await quarantine.insert_due_notification_tasks(environment) == 0


async def test_digest_is_written_in_the_language_of_the_user(
    environment: Environment, http: httpx.AsyncClient, clock: ManualClock
) -> None:
    for case in each_case(TEXTS_BY_LANGUAGE):
        with case as language:
            client = await make_client(environment, http, f"user-{language.lower()}")
            await update_user_columns(environment, client, language=language)
            await quarantine_message(client, "a", QuarantineReason(1.0, (), "Eicar"))
            clock.tick(days=1)
            await run_due_tasks(environment)
            (digest,) = await digest_messages(client)
            texts = TEXTS_BY_LANGUAGE[language]
            assert digest["Subject"] == texts.subject.format(many=1)
            assert texts.virus in digest_text(digest)
            assert texts.advice in digest_text(digest)


def test_digest_texts_of_all_languages_have_the_same_placeholders() -> None:
    def placeholders(language_texts: DigestTexts) -> list[set[str | None]]:
        texts = (getattr(language_texts, name) for name in language_texts.__dataclass_fields__)
        return [
            {placeholder for _, placeholder, _, _ in Formatter().parse(sentence)} - {None}
            for sentence in texts
        ]

    english_placeholders = placeholders(TEXTS_BY_LANGUAGE["en"])
    for language, language_texts in TEXTS_BY_LANGUAGE.items():
        assert placeholders(language_texts) == english_placeholders, language


async def test_deleted_digest_is_not_sent_again(ada: GraphQLClient, clock: ManualClock) -> None:
    await quarantine_message(ada, "a")
    clock.tick(days=1)
    await run_due_tasks(ada.environment)
    nodes = (await ada(INBOX))["viewer"]["user"]["mailbox"]["messages"]["nodes"]
    delete_input = {"select": {"ids": [nodes[0]["id"]]}}
    assert (await ada(MESSAGE_DELETE, input=delete_input))["messageDelete"]["errors"] == []
    clock.tick(days=3)
    assert await run_due_tasks(ada.environment) == 0
