"""Turn a send request into messages with envelopes: composed, merged, or handed in whole."""

import asyncio
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any

from mail.compose import message_builder, text_templates
from mail.compose.message_builder import HTML_WITH_IMAGES, KIB, MIB, SUBJECT, TEXT, Draft
from mail.compose.submission_repair import Mended, half_written, mended
from mail.envelope.dsn_parameters import Wish
from mail.mime.header_encoding import Named
from mail.storage import openpgp_encryption
from models.errors import Invalid, NotFound, Problems, Refused, Several, check_limit
from models.files.tables import FileShare
from models.mailboxes.tables import SpecialUse
from models.runtime.environment import World
from models.store.columns import Picked
from resolvers.access import own
from resolvers.context import Context
from resolvers.mailboxes import loaders as mailbox_loaders
from resolvers.messages import upload
from resolvers.submission import composition, file_attachments, recipient_keys
from resolvers.submission.composition import Fields, How, Letterhead, copied, new_message_id
from resolvers.submission.sender_authorization import may_send_as

FARTHEST = timedelta(days=3653)
ENTRIES = 100
REACHED = 10_000  # of all messages
MERGED = 128 * MIB  # of all messages


def _relative(path: str) -> str:
    return path


@dataclass(frozen=True, slots=True)
class Envelope:
    """Sender and recipients of the envelope that replace those of the header."""

    sender: str | None = None
    to: Sequence[str] | None = None


@dataclass(frozen=True, slots=True)
class Entry:
    """The recipients and template values of one message of a mail merge."""

    to: Sequence[Named] = ()
    cc: Sequence[Named] = ()
    bcc: Sequence[Named] = ()
    values: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Outgoing(Fields):
    """A request to send or store a message."""

    envelope: Envelope = Envelope()
    mailbox: mailbox_loaders.Named | None = (
        None  # None: that of the identity, or Drafts for a draft
    )
    upload_only: bool = False
    is_draft: bool = False
    send_time: datetime | None = None
    undo_window: timedelta | None = None
    meta_data: dict[str, Any] | None = None
    raw: str | None = None  # a whole message as text or base64, instead of fields
    upload_id: int | None = None  # a whole message that was uploaded before
    template: Mapping[str, Any] | None = None  # values of {{name}}
    merge: Sequence[Entry] | None = None
    encrypt: bool = False
    request_dsn: bool = False
    address: Callable[[str], str] = _relative  # returns the URL of a path on this server

    @property
    def stays(self) -> bool:
        """True if the message is stored and not sent."""
        return self.upload_only or self.is_draft

    @property
    def whole(self) -> bool:
        """True if the client hands in a complete message instead of fields."""
        return self.raw is not None or self.upload_id is not None


@dataclass(frozen=True, slots=True)
class Written:
    """The bytes and envelope of a message that was composed or handed in."""

    raw: bytes
    sender: str
    recipients: Sequence[str]
    box: Picked | None  # None: no copy is stored
    outgoing: Outgoing = Outgoing()
    readable: bytes | None = None  # if the owner can't decrypt the sent message
    wishes: Mapping[str, Wish] = field(default_factory=dict)  # by recipient


@dataclass(frozen=True, slots=True)
class Batch:
    """The messages of a request and the links created with them."""

    messages: Sequence[Written]
    shares: Sequence[FileShare] = ()


def send_time(world: World, outgoing: Outgoing) -> datetime | None:
    """Return the requested send time if it is in the future.

    Raises Invalid if it is too far ahead.
    """
    at = outgoing.send_time
    if at:
        check_time(world, at)
    return at if at and at > world.now() else None


def check_time(world: World, at: datetime) -> None:
    """Raise Invalid if the time is more than ten years ahead."""
    if at > world.now() + FARTHEST:
        text = f"at most {FARTHEST.days} days ahead"
        raise Invalid(text, constraint="max", path=["sendTime"])


async def written(ctx: Context, account: Picked, outgoing: Outgoing, problems: Problems) -> Batch:
    """Compose the messages of a request with their envelopes. Nothing is stored yet.

    Raises Invalid for all wrong fields together with the errors already in `problems`, Forbidden
    if the account may not use the sender, and NotFound for a missing mailbox, file or message.
    """
    _check(outgoing)
    file_attachments.check(outgoing.files)
    if outgoing.whole:
        problems.settle()
        return Batch([await _handed_in(ctx, account, outgoing)])
    date = send_time(ctx.world, outgoing) or ctx.world.now()
    checked = outgoing.is_draft or not outgoing.upload_only
    head = await composition.letterhead(ctx, account, outgoing, checked=checked)
    links = await file_attachments.offered(ctx, outgoing.files, outgoing.address)
    base = await composition.draft_of(ctx, head, outgoing, How(date))
    drafts = _merged(ctx, head, base, outgoing, problems)
    texts = [file_attachments.with_links(each.text, each.html, links) for each in drafts]
    drafts = [replace(d, text=t, html=h) for d, (t, h) in zip(drafts, texts, strict=True)]
    if outgoing.encrypt and any(draft.bcc for draft in drafts):
        text = "an encrypted message shows whose keys can read it: send the hidden copies apart"
        raise Invalid(text, constraint="exclusive", path=["bcc"])
    made, size, reached = list[tuple[bytes, str, list[str]]](), 0, 0
    for nth, draft in enumerate(drafts):
        sender, recipients, raw = "", list[str](), b""
        with problems.caught(), _of_entry(outgoing, nth):
            sender, recipients = await _envelope(ctx, account, draft, outgoing)
        with problems.caught(), _of_entry(outgoing, nth):
            raw = await composition.built(draft)
        made.append((raw, sender, recipients))
        size, reached = size + len(raw), reached + len(recipients)
        _check_all(size, reached, outgoing)
    problems.settle()
    box = await _folder(ctx, outgoing, head.mailbox_id)
    messages = [await _sealed(ctx, account, Written(*one, box, outgoing)) for one in made]
    return Batch(messages, [one.share for one in links])


def _check(outgoing: Outgoing) -> None:
    """Raise Invalid if fields of the request exclude each other."""
    if outgoing.merge is not None:
        if not 0 < len(outgoing.merge) <= ENTRIES:
            text = f"1 to {ENTRIES} messages"
            raise Invalid(text, constraint="max", path=["merge"])
        lists = outgoing.to, outgoing.cc, outgoing.bcc, outgoing.envelope.to
        if any(lists) or outgoing.whole or outgoing.stays:
            text = "each message says to whom it goes, is written from fields, and is sent"
            raise Invalid(text, constraint="exclusive", path=["merge"])
    if outgoing.raw is not None and outgoing.upload_id is not None:
        text = "give raw or rawUpload, one of them"
        raise Invalid(text, constraint="exclusive", path=["raw"])
    if outgoing.whole and (outgoing.template is not None or outgoing.encrypt):
        text = "a whole message goes as it is"
        raise Invalid(text, constraint="exclusive", path=["raw"])
    if outgoing.encrypt and outgoing.stays:
        text = "what is stored only is encrypted as the folder says"
        raise Invalid(text, constraint="exclusive", path=["encrypt"])


def _check_all(size: int, reached: int, outgoing: Outgoing) -> None:
    """Raise Invalid if a mail merge gets too large, before more of it is built."""
    if outgoing.merge is None:
        return
    if size > MERGED:
        raise Invalid(f"more than {MERGED} bytes in all", constraint="max", path=["merge"])
    if reached > REACHED:
        raise Invalid(f"more than {REACHED} recipients in all", constraint="max", path=["merge"])


@contextmanager
def _of_entry(outgoing: Outgoing, nth: int) -> Generator[None]:
    """Prefix the path of errors raised inside with the entry of the mail merge."""
    try:
        yield
    except (Invalid, Several) as refusal:
        if outgoing.merge is None:
            raise
        raise Several([_placed(one, nth) for one in refusal.each]) from refusal


def _placed(refusal: Refused, nth: int) -> Refused:
    refusal.path, refusal.index = ["merge", str(nth), *refusal.path], nth
    return refusal


def _merged(
    ctx: Context, head: Letterhead, base: Draft, outgoing: Outgoing, problems: Problems
) -> list[Draft]:
    """Return the drafts of a request, each with its own template values and recipients."""
    if outgoing.template is None and outgoing.merge is None:
        return [base]
    common = dict[str, str]()
    with problems.caught():
        common = text_templates.checked(outgoing.template or {}, ["template"])
    if outgoing.merge is None:
        with problems.caught():
            return [_filled(base, common)]
        return [base]
    made = []
    for nth, entry in enumerate(outgoing.merge):
        draft = replace(
            base,
            to=entry.to,
            cc=entry.cc,
            bcc=[*entry.bcc, *copied(head.bcc, [*entry.to, *entry.cc, *entry.bcc])],
            message_id=new_message_id(ctx, base.from_.address),
        )
        with problems.caught(), _of_entry(outgoing, nth):
            values = common | text_templates.checked(entry.values, ["values"])
            draft = _filled(draft, values)
        made.append(draft)
    return made


def _filled(draft: Draft, values: Mapping[str, str]) -> Draft:
    return replace(
        draft,
        subject=text_templates.filled(draft.subject, values, "subject", most=SUBJECT + 2 * KIB),
        text=text_templates.filled(draft.text, values, "text", most=2 * TEXT),
        html=text_templates.filled(draft.html, values, "html", most=HTML_WITH_IMAGES, of_html=True),
    )


async def _envelope(
    ctx: Context, account: Picked, draft: Draft, outgoing: Outgoing
) -> tuple[str, list[str]]:
    """Return sender and recipients, each recipient once."""
    lists = {"to": draft.to, "cc": draft.cc, "bcc": draft.bcc}
    named = [
        (person.address, path, nth)
        for path, people in lists.items()
        for nth, person in enumerate(people)
    ]
    return await _enveloped(ctx, account, outgoing, (draft.from_.address, named))


async def _enveloped(
    ctx: Context,
    account: Picked,
    outgoing: Outgoing,
    usual: tuple[str, Sequence[tuple[str, str, int]]],
) -> tuple[str, list[str]]:
    """Return the requested envelope, or else the `default_envelope` one, each recipient once.

    Recipients come with the input field and index for errors. Raises Forbidden if the account may
    not use the sender, and Invalid if there is no recipient, too many, or one is no address.
    """
    given, (sender, named) = outgoing.envelope, usual
    if given.sender is not None:
        sender = message_builder.address(given.sender, "envelope")
        await may_send_as(ctx, account, sender, ["envelope", "from"])
    if given.to is not None:
        named = [(address, "envelope", nth) for nth, address in enumerate(given.to)]
    recipients: dict[str, str] = {}
    for text, where, nth in named:
        address = message_builder.address(text, where, nth)
        recipients.setdefault(address.casefold(), address)
    most = ctx.world.options.max_recipients
    if not outgoing.stays:
        check_limit(len(recipients), most, f"more than {most} recipients", path=["to"])
    if not recipients and not outgoing.stays:
        raise Invalid("nobody to send it to", constraint="required", path=["to"])
    return sender, list(recipients.values())


def addressees(made: Mended, path: str) -> list[tuple[str, str, int]]:
    """Return address, field and index of each recipient that the header of a whole message names.

    Raises Invalid if an entry of an address field is no address.
    """
    if odd := half_written(made.raw):
        raise Invalid(f"no address: {odd}", constraint="pattern", path=[path])
    facts = made.facts
    lists = {"to": facts.to, "cc": facts.cc, "bcc": facts.bcc}
    for person in (*facts.to, *facts.cc, *facts.bcc):
        if not person.address and _means_an_address(person.name or ""):
            text = f"no address: {(person.name or '')[:200]}"
            raise Invalid(text, constraint="pattern", path=[path])
    return [
        (person.address, path, nth)
        for path, people in lists.items()
        for nth, person in enumerate(people)
        if person.address
    ]


def _means_an_address(text: str) -> bool:
    """True if an entry of an address field without an address was written as one.

    Other entries, such as "undisclosed recipients", are only a name.
    """
    return "@" in text or "<" in text or " " not in text


async def _handed_in(ctx: Context, account: Picked, outgoing: Outgoing) -> Written:
    """Complete a message that was handed in whole.

    Raises Forbidden for an author the account isn't.
    """
    raw = await upload.whole(ctx, outgoing.raw, outgoing.upload_id)
    if outgoing.stays:
        box = await _folder(ctx, outgoing, None)
        return Written(raw, "", [], box, outgoing)
    later = send_time(ctx.world, outgoing)
    date = later or ctx.world.now()
    message_id = new_message_id(ctx, (await composition.main_address(ctx, account)).address)
    try:
        made = await asyncio.to_thread(mended, raw, date, message_id, redate=later is not None)
    except Invalid as wrong:
        raise Invalid(wrong.message, constraint=wrong.constraint, path=["raw"]) from wrong
    for each in dict.fromkeys(made.writers):
        await may_send_as(ctx, account, message_builder.address(each, "raw"), ["raw"])
    usual = made.writers[0], addressees(made, "raw")
    sender, recipients = await _enveloped(ctx, account, outgoing, usual)
    box = await _folder(ctx, outgoing, None)
    return Written(made.raw, sender, recipients, box, outgoing)


async def _folder(ctx: Context, outgoing: Outgoing, usual: int | None) -> Picked | None:
    """Return the mailbox of the copy: the requested one, else the default one, Sent or Drafts.

    Raises NotFound if the requested one does not exist.
    """
    if usual is not None and not outgoing.mailbox and not outgoing.is_draft:
        (row,) = await mailbox_loaders.named(ctx, [(own(ctx), mailbox_loaders.Named(id=usual))])
        if row is not None:
            return row
    use = SpecialUse.DRAFTS if outgoing.is_draft else SpecialUse.SENT
    name = outgoing.mailbox or mailbox_loaders.Named(special_use=use)
    (row,) = await mailbox_loaders.named(ctx, [(own(ctx), name)])
    if row is None and (outgoing.mailbox or outgoing.stays):
        raise NotFound(name.path or str(name.id or use), path=["mailbox"])
    return row


async def _sealed(ctx: Context, account: Picked, made: Written) -> Written:
    """Encrypt the message to its recipients if requested. Raises Invalid if a key is missing."""
    if not made.outgoing.encrypt:
        return made
    keys = await recipient_keys.of(ctx, made.recipients)
    mine = [account.pub_key] if account.pub_key else []
    raw = await openpgp_encryption.to_all(ctx.world, made.raw, [*dict.fromkeys([*keys, *mine])])
    return replace(made, raw=raw, readable=None if mine else made.raw)
