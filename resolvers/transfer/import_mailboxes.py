"""Mailboxes that messages are imported into: existing ones, and new ones."""

from collections.abc import Mapping
from dataclasses import replace
from datetime import timedelta
from typing import Any

from mail.archives.json_lines import AccountRecord
from mail.mailboxes import paths
from models.errors import Conflict, InvalidInput, LimitReached, RequestError
from models.mailboxes.tables import HOLDING_USES, SpecialUse
from models.validation_constraints import ValidationConstraint
from resolvers.context import Context
from resolvers.mailboxes import annotations
from resolvers.mailboxes import create as mailbox_create
from resolvers.mailboxes import loaders as mailbox_loaders
from resolvers.mailboxes import update as mailbox_update
from resolvers.mailboxes.create import NewMailboxes
from resolvers.mailboxes.loaders import MailboxSelector
from resolvers.mailboxes.update import MailboxUpdate
from resolvers.transfer.running_import import RunningImport
from resolvers.users.limit_values import Unlimited


async def load_import_mailbox_ids_by_path(ctx: Context, user_id: int) -> dict[str, int]:
    """Return the mailboxes of a user by path. The mailbox of snoozed mail maps to INBOX."""
    rows = await mailbox_loaders.load_visible_mailboxes_of_user(ctx, user_id, {"special_use"})
    mailbox_ids = {row.path: int(row.id) for row in rows}
    for row in rows:
        if row.special_use in HOLDING_USES:  # a message imported there would never be unsnoozed
            mailbox_ids[row.path] = mailbox_ids["INBOX"]
    return mailbox_ids


async def get_or_create_mailbox_id(
    ctx: Context, mailbox_ids: dict[str, int], mailbox_path: str, *, subscribe: bool
) -> int:
    """Return the ID of the viewer's mailbox at a path, and create it with its parents if missing.

    Adds new mailboxes to `mailbox_ids`. Raises InvalidInput for a bad path, LimitReached.
    """
    path = paths.validate_path(mailbox_path)
    while path not in mailbox_ids:
        new = NewMailboxes(
            paths.missing_paths_with_parents([path], mailbox_ids), is_subscribed=subscribe
        )
        try:
            mailbox_ids |= {
                mailbox.path: int(mailbox.id)
                for mailbox in await mailbox_create.create_mailboxes(ctx, new)
            }
        except Conflict:  # another import or the user has just created it
            ctx.clear_loaded()
            mailbox_ids |= await load_import_mailbox_ids_by_path(ctx, ctx.viewer.user_id)
    return mailbox_ids[path]


async def load_paths_by_special_use(ctx: Context) -> dict[SpecialUse, str]:
    """Return the paths of the viewer's mailboxes with a special use."""
    rows = await mailbox_loaders.load_visible_mailboxes_of_user(
        ctx, ctx.viewer.user_id, {"special_use"}
    )
    return {row.special_use: row.path for row in rows if row.special_use is not None}


async def create_mailboxes_or_record_skipped(
    running: RunningImport, account: AccountRecord, *, with_annotations: bool
) -> None:
    """Create the missing mailboxes of an account record, with annotations if wanted.

    Mailboxes that can't be created are added to the skipped items.
    """
    mailbox_records = sorted(
        account.mailboxes, key=lambda mailbox_record: paths.tree_sort_key(mailbox_record["path"])
    )
    for mailbox_record in mailbox_records if running.target_path is None else ():
        try:
            path = await _create_mailbox_if_missing(running, mailbox_record)
        except RequestError as problem:
            running.outcome.add_skipped(f"mailbox {mailbox_record['path']}", problem.message)
            if isinstance(problem, LimitReached):
                break  # the limit holds for all of them
        else:
            if mailbox_record.get("encryptMessages") is True:
                await _turn_on_encryption_or_record_skipped(running, path)
            if with_annotations and isinstance(mailbox_record.get("metadata"), dict):
                await _set_annotations_or_record_skipped(running, path, mailbox_record["metadata"])


async def _create_mailbox_if_missing(running: RunningImport, record: Mapping[str, Any]) -> str:
    """Create the mailbox of a record, and return its path. Raises RequestError."""
    path = paths.validate_path(record["path"])
    if path in running.mailbox_ids:
        return path
    new = NewMailboxes(
        [path],
        is_hidden=record.get("hidden") is True,
        retention=None
        if record.get("retentionInherited") is True
        else retention_from_seconds_or_none(record.get("retention")) or Unlimited.UNLIMITED,
        is_subscribed=record.get("subscribed") is not False,
    )
    use = _special_use_from_value(record.get("specialUse"))
    try:
        created = await mailbox_create.create_mailboxes(running.ctx, replace(new, special_use=use))
    except Conflict as problem:
        created = await mailbox_create.create_mailboxes(running.ctx, new)
        running.outcome.add_skipped(f"special use {use} of mailbox {path}", problem.message)
    snoozed = created[-1].special_use in HOLDING_USES
    running.mailbox_ids[path] = running.mailbox_ids["INBOX"] if snoozed else created[-1].id
    return path


async def _turn_on_encryption_or_record_skipped(running: RunningImport, path: str) -> None:
    """Turn on the encryption of a mailbox. A refusal is added to the skipped items."""
    try:
        update = MailboxUpdate([MailboxSelector(path=path)], {"encrypt_messages": True})
        await mailbox_update.update_mailboxes(running.ctx, update)
    except RequestError as problem:
        running.outcome.add_skipped(f"encryption of mailbox {path}", problem.message)


async def _set_annotations_or_record_skipped(
    running: RunningImport, path: str, values_by_key: Mapping[str, Any]
) -> None:
    """Set the annotations of a mailbox. Refusals are added to the skipped items."""
    for key, value in values_by_key.items():
        try:
            if not isinstance(value, str):
                raise InvalidInput(
                    "The value must be a string.",
                    constraint=ValidationConstraint.TYPE,
                    path=["value"],
                )
            await annotations.set_annotation_in_each_account(
                running.ctx, MailboxSelector(path=path), (key, value)
            )
        except RequestError as problem:
            running.outcome.add_skipped(f"annotation {key} of mailbox {path}", problem.message)
            if isinstance(problem, LimitReached):
                break


def _special_use_from_value(value: Any) -> SpecialUse | None:
    return next((use for use in SpecialUse if use.value == value), None)


def retention_from_seconds_or_none(seconds: Any) -> timedelta | None:
    """Return a retention. None, which is unlimited, if the value is missing or invalid."""
    if not isinstance(seconds, int) or not 0 < seconds < 1 << 40:
        return None
    return timedelta(seconds=seconds)
