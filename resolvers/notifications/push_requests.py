"""Build push notifications and the HTTP requests that deliver them."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from email.charset import BASE64, Charset
from email.header import Header
from typing import Any
from urllib.parse import urlencode

import orjson

from mail.network.outbound_http import target
from models.notifications.push_channels import PushKind
from models.runtime.environment import World
from models.store.columns import Picked
from resolvers.notifications import web_push

PLACES = ("SUBJECT", "SENDER", "SENDER_NAME", "SENDER_ADDRESS", "TO_NAME", "TO_ADDRESS", "MSG_ID")
TITLE, TEXT = 250, 1024  # characters, the limits of Pushover
SMALL_TITLE, SMALL_TEXT = 600, 2600  # bytes; Web Push allows 4 KiB in all (RFC 8291, section 4)
TITLED = "{SENDER}"
WORDED = "{SUBJECT}"
NO_SUBJECT = "(no subject)"
_PLACE = re.compile("{(" + "|".join(PLACES) + ")}")
_ODD = re.compile(r"[\x00-\x08\x0b-\x1f\x7f\u2028\u2029\ud800-\udfff]")
_UTF8 = Charset("utf-8")
_UTF8.header_encoding = BASE64

Called = Callable[[str, int], str]  # type name and row id to global ID


@dataclass(frozen=True, slots=True)
class Notice:
    """The text of a push notification for one or many messages."""

    title: str
    text: str
    many: int = 1
    urgent: bool = False
    message_id: int | None = None


@dataclass(frozen=True, slots=True)
class Posted:
    """The HTTP request that delivers a push notification."""

    url: str
    headers: Mapping[str, str]
    body: bytes


def place_of(channel_id: int) -> str:
    """Return the purpose that the secret box binds the target of a channel to."""
    return f"push:{channel_id}"


def opened(world: World, channel: Picked) -> dict[str, Any]:
    """Decrypt the target of a channel: key, token, endpoint.

    Raises DecryptionError if its key is missing.
    """
    found: dict[str, Any] = orjson.loads(world.vault.open(channel.target, place_of(channel.id)))
    return found


def of_message(channel: Picked, message: Picked, *, urgent: bool) -> Notice:
    """Return the notification of one message, with the templates of the channel filled."""
    to: Sequence[str | None] = next(iter(message.to), (None, None))
    address = message.from_address or ""
    values = {
        "SUBJECT": message.subject or NO_SUBJECT,
        "SENDER": message.from_name or address,
        "SENDER_NAME": message.from_name or "",
        "SENDER_ADDRESS": address,
        "TO_NAME": to[0] or "",
        "TO_ADDRESS": to[1] or "",
        "MSG_ID": message.message_id or "",
    }
    urgent = urgent and channel.evaluate_priority
    return Notice(*_worded(channel, values), urgent=urgent, message_id=message.id)


def of_many(channel: Picked, many: int, *, urgent: bool) -> Notice:
    """Return the notification of many messages: their number, without any content."""
    title = channel.title if channel.title and not _PLACE.search(channel.title) else "New mail"
    urgent = urgent and channel.evaluate_priority
    return Notice(_line(title), f"{many} new messages", many=many, urgent=urgent)


def sample(channel: Picked, world: World) -> Notice:
    """Return a test notification."""
    address = f"postmaster@{world.options.hostname}"
    values = dict.fromkeys(PLACES, "") | {
        "SUBJECT": "This is a test",
        "SENDER": "Merganser",
        "SENDER_NAME": "Merganser",
        "SENDER_ADDRESS": address,
    }
    return Notice(*_worded(channel, values))


def _worded(channel: Picked, values: Mapping[str, str]) -> tuple[str, str]:
    """Return title and text. Inserted values are not expanded again."""

    def put(found: re.Match[str]) -> str:
        return values[found[1]]

    title = _line(_PLACE.sub(put, channel.title or TITLED))
    text = _ODD.sub("", _PLACE.sub(put, channel.text or WORDED)).strip()
    return title or "New mail", text[:TEXT] or title or NO_SUBJECT


def _line(text: str) -> str:
    return " ".join(_ODD.sub(" ", text).split())[:TITLE]


def _cut(text: str, size: int) -> str:
    """Return the beginning of a text of at most `size` bytes."""
    return text.encode()[:size].decode(errors="ignore")


async def posted(world: World, channel: Picked, notice: Notice, called: Called) -> Posted:
    """Build the HTTP request of a notification for this channel.

    Raises DecryptionError if its key is missing.
    """
    to = opened(world, channel)
    if channel.kind is PushKind.PUSHOVER:
        return _pushover(world, to, notice)
    if channel.kind is PushKind.HTTP:
        return _http(to, notice)
    return await _web_push(world, to["endpoint"], notice, called)


def _pushover(world: World, to: Mapping[str, Any], notice: Notice) -> Posted:
    form = {
        "token": to["token"],
        "user": to["key"],
        "title": notice.title,
        "message": notice.text,
        "priority": "1" if notice.urgent else "0",
    }
    kind = {"Content-Type": "application/x-www-form-urlencoded"}
    return Posted(world.options.pushover_url, kind, urlencode(form).encode())


def _http(to: Mapping[str, Any], notice: Notice) -> Posted:
    """Build a request as ntfy accepts it: the text, with the title encoded as in RFC 2047."""
    headers = {
        "Content-Type": "text/plain; charset=utf-8",
        "Title": _field(notice.title),
        "Priority": "high" if notice.urgent else "default",
    }
    if to.get("token"):
        headers["Authorization"] = f"Bearer {to['token']}"
    return Posted(to["endpoint"], headers, notice.text.encode())


def _field(text: str) -> str:
    if text.isascii():
        return text
    return Header(text, _UTF8, maxlinelen=1 << 16).encode(linesep="")


async def _web_push(
    world: World, subscription: Mapping[str, Any], notice: Notice, called: Called
) -> Posted:
    shown = {
        "title": _cut(notice.title, SMALL_TITLE),
        "body": _cut(notice.text, SMALL_TEXT),
        "count": notice.many,
        "message": called("Message", notice.message_id) if notice.message_id else None,
    }
    url = subscription["endpoint"]
    to = target(url, private=True)  # the worker checks the address
    payload = orjson.dumps(shown)
    headers, body = await web_push.request(world, subscription, to, payload, urgent=notice.urgent)
    return Posted(url, headers, body)
