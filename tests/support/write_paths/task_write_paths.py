"""Tasks as ways of writing to the database."""

from dataclasses import replace
from typing import Any

import httpx
from sqlmodel import col

from graph.app import create_app
from mail.delivery import quarantine
from models.mailboxes.tables import Mailbox
from models.runtime.environment import Environment
from models.users.tables import User
from resolvers.admin import tasks
from tests.conftest import GraphQLClient
from tests.support.accounts.quota_accounts import receive_messages_of_sizes, set_user_limits
from tests.support.operations.quarantine_operations import (
    quarantine_message,
    set_options,
)
from tests.support.sample_mutations import SAMPLE_CALLS, MutationCall
from tests.support.write_paths.write_path import (
    WRITE_PATHS,
    WriteAction,
    WritePath,
    WritePathContext,
    register_write_path,
    update_rows,
)


async def _run_tasks(environment: Environment) -> None:
    assert await tasks.run_next_task(environment)
    while await tasks.run_next_task(environment):
        pass


def register_task_path(
    task_kind: str, mutation_name: str, is_journaled: bool = True, **fields: Any
) -> None:
    """Add the task that a mutation creates as a write path."""

    async def prepare(stage: WritePathContext) -> WriteAction:
        sample = await SAMPLE_CALLS[mutation_name](stage.ada, stage.root)
        sample = replace(sample, input={**sample.input, **fields})
        client = sample.other_caller or (stage.root if sample.by_root else stage.ada)
        while await tasks.run_next_task(client.environment):
            pass
        assert (await sample(client))["errors"] == []
        return lambda: _run_tasks(client.environment)

    WRITE_PATHS[f"the task {task_kind}"] = WritePath(prepare, task_kind, is_journaled)


ASYNC_INPUT: Any = {"async": True}
register_task_path(
    "DELETED_MESSAGES_RESTORE",
    "deletedMessageRestore",
    select={"period": {"since": "2029-01-01T00:00:00Z", "before": "2031-01-01T00:00:00Z"}},
)


for _task_kind, _mutation_name in (
    ("MESSAGE_UPDATE", "messageUpdate"),
    ("MESSAGE_MOVE", "messageMove"),
    ("MESSAGE_COPY", "messageCopy"),
    ("MESSAGE_DELETE", "messageDelete"),
):
    register_task_path(_task_kind, _mutation_name, **ASYNC_INPUT)


for _task_kind, _mutation_name in (
    ("BLOB_COLLECT", "blobCollect"),
    ("USER_EXPORT", "userExport"),
    ("USER_IMPORT", "userImport"),
    ("HELD_COPY", "legalHoldCreate"),
    ("FILTER_APPLY", "filterApply"),
    ("SEARCH_INDEX_OPTIMIZE", "searchIndexOptimize"),
    ("SEARCH_INDEX_REBUILD", "searchIndexRebuild"),
    ("ADDRESSES_CREATE", "addressesCreateFromFile"),
    ("FILTERS_CREATE", "filtersCreateFromFile"),
    ("USERS_CREATE", "usersCreateFromFile"),
    ("WEBHOOK_REPLAY", "webhookReplay"),
):
    register_task_path(_task_kind, _mutation_name)


register_task_path("QUEUE_DELETE", "queueDelete", notifySender=True)
register_task_path("BLOB_DELETE", "blobDelete")


@register_write_path("QUEUE_FLUSH")
async def flush_large_queue(stage: WritePathContext) -> WriteAction:
    samples = [await SAMPLE_CALLS["queueFlush"](stage.ada, stage.root) for _ in range(2)]
    set_options(stage.environment, bulk_max_items=1)
    payload = await replace(samples[0], input={"all": True})(stage.root)
    assert payload["task"] == {"kind": "QUEUE_FLUSH"}
    return lambda: _run_tasks(stage.environment)


@register_write_path("USER_DELETE", "users", "addresses", "mailboxes", "messages", "files",
      "submissions", "security_events", "labels", "saved_searches", "key_value_entries",
      "quarantine_items", "tasks")  # fmt: skip
async def purge_account(stage: WritePathContext) -> WriteAction:
    """The journal has the deletion already, and the stream is deleted with the account."""
    await quarantine_message(stage.ada)
    purge = await SAMPLE_CALLS["userPurge"](stage.ada, stage.root)
    client = purge.other_caller or (stage.root if purge.by_root else stage.ada)
    assert (await purge(client))["errors"] == []
    stage.clock.tick(days=90)
    return lambda: _run_tasks(stage.environment)


@register_write_path("LIMIT_WARNING")
async def send_quota_warning(stage: WritePathContext) -> WriteAction:
    await set_user_limits(stage.ada, quota=10_000)
    await receive_messages_of_sizes(stage.ada, 7_500, 600)
    return lambda: _run_tasks(stage.environment)


@register_write_path("SECURITY_NOTIFICATION")
async def send_password_reset_notice(stage: WritePathContext) -> WriteAction:
    reset = await SAMPLE_CALLS["userPasswordReset"](stage.ada, stage.root)
    assert (await reset(stage.root))["errors"] == []
    return lambda: _run_tasks(stage.environment)


@register_write_path("QUARANTINE_NOTIFICATION")
async def send_quarantine_digest(stage: WritePathContext) -> WriteAction:
    await quarantine_message(stage.ada)
    stage.clock.tick(days=1)
    assert await quarantine.insert_due_notification_tasks(stage.environment) == 1
    return lambda: _run_tasks(stage.environment)


@register_write_path("MAILBOX_REPAIR", fully_journaled_tables=["mailboxes"])
async def repair_mailboxes(stage: WritePathContext) -> WriteAction:
    await update_rows(stage, Mailbox, {"message_count": 77}, col(Mailbox.path) == "INBOX")
    input_fields = {"users": {"all": True}, "mailboxPatterns": ["*"]}
    assert (await MutationCall("mailboxRepair", input_fields)(stage.root))["errors"] == []
    return lambda: _run_tasks(stage.environment)


@register_write_path("QUOTA_RECALCULATE", fully_journaled_tables=["users"])
async def recalculate_quota(stage: WritePathContext) -> WriteAction:
    await update_rows(stage, User, {"used": 5}, col(User.id) == stage.ada.user.id)
    input_fields = {"users": {"all": True}}
    assert (await MutationCall("quotaRecalculate", input_fields)(stage.root))["errors"] == []
    return lambda: _run_tasks(stage.environment)


@register_write_path("SEARCH_INDEX_BUILD")
async def build_search_index(stage: WritePathContext) -> WriteAction:
    input_fields = {"users": {"all": True}, "mailboxPatterns": ["*"], "background": True}
    assert (await MutationCall("searchIndexBuild", input_fields)(stage.root))["errors"] == []
    return lambda: _run_tasks(stage.environment)


@register_write_path("MESSAGE_TIER_MOVE")
async def move_blobs_to_other_tier(stage: WritePathContext) -> WriteAction:
    stage.monkeypatch.setattr("resolvers.messages.bulk.storage_tiers.MAX_INLINE_MESSAGES", 0)
    move = await SAMPLE_CALLS["messageTierMove"](stage.ada, stage.root)
    assert move.other_caller
    client = move.other_caller
    assert (await move(client))["errors"] == []
    return lambda: _run_tasks(client.environment)


@register_write_path("MAILBOX_RETENTION")
async def apply_retention_to_old_messages(stage: WritePathContext) -> WriteAction:
    input_fields = {
        "mailboxes": [{"path": "INBOX"}],
        "set": {"retention": "P1D"},
        "applyRetention": True,
    }
    assert (await MutationCall("mailboxUpdate", input_fields)(_client_with_bulk_limit(stage, 1)))[
        "errors"
    ] == []
    return lambda: _run_tasks(stage.environment)


@register_write_path("MESSAGE_DEDUPLICATE")
async def deduplicate_messages(stage: WritePathContext) -> WriteAction:
    deduplicate = await SAMPLE_CALLS["messageDeduplicate"](stage.ada, stage.root)
    assert (await deduplicate(_client_with_bulk_limit(stage, 0)))["errors"] == []
    return lambda: _run_tasks(stage.environment)


def _client_with_bulk_limit(stage: WritePathContext, bulk: int) -> GraphQLClient:
    """The client ada of an app where more messages than `bulk` are the work of a task."""
    environment = replace(
        stage.environment, options=replace(stage.environment.options, bulk_max_items=bulk)
    )
    transport = httpx.ASGITransport(app=create_app(environment, spool_folder=stage.folder / "few"))
    http = httpx.AsyncClient(transport=transport, base_url="http://test")
    return GraphQLClient(http, environment, stage.ada.user, stage.ada.secret)
