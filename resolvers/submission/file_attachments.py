"""Attach stored files to a message that is composed, or offer them by a link."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from html import escape

from sqlalchemy import delete, insert, select
from sqlmodel import col
from sqlmodel.ext.asyncio.session import AsyncSession

from mail.compose.message_draft import MAX_FILES, OutgoingFile
from mail.mime import html_to_text
from mail.storage.blobs import blob_reader
from models.errors import InvalidInput, NotFound
from models.files.tables import File, FileAttachmentMode, FileShare
from models.runtime.environment import DatabaseTransaction
from models.store.columns import ColumnRow, select_columns
from models.submission.compose_requests import DraftFile
from models.users.roles import Scope
from models.validation_constraints import ValidationConstraint
from resolvers.access import is_own_or_shared
from resolvers.context import Context
from resolvers.files import shares, stored_files
from resolvers.files.shares import NewShare
from resolvers.submission.attachments import AttachmentBudget

FIELD_NAME = "fileAttachments"
LINKS_FIELD_NAME = "addFileLinks"  # of a draft
SIZE_UNITS = ("bytes", "KiB", "MiB", "GiB", "TiB")
SIZE_UNIT_FACTOR = 1024
_SHARE_FIELD_NAMES = frozenset({"expiresAt", "password"})

UrlFromPath = Callable[[str], str]  # returns the URL of a path on this server


def path_unchanged(path: str) -> str:
    """Return the path, for requests that have no URL of this server."""
    return path


@dataclass(frozen=True, slots=True)
class StoredFileAttachment:
    """A stored file and how the recipients get it: as an attachment or by a link."""

    file_id: int
    mode: FileAttachmentMode = FileAttachmentMode.ATTACH
    expires_at: datetime | None = None  # end of a link; None: 100 days after the last access
    password: str | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class FileLink:
    """A link to a stored file as the message shows it. `size` is in bytes."""

    share: FileShare
    filename: str
    size: int
    url: str


def require_valid_file_attachments(
    files: Sequence[StoredFileAttachment], field_name: str = FIELD_NAME
) -> None:
    """Raise InvalidInput if there are too many files, or an attached one has settings of a link."""
    if len(files) > MAX_FILES:
        raise InvalidInput(
            f"A message has at most {MAX_FILES} attachments.",
            constraint=ValidationConstraint.MAX,
            path=[field_name],
        )
    for index, file in enumerate(files):
        has_link_settings = file.expires_at is not None or file.password is not None
        if file.mode is FileAttachmentMode.ATTACH and has_link_settings:
            text = "An attached file can't have an expiry time or a password."
            raise InvalidInput(
                text, constraint=ValidationConstraint.EXCLUSIVE, path=[field_name, str(index)]
            )


async def read_attached_files(
    ctx: Context,
    files: Sequence[StoredFileAttachment],
    budget: AttachmentBudget,
    field_name: str = FIELD_NAME,
) -> list[OutgoingFile]:
    """Read the files that are attached, with their bytes.

    Raises NotFound if a file is not the viewer's, Forbidden without the scope MAIL_READ, and
    InvalidInput if the budget is exceeded.
    """
    attached_files = [
        (n, file) for n, file in enumerate(files) if file.mode is FileAttachmentMode.ATTACH
    ]
    if not attached_files:
        return []
    # or a caller who may only send could read files by sending them
    ctx.viewer.require_scope(Scope.MAIL_READ)
    rows = []
    for nth, file in attached_files:
        rows.append(await _read_file(ctx, file.file_id, nth, field_name))
        budget.count_file_or_raise(rows[-1].size, [field_name, str(nth)])
    attachments = []
    for row in rows:
        content = await blob_reader.read_and_verify_content(
            ctx.environment.object_store, await stored_files.touch_file_and_read_blob(ctx, row)
        )
        attachments.append(OutgoingFile(content, row.filename, row.content_type))
    return attachments


async def _read_file(ctx: Context, file_id: int, index: int, field_name: str) -> ColumnRow:
    row = await ctx.load(stored_files.load_own_files_by_id, file_id)
    if row is None:
        raise NotFound(str(file_id), path=[field_name, str(index), "file"])
    return row


async def prepare_links_of_unattached_files(
    ctx: Context,
    files: Sequence[StoredFileAttachment],
    url_from_path: UrlFromPath,
    field_name: str = FIELD_NAME,
) -> list[FileLink]:
    """Prepare links to the files that are not attached. `shares.insert_shares` stores them later.

    Raises NotFound if a file is not the viewer's, and InvalidInput if a setting of the link is
    wrong.
    """
    links = []
    for index, file in enumerate(files):
        if file.mode is FileAttachmentMode.ATTACH:
            continue
        row = await _read_file(ctx, file.file_id, index, field_name)
        new = NewShare(file.file_id, file.mode, file.expires_at, file.password)
        try:
            share = await shares.validate_and_build_share(ctx, new)
        except InvalidInput as error:
            input_path = [
                field_name,
                str(index),
                *(name for name in error.path if name in _SHARE_FIELD_NAMES),
            ]
            raise InvalidInput(
                error.message, constraint=error.constraint, path=input_path
            ) from error
        url = url_from_path(f"/share/{shares.create_share_token(ctx.environment, share.id)}")
        links.append(FileLink(share, row.filename, row.size, url))
    return links


def append_links(
    text: str | None, html: str | None, links: Sequence[FileLink]
) -> tuple[str | None, str | None]:
    """Return text and HTML with the links below them."""
    if not links:
        return text, html
    message_text = text if text is not None else html_to_text(html) if html is not None else ""
    lines = [
        f"{link.filename} ({_size_text(link.size)}{_expiry_and_password_note(link)})\n{link.url}"
        for link in links
    ]
    text_with_links = (
        "\n\n".join(
            [*([message_text.rstrip("\n")] if message_text.strip() else []), "\n\n".join(lines)]
        )
        + "\n"
    )
    if html is None:
        return text_with_links, None
    items = "".join(
        f'<li><a href="{escape(link.url)}">{escape(link.filename)}</a> '
        f"({escape(_size_text(link.size) + _expiry_and_password_note(link))})</li>"
        for link in links
    )
    block = f"<ul>{items}</ul>"
    body_end = html.lower().rfind("</body")
    return text_with_links, html + block if body_end < 0 else html[:body_end] + block + html[
        body_end:
    ]


def _expiry_and_password_note(link: FileLink) -> str:
    """Return the end and the password note of a link, for the text beside it."""
    expires_at = link.share.expires_at
    conditions = f", until {expires_at:%Y-%m-%d}" if expires_at and not link.share.idle else ""
    return f"{conditions}, with a password" if link.share.password else conditions


def _size_text(size: int) -> str:
    scaled_size, unit = float(size), 0
    while scaled_size >= SIZE_UNIT_FACTOR and unit + 1 < len(SIZE_UNITS):
        scaled_size, unit = scaled_size / SIZE_UNIT_FACTOR, unit + 1
    return f"{size} bytes" if not unit else f"{scaled_size:.1f} {SIZE_UNITS[unit]}"


@dataclass(frozen=True, slots=True)
class DraftFileChanges:
    """Changes to the list of stored files of a draft."""

    added_ids: Sequence[int] = ()
    removed_digests: Collection[str] = ()  # of the attachments that are removed from the draft


def change_file_list_of_draft(
    transaction: DatabaseTransaction, message_id: int, changes: DraftFileChanges
) -> None:
    """Change the list of stored files that a draft has.

    A file leaves the list if an attachment with its content is removed.
    """
    if not changes.added_ids and not changes.removed_digests:
        return
    stored = transaction.connection.execute(
        select(col(DraftFile.file_id), col(File.digest))
        .join(File, col(File.id) == col(DraftFile.file_id))
        .where(col(DraftFile.message_id) == message_id)
        .order_by(col(DraftFile.nth))
    )
    kept_ids = [row.file_id for row in stored if row.digest not in changes.removed_digests]
    delete_file_list_of_draft(transaction, message_id)
    rows = [
        {"message_id": message_id, "file_id": key, "nth": nth}
        for nth, key in enumerate(dict.fromkeys([*kept_ids, *changes.added_ids]))
    ]
    if rows:
        transaction.connection.execute(insert(DraftFile), rows)


def delete_file_list_of_draft(transaction: DatabaseTransaction, message_id: int) -> None:
    """Delete the list of files of a draft; the files stay."""
    transaction.connection.execute(delete(DraftFile).where(col(DraftFile.message_id) == message_id))


async def load_own_files_by_draft(ctx: Context, message_ids: list[int]) -> list[list[ColumnRow]]:
    """Load the viewer's files of each draft, in their order."""
    statement = (
        select(col(DraftFile.message_id), *select_columns(File))
        .join(File, col(File.id) == col(DraftFile.file_id))
        .where(col(DraftFile.message_id).in_(message_ids), is_own_or_shared(ctx, File))
        .order_by(col(DraftFile.nth), col(DraftFile.file_id))
    )
    files_by_message: dict[int, list[ColumnRow]] = {key: [] for key in message_ids}
    for row in await ctx.read(statement):
        files_by_message[row.message_id].append(row)
    return [files_by_message[key] for key in message_ids]


async def delete_files_of_draft(ctx: Context, session: AsyncSession, message_id: int) -> None:
    """Delete the stored files of a draft, in the transaction that sends it."""
    (rows,) = await load_own_files_by_draft(ctx, [message_id])
    if rows:
        await stored_files.delete_files_in_transaction(ctx, session, [row.id for row in rows])
