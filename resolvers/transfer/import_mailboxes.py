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
from resolvers.mailboxes import loaders as mailbox_loaders
from resolvers.mailboxes import update as mailbox_update
from resolvers.mailboxes.loaders import MailboxSelector, NewMailboxes
from resolvers.mailboxes.update import MailboxUpdate
from resolvers.transfer.running_import import RunningImport

NO_RETENTION_LIMIT = timedelta(0)


async def load_mailbox_ids_by_path(ctx: Context, user_id: int) -> dict[str, int]:
    """Return the mailboxes of a user by path. The mailbox of snoozed mail maps to INBOX."""
    rows = await mailbox_loaders.load_all_of_user(ctx, user_id, {"special_use"})
    boxes = {row.path: int(row.id) for row in rows}
    for row in rows:
        if row.special_use in HOLDING_USES:  # a message imported there would never be unsnoozed
            boxes[row.path] = boxes["INBOX"]
    return boxes


async def get_or_create_mailbox_id(
    ctx: Context, mailbox_ids: dict[str, int], mailbox_path: str, *, subscribe: bool
) -> int:
    """Return the ID of the viewer's mailbox at a path, and create it with its parents if missing.

    Adds new mailboxes to `mailbox_ids`. Raises Invalid for a bad path, LimitReached.
    """
    path = paths.validate_path(mailbox_path)
    while path not in mailbox_ids:
        new = NewMailboxes(
            paths.missing_paths_with_parents([path], mailbox_ids), is_subscribed=subscribe
        )
        try:
            mailbox_ids |= {
                box.path: int(box.id) for box in await mailbox_loaders.create_mailboxes(ctx, new)
            }
        except Conflict:  # another import or the user has just created it
            ctx.clear_loaded()
            mailbox_ids |= await load_mailbox_ids_by_path(ctx, ctx.viewer.user_id)
    return mailbox_ids[path]


async def load_paths_by_special_use(ctx: Context) -> dict[SpecialUse, str]:
    """Return the paths of the viewer's mailboxes with a special use."""
    rows = await mailbox_loaders.load_all_of_user(ctx, ctx.viewer.user_id, {"special_use"})
    return {row.special_use: row.path for row in rows if row.special_use is not None}


async def create_mailboxes(
    running: RunningImport, account: AccountRecord, *, with_annotations: bool
) -> None:
    """Create the missing mailboxes of an account record, with annotations if wanted.

    Mailboxes that can't be created are added to the skipped items.
    """
    boxes = sorted(account.mailboxes, key=lambda box: paths.tree_sort_key(box["path"]))
    for box in boxes if running.target_path is None else ():
        try:
            path = await _create_mailbox(running, box)
        except RequestError as problem:
            running.outcome.add_skipped(f"folder {box['path']}", problem.message)
            if isinstance(problem, LimitReached):
                break  # the limit holds for all of them
        else:
            if box.get("encryptMessages") is True:
                await _turn_on_encryption(running, path)
            if with_annotations and isinstance(box.get("metadata"), dict):
                await _set_annotations(running, path, box["metadata"])


async def _create_mailbox(running: RunningImport, record: Mapping[str, Any]) -> str:
    """Create the mailbox of a record, and return its path. Raises Refused."""
    path = paths.validate_path(record["path"])
    if path in running.mailbox_ids:
        return path
    new = NewMailboxes(
        [path],
        is_hidden=record.get("hidden") is True,
        retention=retention_from_seconds(record.get("retention")),
        is_subscribed=record.get("subscribed") is not False,
    )
    use = _special_use_from_value(record.get("specialUse"))
    try:
        created = await mailbox_loaders.create_mailboxes(running.ctx, replace(new, special_use=use))
    except Conflict as problem:
        created = await mailbox_loaders.create_mailboxes(running.ctx, new)
        running.outcome.add_skipped(f"role {use} of folder {path}", problem.message)
    snoozed = created[-1].special_use in HOLDING_USES
    running.mailbox_ids[path] = running.mailbox_ids["INBOX"] if snoozed else created[-1].id
    return path


async def _turn_on_encryption(running: RunningImport, path: str) -> None:
    """Turn on the encryption of a mailbox. A refusal is added to the skipped items."""
    try:
        update = MailboxUpdate([MailboxSelector(path=path)], {"encrypt_messages": True})
        await mailbox_update.update_mailboxes(running.ctx, update)
    except RequestError as problem:
        running.outcome.add_skipped(f"encryption of folder {path}", problem.message)


async def _set_annotations(
    running: RunningImport, path: str, values_by_key: Mapping[str, Any]
) -> None:
    """Set the annotations of a mailbox. Refusals are added to the skipped items."""
    for key, value in values_by_key.items():
        try:
            if not isinstance(value, str):
                raise InvalidInput("no text", constraint=ValidationConstraint.TYPE, path=["value"])
            await annotations.set_annotation(running.ctx, MailboxSelector(path=path), (key, value))
        except RequestError as problem:
            running.outcome.add_skipped(f"annotation {key} of folder {path}", problem.message)
            if isinstance(problem, LimitReached):
                break


def _special_use_from_value(value: Any) -> SpecialUse | None:
    return next((use for use in SpecialUse if use.value == value), None)


def retention_from_seconds(seconds: Any) -> timedelta:
    """Return the retention of a mailbox; unlimited if the value is missing or invalid."""
    if not isinstance(seconds, int) or not 0 <= seconds < 1 << 40:
        return NO_RETENTION_LIMIT
    return timedelta(seconds=seconds)
