"""Build push notifications and the HTTP requests that deliver them."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from email.charset import BASE64, Charset
from email.header import Header
from typing import Any, NamedTuple
from urllib.parse import urlencode

import orjson

from mail.network.outbound_http import parse_http_target
from models.notifications.push_channels import PushKind
from models.runtime.environment import Environment
from models.store.columns import ColumnRow
from resolvers.notifications import web_push

PLACEHOLDERS = (
    "SUBJECT",
    "SENDER",
    "SENDER_NAME",
    "SENDER_ADDRESS",
    "TO_NAME",
    "TO_ADDRESS",
    "MSG_ID",
)
MAX_TITLE_LENGTH, MAX_TEXT_LENGTH = 250, 1024  # characters, the limits of Pushover
# bytes; Web Push allows 4 KiB in all (RFC 8291, section 4)
MAX_WEB_PUSH_TITLE = 600
MAX_WEB_PUSH_TEXT = 2600
DEFAULT_TITLE = "{SENDER}"
DEFAULT_TEXT = "{SUBJECT}"
NO_SUBJECT = "(no subject)"
_PLACEHOLDER = re.compile("{(" + "|".join(PLACEHOLDERS) + ")}")
_UNPRINTABLE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f\u2028\u2029\ud800-\udfff]")
_UTF8 = Charset("utf-8")
_UTF8.header_encoding = BASE64

NodeIdEncoder = Callable[[str, int], str]  # type name and row id to global ID


@dataclass(frozen=True, slots=True)
class PushNotification:
    """The text of a push notification for one or many messages."""

    title: str
    text: str
    message_count: int = 1
    is_urgent: bool = False
    message_id: int | None = None


@dataclass(frozen=True, slots=True)
class PushRequest:
    """The HTTP request that delivers a push notification."""

    url: str
    headers: Mapping[str, str]
    body: bytes


def secret_purpose(channel_id: int) -> str:
    """Return the purpose that the secret box binds the target of a channel to."""
    return f"push:{channel_id}"


def decrypt_target(environment: Environment, channel: ColumnRow) -> dict[str, Any]:
    """Decrypt the target of a channel: key, token, endpoint.

    Raises DecryptionError if its key is missing.
    """
    target: dict[str, Any] = orjson.loads(
        environment.secret_box.decrypt(channel.target, secret_purpose(channel.id))
    )
    return target


def notification_of_message(
    channel: ColumnRow, message: ColumnRow, *, is_urgent: bool
) -> PushNotification:
    """Return the notification of one message, with the templates of the channel filled."""
    first_recipient: Sequence[str | None] = next(iter(message.to), (None, None))
    address = message.from_address or ""
    values = {
        "SUBJECT": message.subject or NO_SUBJECT,
        "SENDER": message.from_name or address,
        "SENDER_NAME": message.from_name or "",
        "SENDER_ADDRESS": address,
        "TO_NAME": first_recipient[0] or "",
        "TO_ADDRESS": first_recipient[1] or "",
        "MSG_ID": message.message_id or "",
    }
    is_urgent = is_urgent and channel.pass_priority
    return PushNotification(
        *_fill_templates(channel, values), is_urgent=is_urgent, message_id=message.id
    )


def notification_of_many(
    channel: ColumnRow, message_count: int, *, is_urgent: bool
) -> PushNotification:
    """Return the notification of many messages: their number, without any content."""
    title = (
        channel.title if channel.title and not _PLACEHOLDER.search(channel.title) else "New mail"
    )
    is_urgent = is_urgent and channel.pass_priority
    return PushNotification(
        _single_line(title),
        f"{message_count} new messages",
        message_count=message_count,
        is_urgent=is_urgent,
    )


def sample_notification(channel: ColumnRow, environment: Environment) -> PushNotification:
    """Return a test notification."""
    address = f"postmaster@{environment.options.hostname}"
    values = dict.fromkeys(PLACEHOLDERS, "") | {
        "SUBJECT": "This is a test",
        "SENDER": "Merganser",
        "SENDER_NAME": "Merganser",
        "SENDER_ADDRESS": address,
    }
    return PushNotification(*_fill_templates(channel, values))


class _NotificationTexts(NamedTuple):
    """The texts of a push notification."""

    title: str
    text: str


def _fill_templates(channel: ColumnRow, values: Mapping[str, str]) -> _NotificationTexts:
    """Return title and text. Inserted values are not expanded again."""

    def value_of_placeholder(placeholder: re.Match[str]) -> str:
        return values[placeholder[1]]

    title = _single_line(_PLACEHOLDER.sub(value_of_placeholder, channel.title or DEFAULT_TITLE))
    text = _UNPRINTABLE.sub(
        "", _PLACEHOLDER.sub(value_of_placeholder, channel.text or DEFAULT_TEXT)
    ).strip()
    return _NotificationTexts(title or "New mail", text[:MAX_TEXT_LENGTH] or title or NO_SUBJECT)


def _single_line(text: str) -> str:
    return " ".join(_UNPRINTABLE.sub(" ", text).split())[:MAX_TITLE_LENGTH]


def _truncate_to_bytes(text: str, size: int) -> str:
    """Return the beginning of a text of at most `size` bytes."""
    return text.encode()[:size].decode(errors="ignore")


async def build_push_request(
    environment: Environment,
    channel: ColumnRow,
    notice: PushNotification,
    encode_node_id: NodeIdEncoder,
) -> PushRequest:
    """Build the HTTP request of a notification for this channel.

    Raises DecryptionError if its key is missing.
    """
    channel_target = decrypt_target(environment, channel)
    if channel.kind is PushKind.PUSHOVER:
        return _pushover_request(environment, channel_target, notice)
    if channel.kind is PushKind.HTTP:
        return _ntfy_request(channel_target, notice)
    return await _web_push_request(environment, channel_target["endpoint"], notice, encode_node_id)


def _pushover_request(
    environment: Environment, channel_target: Mapping[str, Any], notice: PushNotification
) -> PushRequest:
    form = {
        "token": channel_target["token"],
        "user": channel_target["key"],
        "title": notice.title,
        "message": notice.text,
        "priority": "1" if notice.is_urgent else "0",
    }
    kind = {"Content-Type": "application/x-www-form-urlencoded"}
    return PushRequest(environment.options.pushover_url, kind, urlencode(form).encode())


def _ntfy_request(channel_target: Mapping[str, Any], notice: PushNotification) -> PushRequest:
    """Build a request as ntfy accepts it: the text, with the title encoded as in RFC 2047."""
    headers = {
        "Content-Type": "text/plain; charset=utf-8",
        "Title": _encode_header_text(notice.title),
        "Priority": "high" if notice.is_urgent else "default",
    }
    if channel_target.get("token"):
        headers["Authorization"] = f"Bearer {channel_target['token']}"
    return PushRequest(channel_target["endpoint"], headers, notice.text.encode())


def _encode_header_text(text: str) -> str:
    if text.isascii():
        return text
    return Header(text, _UTF8, maxlinelen=1 << 16).encode(linesep="")


async def _web_push_request(
    environment: Environment,
    subscription: Mapping[str, Any],
    notice: PushNotification,
    encode_node_id: NodeIdEncoder,
) -> PushRequest:
    content = {
        "title": _truncate_to_bytes(notice.title, MAX_WEB_PUSH_TITLE),
        "body": _truncate_to_bytes(notice.text, MAX_WEB_PUSH_TEXT),
        "count": notice.message_count,
        "message": encode_node_id("Message", notice.message_id) if notice.message_id else None,
    }
    url = subscription["endpoint"]
    endpoint = parse_http_target(url, allow_private=True)  # the worker checks the address
    payload = orjson.dumps(content)
    headers, body = await web_push.encrypt_and_build_push_request(
        environment, subscription, endpoint, payload, is_urgent=notice.is_urgent
    )
    return PushRequest(url, headers, body)
