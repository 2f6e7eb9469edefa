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

from mail.compose import draft_validation, message_builder
from mail.compose.message_draft import MessageDraft, OutgoingFile
from mail.mime.header_encoding import NamedAddress
from mail.storage.message_insert import MessagePlacement, insert_message_and_take_quota
from mail.storage.quota import InsertKind
from mail.storage.received_messages import parse_storable_message, store_blobs_once_per_tenant
from mail.storage.storable_message import StorableMessage
from models.errors import RequestError
from models.mailboxes.tables import Mailbox, SpecialUse
from models.runtime.environment import Environment
from models.users.tables import User
from resolvers.context import Context

log = logging.getLogger(__name__)

MAX_TEMPLATES = 50  # templates
MAX_FILE_SIZE = 1 << 20  # bytes of one file
_VARIABLE = re.compile(r"\[(NAME|FNAME|LNAME|USERNAME|EMAIL|DOMAIN)\]")


@dataclass(frozen=True, slots=True)
class WelcomeTemplate:
    """A welcome message as the folder has it, with unfilled variables."""

    name: str
    properties: Mapping[str, Any]
    html: str | None
    text: str | None
    attachments: Sequence[OutgoingFile]


@dataclass(frozen=True, slots=True)
class WelcomeMessage:
    """A welcome message for one user, with the mailbox it belongs in."""

    message: StorableMessage
    mailbox: str  # path, or special use
    seen: bool
    flagged: bool


async def build_welcome_messages(
    environment: Environment, variables: Mapping[str, str]
) -> list[WelcomeMessage]:
    """Build the welcome messages for a user with this `name`, `username` and `address`.

    An unusable template is left out and logged.
    """
    folder = environment.options.welcome_folder
    if folder is None:
        return []
    messages = []
    for template in await asyncio.to_thread(_load_templates, folder):
        try:
            messages.append(await _fill_in_welcome_message(environment, template, variables))
        except (RequestError, TypeError, ValueError, AttributeError):
            log.exception("Could not create the welcome message", extra={"template": template.name})
    return messages


async def store_welcome_messages(
    ctx: Context,
    session: AsyncSession,
    user: User,
    mailboxes: Sequence[Mailbox],
    messages: list[WelcomeMessage],
) -> None:
    """Store the messages in the mailboxes of a new user, in the transaction that creates it.

    A message that can't be stored is left out and logged.
    """
    mailboxes_by_name = {mailbox.path: mailbox for mailbox in mailboxes}
    mailboxes_by_name |= {
        mailbox.special_use: mailbox for mailbox in mailboxes if mailbox.special_use
    }
    for message in messages:
        mailbox = mailboxes_by_name.get(message.mailbox) or mailboxes_by_name[SpecialUse.INBOX]
        placement = MessagePlacement(
            user.id, mailbox.id, ctx.environment.now(), seen=message.seen, flagged=message.flagged
        )
        try:
            # The tenant is not known before: the domain can be as new as the user.
            stored_message = await store_blobs_once_per_tenant(
                ctx.environment, user.tenant_id, message.message
            )
            async with session.begin_nested():
                await ctx.environment.run_in_session(
                    session,
                    partial(
                        insert_message_and_take_quota,
                        message=message.message,
                        stored_blobs=stored_message,
                        placement=placement,
                        kind=InsertKind.GENERATED,
                    ),
                )
        except Exception:  # a missing welcome message is no reason to refuse a user
            log.exception("Welcome message not stored")


def _load_templates(folder: Path) -> list[WelcomeTemplate]:
    """Load all templates of the folder, sorted by name."""
    templates = []
    try:
        for file in sorted(folder.glob("*.json"))[:MAX_TEMPLATES]:
            try:
                templates.append(_load_template(file))
            except (OSError, ValueError, TypeError, AttributeError):
                log.exception("Could not read the welcome message", extra={"template": file.name})
    except OSError:
        log.exception("Could not read the folder of welcome messages")
    return templates


def _load_template(json_path: Path) -> WelcomeTemplate:
    properties = json.loads(_read_limited(json_path))
    if not isinstance(properties, dict):
        raise TypeError("The template must be a JSON object.")
    body_paths = {kind: json_path.with_suffix(f".{kind}") for kind in ("html", "txt")}
    bodies = {
        kind: _read_limited(path).decode() for kind, path in body_paths.items() if path.is_file()
    }
    attachments = []
    for name in properties.get("attachments", ()):
        path = json_path.parent / Path(str(name)).name  # only files of this folder
        attachments.append(
            OutgoingFile(_read_limited(path), path.name, mimetypes.guess_type(path.name)[0])
        )
    return WelcomeTemplate(
        json_path.name, properties, bodies.get("html"), bodies.get("txt"), tuple(attachments)
    )


def _read_limited(path: Path) -> bytes:
    if path.stat().st_size > MAX_FILE_SIZE:
        raise ValueError(f"{path.name} is larger than {MAX_FILE_SIZE} bytes.")
    return path.read_bytes()


async def _fill_in_welcome_message(
    environment: Environment, template: WelcomeTemplate, user_facts: Mapping[str, str]
) -> WelcomeMessage:
    properties, domain = template.properties, user_facts["address"].rpartition("@")[2]
    first_name, _, last_name = user_facts["name"].partition(" ")
    variables = {
        "NAME": user_facts["name"],
        "FNAME": first_name,
        "LNAME": last_name,
        "USERNAME": user_facts["username"],
        "EMAIL": user_facts["address"],
        "DOMAIN": domain,
    }
    sender = _fill_in(str(properties.get("from") or "postmaster@[DOMAIN]"), variables)
    name, address = parseaddr(sender)
    draft = MessageDraft(
        from_=NamedAddress(
            draft_validation.normalize_and_validate_address_with_index(address, "from"),
            name or None,
        ),
        date=environment.now(),
        message_id=message_builder.new_message_id(environment.random_bytes(16), domain),
        to=[NamedAddress(user_facts["address"], user_facts["name"] or None)],
        subject=_fill_in(str(properties.get("subject") or "Welcome"), variables),
        text=None if template.text is None else _fill_in(template.text, variables),
        html=None if template.html is None else _fill_in(template.html, variables, escape),
        attachments=template.attachments,
    )
    message_bytes = await asyncio.to_thread(message_builder.validate_and_build_message, draft)
    mailbox = str(properties.get("mailbox") or SpecialUse.INBOX)
    return WelcomeMessage(
        await parse_storable_message(message_bytes),
        mailbox,
        bool(properties.get("seen")),
        bool(properties.get("flagged")),
    )


def _fill_in(
    text: str, variables: Mapping[str, str], escape_value: Callable[[str], str] = str
) -> str:
    return _VARIABLE.sub(lambda match: escape_value(variables[match[1]]), text)
