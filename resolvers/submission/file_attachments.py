"""Attach stored files to a message that is composed, or offer them by a link."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from html import escape

from sqlalchemy import delete, insert, select
from sqlmodel import col
from sqlmodel.ext.asyncio.session import AsyncSession

from mail.compose.message_builder import FILES, Attachment
from mail.mime import html_to_text
from mail.storage.blobs import blob_reader
from models.errors import Invalid, NotFound
from models.files.tables import File, FileAttachmentMode, FileShare
from models.runtime.environment import Turn
from models.store.columns import Picked, picked
from models.submission.compose_requests import DraftFile
from models.users.roles import Scope
from resolvers.access import visible
from resolvers.context import Context
from resolvers.files import shares, stored_files
from resolvers.files.shares import NewShare
from resolvers.submission.attachments import Room

PATH = "fileAttachments"
UNITS = ("bytes", "KiB", "MiB", "GiB", "TiB")
STEP = 1024
_NAMES = {"expiration": "shareExpiration", "password": "sharePassword"}

Address = Callable[[str], str]  # returns the URL of a path on this server


@dataclass(frozen=True, slots=True)
class Given:
    """A stored file and how the recipients get it: as an attachment or by a link."""

    file_id: int
    mode: FileAttachmentMode = FileAttachmentMode.ATTACH
    expires_at: datetime | None = None  # end of a link; None: 100 days after the last access
    password: str | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class Offered:
    """A link to a stored file as the message shows it. `size` is in bytes."""

    share: FileShare
    name: str
    size: int
    url: str


def check(given: Sequence[Given], path: str = PATH) -> None:
    """Raise Invalid if there are too many files, or an attached one has settings of a link."""
    if len(given) > FILES:
        raise Invalid(f"more than {FILES} files", constraint="max", path=[path])
    for nth, each in enumerate(given):
        told = each.expires_at is not None or each.password is not None
        if each.mode is FileAttachmentMode.ATTACH and told:
            text = "what is attached has no end and no password"
            raise Invalid(text, constraint="exclusive", path=[path, str(nth)], index=nth)


async def attached(
    ctx: Context, given: Sequence[Given], room: Room, path: str = PATH
) -> list[Attachment]:
    """Read the files that are attached, with their bytes.

    Raises NotFound if a file is not the viewer's, Forbidden without the scope MAIL_READ, and
    Invalid if the budget is exceeded.
    """
    wanted = [(n, each) for n, each in enumerate(given) if each.mode is FileAttachmentMode.ATTACH]
    if not wanted:
        return []
    ctx.viewer.require_scope(
        Scope.MAIL_READ
    )  # or a caller who may only send could read files by sending them
    rows = []
    for nth, each in wanted:
        rows.append(await _file(ctx, each.file_id, nth, path))
        room.take(rows[-1].size, [path, str(nth)])
    made = []
    for row in rows:
        content = await blob_reader.read(ctx.world.blobs, await stored_files.fetched(ctx, row))
        made.append(Attachment(content, row.filename, row.content_type))
    return made


async def _file(ctx: Context, key: int, nth: int, path: str) -> Picked:
    row = await ctx.load(stored_files.by_ids, key)
    if row is None:
        raise NotFound(str(key), path=[path, str(nth), "file"], index=nth)
    return row


async def offered(ctx: Context, given: Sequence[Given], address: Address) -> list[Offered]:
    """Prepare links to the files that are not attached. `shares.insert_shares` stores them later.

    Raises NotFound if a file is not the viewer's, and Invalid if a setting of the link is wrong.
    """
    made = []
    for nth, each in enumerate(given):
        if each.mode is FileAttachmentMode.ATTACH:
            continue
        row = await _file(ctx, each.file_id, nth, PATH)
        new = NewShare(each.file_id, each.mode, each.expires_at, each.password)
        try:
            share = await shares.prepared(ctx, new)
        except Invalid as wrong:
            where = [PATH, str(nth), *(_NAMES[name] for name in wrong.path if name in _NAMES)]
            raise Invalid(
                wrong.message, constraint=wrong.constraint, path=where, index=nth
            ) from wrong
        url = address(f"/share/{shares.token_of(ctx.world, share.id)}")
        made.append(Offered(share, row.filename, row.size, url))
    return made


def with_links(
    text: str | None, html: str | None, links: Sequence[Offered]
) -> tuple[str | None, str | None]:
    """Return text and HTML with the links below them."""
    if not links:
        return text, html
    own = text if text is not None else html_to_text(html) if html is not None else ""
    lines = [f"{one.name} ({_size(one.size)}{_told(one)})\n{one.url}" for one in links]
    written = "\n\n".join([*([own.rstrip("\n")] if own.strip() else []), "\n\n".join(lines)]) + "\n"
    if html is None:
        return written, None
    items = "".join(
        f'<li><a href="{escape(one.url)}">{escape(one.name)}</a> '
        f"({escape(_size(one.size) + _told(one))})</li>"
        for one in links
    )
    block = f"<ul>{items}</ul>"
    at = html.lower().rfind("</body")
    return written, html + block if at < 0 else html[:at] + block + html[at:]


def _told(one: Offered) -> str:
    """Return the end and the password note of a link, for the text beside it."""
    ends = one.share.expires_at
    told = f", until {ends:%Y-%m-%d}" if ends and not one.share.idle else ""
    return f"{told}, with a password" if one.share.password else told


def _size(size: int) -> str:
    shown, unit = float(size), 0
    while shown >= STEP and unit + 1 < len(UNITS):
        shown, unit = shown / STEP, unit + 1
    return f"{size} bytes" if not unit else f"{shown:.1f} {UNITS[unit]}"


def remember(turn: Turn, message_id: int, file_ids: Sequence[int]) -> None:
    """Store which files a draft has, instead of those stored before."""
    forget(turn, message_id)
    rows = [
        {"message_id": message_id, "file_id": key, "nth": nth}
        for nth, key in enumerate(dict.fromkeys(file_ids))
    ]
    if rows:
        turn.connection.execute(insert(DraftFile), rows)


def forget(turn: Turn, message_id: int) -> None:
    """Delete the list of files of a draft; the files stay."""
    turn.connection.execute(delete(DraftFile).where(col(DraftFile.message_id) == message_id))


async def of_drafts(ctx: Context, ids: list[int]) -> list[list[Picked]]:
    """Load the viewer's files of each draft, in their order."""
    asked = (
        select(col(DraftFile.message_id), *picked(File))
        .join(File, col(File.id) == col(DraftFile.file_id))
        .where(col(DraftFile.message_id).in_(ids), visible(ctx, File))
        .order_by(col(DraftFile.nth), col(DraftFile.file_id))
    )
    theirs: dict[int, list[Picked]] = {key: [] for key in ids}
    for row in await ctx.read(asked):
        theirs[row.message_id].append(row)
    return [theirs[key] for key in ids]


async def remove(ctx: Context, session: AsyncSession, message_id: int) -> None:
    """Delete the stored files of a draft, in the transaction that sends it."""
    (rows,) = await of_drafts(ctx, [message_id])
    if rows:
        await stored_files.removed(ctx, session, [row.id for row in rows])
