"""Welcome messages of new users, made of templates in a folder.

Each template is a NAME.json with any of `from`, `subject`, `mailbox` (a path, or a special use such
as JUNK), `seen`, `flagged` and `attachments` (names of files beside it), and a NAME.html or
NAME.txt. Variables in brackets are filled in: [NAME], [FNAME], [LNAME], [USERNAME], [EMAIL],
[DOMAIN].
"""

import asyncio
import json
import logging
import mimetypes
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from email.utils import parseaddr
from functools import partial
from html import escape
from pathlib import Path
from typing import Any

from sqlmodel.ext.asyncio.session import AsyncSession

from mail.compose import message_builder
from mail.compose.message_builder import Attachment, Draft
from mail.mime.header_encoding import Named
from mail.storage.message_insert import Letter, Place, place
from mail.storage.received_messages import read, stored
from models.errors import Refused
from models.mailboxes.tables import Mailbox, SpecialUse
from models.runtime.environment import World
from models.users.tables import User
from resolvers.context import Context

log = logging.getLogger(__name__)

MOST = 50  # templates
LARGEST = 1 << 20  # bytes of one file
_WORD = re.compile(r"\[(NAME|FNAME|LNAME|USERNAME|EMAIL|DOMAIN)\]")


@dataclass(frozen=True, slots=True)
class Template:
    """A welcome message as the folder has it, with unfilled variables."""

    name: str
    said: Mapping[str, Any]
    html: str | None
    text: str | None
    files: Sequence[Attachment]


@dataclass(frozen=True, slots=True)
class Welcome:
    """A welcome message for one user, with the mailbox it belongs in."""

    letter: Letter
    mailbox: str  # path, or special use
    seen: bool
    flagged: bool


async def letters(world: World, facts: Mapping[str, str]) -> list[Welcome]:
    """Build the welcome messages for a user with this `name`, `username` and `address`.

    An unusable template is left out and logged.
    """
    folder = world.options.welcome
    if folder is None:
        return []
    found = []
    for template in await asyncio.to_thread(_templates, folder):
        try:
            found.append(await _written(world, template, facts))
        except (Refused, TypeError, ValueError, AttributeError):
            log.exception("a welcome message cannot be made", extra={"template": template.name})
    return found


async def put(
    ctx: Context, session: AsyncSession, user: User, boxes: Sequence[Mailbox], news: list[Welcome]
) -> None:
    """Store the messages in the mailboxes of a new user, in the transaction that creates it.

    A message that can't be stored is left out and logged.
    """
    names = {box.path: box for box in boxes}
    names |= {box.special_use: box for box in boxes if box.special_use}
    for one in news:
        box = names.get(one.mailbox) or names[SpecialUse.INBOX]
        there = Place(user.id, box.id, ctx.world.now(), seen=one.seen, flagged=one.flagged)
        try:
            # The tenant is not known before: the domain can be as new as the user.
            kept = await stored(ctx.world, user.tenant_id, one.letter)
            async with session.begin_nested():
                await ctx.world.join(
                    session, partial(place, letter=one.letter, kept=kept, to=there)
                )
        except Exception:  # a missing welcome message is no reason to refuse a user
            log.exception("a welcome message is left out")


def _templates(folder: Path) -> list[Template]:
    """Load all templates of the folder, sorted by name."""
    found = []
    try:
        for file in sorted(folder.glob("*.json"))[:MOST]:
            try:
                found.append(_template(file))
            except (OSError, ValueError, TypeError, AttributeError):
                log.exception("a welcome message cannot be read", extra={"template": file.name})
    except OSError:
        log.exception("the folder of welcome messages cannot be read")
    return found


def _template(file: Path) -> Template:
    said = json.loads(_read(file))
    if not isinstance(said, dict):
        raise TypeError("a template is a JSON object")
    texts = {kind: file.with_suffix(f".{kind}") for kind in ("html", "txt")}
    bodies = {kind: _read(path).decode() for kind, path in texts.items() if path.is_file()}
    files = []
    for name in said.get("attachments", ()):
        path = file.parent / Path(str(name)).name  # only files of this folder
        files.append(Attachment(_read(path), path.name, mimetypes.guess_type(path.name)[0]))
    return Template(file.name, said, bodies.get("html"), bodies.get("txt"), tuple(files))


def _read(path: Path) -> bytes:
    if path.stat().st_size > LARGEST:
        raise ValueError(f"{path.name} is larger than {LARGEST} bytes")
    return path.read_bytes()


async def _written(world: World, template: Template, facts: Mapping[str, str]) -> Welcome:
    said, domain = template.said, facts["address"].rpartition("@")[2]
    first, _, last = facts["name"].partition(" ")
    words = {
        "NAME": facts["name"],
        "FNAME": first,
        "LNAME": last,
        "USERNAME": facts["username"],
        "EMAIL": facts["address"],
        "DOMAIN": domain,
    }
    sender = _filled(str(said.get("from") or "postmaster@[DOMAIN]"), words)
    name, address = parseaddr(sender)
    draft = Draft(
        from_=Named(message_builder.address(address, "from"), name or None),
        date=world.now(),
        message_id=message_builder.message_id(world.random(16), domain),
        to=[Named(facts["address"], facts["name"] or None)],
        subject=_filled(str(said.get("subject") or "Welcome"), words),
        text=None if template.text is None else _filled(template.text, words),
        html=None if template.html is None else _filled(template.html, words, escape),
        attachments=template.files,
    )
    raw = await asyncio.to_thread(message_builder.build, draft)
    where = str(said.get("mailbox") or SpecialUse.INBOX)
    return Welcome(await read(raw), where, bool(said.get("seen")), bool(said.get("flagged")))


def _filled(text: str, words: Mapping[str, str], write: Callable[[str], str] = str) -> str:
    return _WORD.sub(lambda match: write(words[match[1]]), text)
