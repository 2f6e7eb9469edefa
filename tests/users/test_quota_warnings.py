"""Warning messages to users whose storage is nearly full."""

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
from tests.conftest import GraphQLClient, ManualClock
from tests.support.accounts.quota_accounts import (
    QUOTA,
    count_warning_tasks,
    load_limit_events,
    receive_messages_of_sizes,
    set_user_limits,
    storage_event,
    update_user_columns,
)
from tests.support.operations.bulk_operations import MESSAGE_DELETE
from tests.support.stores.counter_check import assert_store_consistent, select_rows

INBOX_QUERY = """{ viewer { user { mailbox(by: {path: "INBOX"}) {
  messages(first: 50) { nodes { rawSource } } } } } }"""


async def run_tasks(environment: Environment) -> int:
    """Run all due tasks, and return their number."""
    task_count = 0
    while await tasks.run_next_task(environment):
        task_count += 1
    return task_count


async def load_warnings(client: GraphQLClient) -> list[EmailMessage]:
    """Return the warnings in INBOX, oldest first."""
    nodes = (await client(INBOX_QUERY))["viewer"]["user"]["mailbox"]["messages"]["nodes"]
    parsed: list[Any] = [
        message_from_bytes(node["rawSource"].encode(), policy=default) for node in reversed(nodes)
    ]
    return [message for message in parsed if message["Auto-Submitted"]]


async def load_subjects(client: GraphQLClient) -> list[str]:
    return [str(warning["Subject"]) for warning in await load_warnings(client)]


async def test_warning_has_percentage_and_sizes(ada: GraphQLClient) -> None:
    await set_user_limits(ada, quota=QUOTA)
    await update_user_columns(ada.environment, ada, name="Ada L.")
    await receive_messages_of_sizes(ada, 7_500, 600)
    assert await load_warnings(ada) == []
    assert await run_tasks(ada.environment) == 1
    (warning,) = await load_warnings(ada)
    assert warning["Subject"] == "Your mailbox is 81 % full"
    assert warning["From"] == "Postmaster <postmaster@example.org>"
    assert warning["To"] == '"Ada L." <ada@example.org>'
    assert warning["Auto-Submitted"] == "auto-generated"  # prevents automatic replies
    assert warning.get_content().replace("\r\n", "\n") == (
        "7.9 KiB of 9.8 KiB in your mailbox ada@example.org are in use.\n\n"
        "Once it is full, new messages are refused, and their senders are notified.\n\n"
        "Delete messages that you no longer need, or ask your administrator for more storage.\n"
    )
    ((sender, seen),) = await select_rows(
        ada.environment, "SELECT envelope_from, seen FROM messages WHERE subject LIKE 'Your%'"
    )
    assert (sender, bool(seen)) == ("", False)
    assert await run_tasks(ada.environment) == 0
    await assert_store_consistent(ada.environment)


async def test_each_threshold_has_one_warning(ada: GraphQLClient, clock: ManualClock) -> None:
    await set_user_limits(ada, quota=100_000)
    await receive_messages_of_sizes(ada, 80_000, 1_000)
    await run_tasks(ada.environment)
    await receive_messages_of_sizes(ada, 1_000, 13_000, 500)
    await run_tasks(ada.environment)
    for _ in range(3):
        with pytest.raises(OverQuota):
            await receive_messages_of_sizes(ada, 5_000)
        await run_tasks(ada.environment)
        clock.tick(days=1)
    assert await load_subjects(ada) == [
        "Your mailbox is 81 % full",
        "Your mailbox is 96 % full",
        "Your mailbox is full",
    ]
    refusal_text = (await load_warnings(ada))[-1].get_content()
    assert refusal_text.startswith("A message was refused because the account has no space for it.")
    await assert_store_consistent(ada.environment)


async def test_two_thresholds_before_the_worker_runs_give_one_warning(
    ada: GraphQLClient,
) -> None:
    await set_user_limits(ada, quota=QUOTA)
    await receive_messages_of_sizes(ada, 8_000, 1_500)
    assert await run_tasks(ada.environment) == 2
    assert await load_subjects(ada) == ["Your mailbox is 95 % full"]


async def test_warning_is_stored_in_full_mailbox_without_a_second_one(ada: GraphQLClient) -> None:
    environment = ada.environment
    await set_user_limits(ada, quota=QUOTA)
    await receive_messages_of_sizes(ada, QUOTA)
    assert await run_tasks(environment) == 1
    assert await load_subjects(ada) == ["Your mailbox is full"]
    ((used,),) = await select_rows(environment, "SELECT used FROM users")
    assert QUOTA < used < QUOTA + 2_000
    with pytest.raises(OverQuota):
        await receive_messages_of_sizes(ada, 500)
    assert (await load_limit_events(ada))[0] == storage_event("FULL", QUOTA)
    assert await run_tasks(environment) == 0  # the warning already says that messages are refused
    await assert_store_consistent(environment)


async def test_warning_that_passes_a_threshold_causes_no_second_one(ada: GraphQLClient) -> None:
    await set_user_limits(ada, quota=QUOTA)
    await receive_messages_of_sizes(ada, 9_490)
    assert await run_tasks(ada.environment) == 1
    assert await load_subjects(ada) == ["Your mailbox is 94 % full"]
    limit, level, used, _, refused = (await load_limit_events(ada))[-1]
    assert (limit, level, refused, used > QUOTA) == ("STORAGE", "FULL", False, True)
    assert await count_warning_tasks(ada.environment) == 1
    with pytest.raises(OverQuota):
        await receive_messages_of_sizes(ada, 500)
    assert await run_tasks(ada.environment) == 1
    assert await load_subjects(ada) == ["Your mailbox is 94 % full", "Your mailbox is full"]
    for _ in range(2):
        with pytest.raises(OverQuota):
            await receive_messages_of_sizes(ada, 500)
    assert await run_tasks(ada.environment) == 0
    await assert_store_consistent(ada.environment)


async def test_refusal_after_quota_reduction_gives_a_warning(
    ada: GraphQLClient,
) -> None:
    await receive_messages_of_sizes(ada, 50_000)
    await set_user_limits(ada, quota=QUOTA)
    for _ in range(3):
        with pytest.raises(OverQuota):
            await receive_messages_of_sizes(ada, 500)
    assert await run_tasks(ada.environment) == 1
    (warning,) = await load_warnings(ada)
    assert warning["Subject"] == "Your mailbox is full"
    assert "48.8 KiB of 9.8 KiB" in warning.get_content()
    await assert_store_consistent(ada.environment)


async def test_usage_below_threshold_when_worker_runs_gives_no_warning(ada: GraphQLClient) -> None:
    await set_user_limits(ada, quota=QUOTA)
    await receive_messages_of_sizes(ada, 5_000, 4_000)
    select = {"mailbox": {"path": "INBOX"}, "uids": "1:*"}
    assert (await ada(MESSAGE_DELETE, input={"select": select}))["messageDelete"][
        "deletedCount"
    ] == 2
    assert await run_tasks(ada.environment) == 1
    assert await load_warnings(ada) == []
    await receive_messages_of_sizes(ada, 8_100)
    await run_tasks(ada.environment)
    assert await load_subjects(ada) == ["Your mailbox is 81 % full"]


async def test_worker_crash_after_the_warning_causes_no_second_one(
    ada: GraphQLClient, environment: Environment, clock: ManualClock
) -> None:
    await set_user_limits(ada, quota=QUOTA)
    await receive_messages_of_sizes(ada, 8_100)
    await run_tasks(environment)
    async with environment.write_session() as session:  # the state right before the end of the task
        reset_statement = update(Task).values(state="RUNNING", finished_at=None)
        await (await session.connection()).execute(reset_statement)
    clock.tick(seconds=61)
    assert await run_tasks(environment) == 1
    assert len(await load_warnings(ada)) == 1
    ((state,),) = await select_rows(environment, "SELECT state FROM tasks")
    assert state == "SUCCEEDED"


async def test_two_workers_write_one_warning(ada: GraphQLClient) -> None:
    await set_user_limits(ada, quota=QUOTA)
    await receive_messages_of_sizes(ada, 8_100)
    assert sum(await asyncio.gather(run_tasks(ada.environment), run_tasks(ada.environment))) == 1
    assert len(await load_warnings(ada)) == 1


async def test_disabled_warnings_are_not_written(ada: GraphQLClient) -> None:
    ada.environment.use_options_unless_outdated(
        CommittedOptions(replace(ada.environment.options, quota_warning_emails=False), 10**6)
    )
    await set_user_limits(ada, quota=QUOTA)
    await receive_messages_of_sizes(ada, 9_600)
    assert await load_limit_events(ada) == [storage_event("CRITICAL", 9_600)]
    assert await run_tasks(ada.environment) == 0


async def test_deleted_user_gets_no_warning(ada: GraphQLClient, root: GraphQLClient) -> None:
    await set_user_limits(ada, quota=QUOTA)
    await receive_messages_of_sizes(ada, 9_600)
    document = """mutation { userDelete(input: {users: {usernames: ["ada"]},
      purgeAt: "2031-01-01T00:00:00Z"}) { errors { code } } }"""
    assert (await root(document))["userDelete"]["errors"] == []
    assert await run_tasks(ada.environment) == 1
    ((state, error),) = await select_rows(
        ada.environment, "SELECT state, error FROM tasks WHERE kind = 'LIMIT_WARNING'"
    )
    assert (state, error) == ("SUCCEEDED", None)
    assert (
        await select_rows(ada.environment, "SELECT id FROM messages WHERE subject LIKE 'Your%'")
        == []
    )


async def test_user_without_address_gets_warning_by_username(ada: GraphQLClient) -> None:
    async with ada.environment.write_session() as session:
        connection = await session.connection()
        await connection.exec_driver_sql("UPDATE addresses SET main = false")
    await set_user_limits(ada, quota=QUOTA)
    await receive_messages_of_sizes(ada, 8_100)
    await run_tasks(ada.environment)
    (warning,) = await load_warnings(ada)
    assert warning["To"] == "ada@mx.example.org"


@pytest.mark.parametrize(
    ("language", "subject", "number"),
    [
        ("de", "Ihr Postfach ist zu 81 % voll", "7,9 KiB"),
        ("pt-BR", "A sua caixa de correio está 81 % cheia", "7,9 KiB"),
        ("fr_CA", "Votre boîte aux lettres est pleine à 81 %", "7,9 KiB"),
        ("tlh", "Your mailbox is 81 % full", "7.9 KiB"),
    ],
)
async def test_warning_is_in_the_language_of_the_user(
    ada: GraphQLClient, language: str, subject: str, number: str
) -> None:
    await set_user_limits(ada, quota=QUOTA)
    await update_user_columns(ada.environment, ada, language=language)
    await receive_messages_of_sizes(ada, 8_100)
    await run_tasks(ada.environment)
    (warning,) = await load_warnings(ada)
    assert warning["Subject"] == subject
    assert number in warning.get_content()


@pytest.mark.parametrize("language", TEXTS_BY_LANGUAGE)
def test_each_language_has_the_same_placeholders(language: str) -> None:
    texts: QuotaWarningTexts | None = text_in_language(language, TEXTS_BY_LANGUAGE)
    assert texts is not None

    def placeholder_names(text: str) -> set[str | None]:
        return {name for _, name, _, _ in Formatter().parse(text) if name}

    assert placeholder_names(texts.nearly_full_subject) == {"percent"}
    assert placeholder_names(texts.usage_text) == {"address", "used", "allowed"}
    for text in (
        texts.full_subject,
        texts.nearly_full_text,
        texts.full_text,
        texts.message_refused_text,
        texts.advice,
    ):
        assert placeholder_names(text) == set()
        assert text == text.strip() != ""
