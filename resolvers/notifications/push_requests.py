"""What is posted to push channels: the words of a notice, and the request that brings it."""

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
TITLE, TEXT = 250, 1024  # characters that Pushover takes
SMALL_TITLE, SMALL_TEXT = 600, 2600  # bytes: a browser is sent 4 KiB (RFC 8291, section 4)
TITLED = "{SENDER}"
WORDED = "{SUBJECT}"
NO_SUBJECT = "(no subject)"
_PLACE = re.compile("{(" + "|".join(PLACES) + ")}")
_ODD = re.compile(r"[\x00-\x08\x0b-\x1f\x7f\u2028\u2029\ud800-\udfff]")
_UTF8 = Charset("utf-8")
_UTF8.header_encoding = BASE64

Called = Callable[[str, int], str]  # the id of a row of a kind, as the API has it


@dataclass(frozen=True, slots=True)
class Notice:
    """What a user is told: of one message, or of so many; `urgent` where it is to stand out."""

    title: str
    text: str
    many: int = 1
    urgent: bool = False
    message_id: int | None = None


@dataclass(frozen=True, slots=True)
class Posted:
    """A request that brings a notice."""

    url: str
    headers: Mapping[str, str]
    body: bytes


def place_of(channel_id: int) -> str:
    """What the vault seals where a channel leads for."""
    return f"push:{channel_id}"


def opened(world: World, channel: Picked) -> dict[str, Any]:
    """Where a channel leads: key, token, endpoint; raises Sealed."""
    found: dict[str, Any] = orjson.loads(world.vault.open(channel.target, place_of(channel.id)))
    return found


def of_message(channel: Picked, message: Picked, *, urgent: bool) -> Notice:
    """The notice of one message, in the words of the channel."""
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
    """The notice of many messages: how many, and nothing of what is in them."""
    title = channel.title if channel.title and not _PLACE.search(channel.title) else "New mail"
    urgent = urgent and channel.evaluate_priority
    return Notice(_line(title), f"{many} new messages", many=many, urgent=urgent)


def sample(channel: Picked, world: World) -> Notice:
    """A notice of a message that is none."""
    address = f"postmaster@{world.options.hostname}"
    values = dict.fromkeys(PLACES, "") | {
        "SUBJECT": "This is a test",
        "SENDER": "Merganser",
        "SENDER_NAME": "Merganser",
        "SENDER_ADDRESS": address,
    }
    return Notice(*_worded(channel, values))


def _worded(channel: Picked, values: Mapping[str, str]) -> tuple[str, str]:
    """Title and text; what is put in is not looked at once more."""

    def put(found: re.Match[str]) -> str:
        return values[found[1]]

    title = _line(_PLACE.sub(put, channel.title or TITLED))
    text = _ODD.sub("", _PLACE.sub(put, channel.text or WORDED)).strip()
    return title or "New mail", text[:TEXT] or title or NO_SUBJECT


def _line(text: str) -> str:
    return " ".join(_ODD.sub(" ", text).split())[:TITLE]


def _cut(text: str, size: int) -> str:
    """The beginning, of at most so many bytes."""
    return text.encode()[:size].decode(errors="ignore")


async def posted(world: World, channel: Picked, notice: Notice, called: Called) -> Posted:
    """The request that brings a notice by this channel; raises Sealed."""
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
    """As ntfy takes it: the text, with a title that is encoded where it must be (RFC 2047)."""
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
    to = target(url, private=True)  # whether it may be reached is judged where it is posted
    payload = orjson.dumps(shown)
    headers, body = await web_push.request(world, subscription, to, payload, urgent=notice.urgent)
    return Posted(url, headers, body)
