"""Send the mail notifications of scripts (RFC 5436)."""

import asyncio
from dataclasses import replace

from mail.autoreply.decision import Came, Silence, plain
from mail.autoreply.sieve_vacation import Incoming, account_of, author, came_of, copied
from mail.compose import message_builder
from mail.compose.message_builder import SUBJECT, Draft, HeaderLine, Priority
from mail.filters.script_environment import Boxes
from mail.mime.header_encoding import Named, on_wire
from mail.queue.redirect import send_on
from mail.recipients.recipient_routes import Onward
from mail.sieve import Notify
from mail.storage import received_messages
from mail.storage.message_insert import Way
from mail.storage.received_messages import Copies
from models.runtime.environment import World

_PRIORITY = {1: Priority.HIGH, 3: Priority.LOW}
_AUTOMATIC = frozenset({"auto-submitted"})


async def tell(world: World, incoming: Incoming, notice: Notify, boxes: Boxes) -> Silence | None:
    """Enqueue a notification. Returns None, or the reason for none.

    Spam and automatic mail cause no notification, to avoid mail loops.
    """
    to, came = incoming.to, await came_of(incoming)
    if came.spam or _automatic(came):
        return Silence.SPAM if came.spam else Silence.AUTOMATIC_MAIL
    row = await account_of(world, to)
    if row is None or row.suspended:
        return Silence.SUSPENDED
    from_ = await author(world, to, row, notice.from_)
    if from_ is None:
        return Silence.OTHER_ADDRESS
    raw = await asyncio.to_thread(_built, world, came, notice, from_)
    onward = Onward(to.address, None, to.tenant_id, notice.to, user_id=to.user_id)
    # a key of its own: redirects of the message itself use its digest
    made_of = f"{incoming.letter.digest}\0{notice.method}"
    letter = replace(await received_messages.read(raw), ours=True)
    await send_on(world, raw, (made_of, ""), onward, letter=letter)
    if notice.fcc is not None:
        copy = await copied(world, to, (raw, letter), notice.fcc, boxes)
        if copy is not None:
            receipt = received_messages.receipt_of(incoming.letter, to, f"notify\0{notice.method}")
            await received_messages.receive_all(world, to, Copies(receipt, [copy], Way.PUT_IN))
    return None


def _automatic(came: Came) -> bool:
    """Return True if Auto-Submitted says that a program sent the message."""
    said = [one.value for one in came.header if one.key.lower() in _AUTOMATIC]
    return any(value.strip().lower().partition(";")[0].strip() != "no" for value in said)


def _built(world: World, came: Came, notice: Notify, from_: Named) -> bytes:
    """Build the notification message."""
    fields = dict(notice.fields)
    subject = notice.message or fields.pop("subject", "") or came.subject
    fields.pop("subject", None)
    owner = on_wire(from_.address)
    headers = [HeaderLine("Auto-Submitted", f'auto-notified; owner-email="{owner}"')]
    headers += [HeaderLine(name.title(), value) for name, value in fields.items() if _free(name)]
    draft = Draft(
        from_=from_,
        date=world.now(),
        message_id=message_builder.message_id(world.random(16), from_.address.rpartition("@")[2]),
        to=[Named(address) for address in notice.to],
        subject=plain(subject, SUBJECT),
        text=notice.body or f"{plain(came.subject, SUBJECT)}\n",
        headers=headers,
        priority=_PRIORITY.get(notice.importance, Priority.NORMAL),
    )
    return message_builder.build(draft)


def _free(name: str) -> bool:
    """Return True if a script may set this header field."""
    own = name in message_builder.OURS or name.startswith(message_builder.OURS_BY_PREFIX)
    return not own and name != "auto-submitted"
