"""Header fields of a demo message, with those that lists and shops add."""

from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from email.utils import format_datetime

from merganser.demo import mime
from merganser.demo.text_library import ENGLISH, GeneratorState, MessageText, Person, can_encode

MAILING_LIST = Person("Python users", "python-users@lists.example.org")
_HOST = "mx.merganser.example"
_ZONES = (-480, -300, -180, 0, 0, 60, 60, 120, 180, 330, 480, 540)
_MAILERS = (
    "User-Agent: Duckmail 3.1 (Linux)",
    "X-Mailer: Paddle Mail (16.2)",
    "X-Mailer: Reed 7.0.4",
    "User-Agent: Bittern/115.0",
)
_BASE64_SCRIPTS = ("ru", "uk", "bg", "el", "he", "ar", "ja", "zh-hans", "zh-hant", "ko", "th", "hi")
_NOTICES = ("bounce", "delay", "delivered", "read")
_BULK = ("newsletter", "shop", "travel")


@dataclass(frozen=True)
class MessageRouting:
    """Recipients, time and references of a message. The account owner wrote `is_own` ones."""

    to: tuple[Person, ...]
    cc: tuple[Person, ...]
    sent_at: datetime
    message_id: str
    references: tuple[str, ...] = ()
    parent: str = ""
    is_own: bool = False


def new_message_id(state: GeneratorState, sender: Person) -> str:
    """Create a Message-ID in one of the usual styles."""
    rng, domain = state.rng, sender.address.rsplit("@", 1)[-1]
    number = rng.getrandbits(64)
    local = rng.choice((f"{number:016x}", f"{number}.{rng.randint(1, 99)}", f"CA+{number:X}=quack"))
    return f"<{local}@{domain}>"


def envelope_sender(message_text: MessageText, routing: MessageRouting) -> str:
    """Return the envelope sender, empty for a bounce."""
    if message_text.genre in _NOTICES:
        return ""
    if MAILING_LIST in routing.to and not routing.is_own:
        return "python-users-bounces@lists.example.org"
    if message_text.genre in _BULK:
        domain = message_text.sender.address.rsplit("@", 1)[-1]
        return f"bounce+{routing.message_id[1:9].lower().replace('.', '-')}@{domain}"
    return message_text.sender.address


def _encoded_word_charset_and_style(message_text: MessageText) -> tuple[str, str]:
    charset = "utf-8" if message_text.charset.startswith("utf") else message_text.charset
    return charset, "b" if message_text.language in _BASE64_SCRIPTS else "q"


def _address_list(message_text: MessageText, people: tuple[Person, ...]) -> str:
    charset, style = _encoded_word_charset_and_style(message_text)
    rows = []
    for person in people:
        used_charset = charset if can_encode(person.name, charset) else "utf-8"
        rows.append(mime.format_mailbox(person.name, person.address, used_charset, style))
    return ", ".join(rows)


def _date_in_random_zone(state: GeneratorState, time: datetime) -> str:
    zone = timezone(timedelta(minutes=state.rng.choice(_ZONES)))
    return format_datetime(time.astimezone(zone))


def create_fields(
    state: GeneratorState, message_text: MessageText, routing: MessageRouting
) -> list[str]:
    """Return all header fields of a message except those of its content."""
    rows = [] if routing.is_own else _transport_fields(state, message_text, routing)
    rows += [f"From: {_address_list(message_text, (message_text.sender,))}"]
    rows += [f"To: {_to_field_value(state, message_text, routing)}"]
    if routing.cc:
        rows.append(f"Cc: {_address_list(message_text, routing.cc)}")
    charset, style = _encoded_word_charset_and_style(message_text)
    rows.append(f"Subject: {mime.encode_words_unless_ascii(message_text.subject, charset, style)}")
    written_at = routing.sent_at - timedelta(
        seconds=0 if routing.is_own else state.rng.randint(2, 90)
    )
    rows += [
        f"Date: {_date_in_random_zone(state, written_at)}",
        f"Message-ID: {routing.message_id}",
    ]
    if routing.parent:
        rows += [f"In-Reply-To: {routing.parent}", f"References: {' '.join(routing.references)}"]
    return rows + _genre_fields(state, message_text, routing)


def _to_field_value(
    state: GeneratorState, message_text: MessageText, routing: MessageRouting
) -> str:
    if message_text.genre == "spam" and state.rng.random() < 0.4:  # noqa: PLR2004 (two in five)
        return "undisclosed-recipients:;"
    if message_text.genre == "pond" and len(routing.to) > 1:
        return f"Volunteers: {_address_list(message_text, routing.to)};"
    return _address_list(message_text, routing.to)


def _transport_fields(
    state: GeneratorState, message_text: MessageText, routing: MessageRouting
) -> list[str]:
    rng, sender = state.rng, envelope_sender(message_text, routing)
    domain = (sender or message_text.sender.address).rsplit("@", 1)[-1]
    ip_address = f"192.0.2.{rng.randint(1, 254)}"
    arrived = format_datetime(routing.sent_at)
    rows = [
        f"Return-Path: <{sender}>",
        f"Received: from mail.{domain} (mail.{domain} [{ip_address}]) by {_HOST} with ESMTPS"
        f" id {rng.getrandbits(44):011x} for <{state.owner.address}>; {arrived}",
        f"Authentication-Results: {_HOST}; dkim=pass header.d={domain}; spf=pass",
    ]
    if message_text.genre != "spam":
        seal = f"{rng.getrandbits(512):0128x}"
        rows.append(
            f"DKIM-Signature: v=1; a=rsa-sha256; c=relaxed/relaxed; d={domain}; s=pond;"
            f" h=from:to:subject:date:message-id; bh={seal[:43]}=; b={seal[43:86]} {seal[86:]}=="
        )
    return rows


def _genre_fields(
    state: GeneratorState, message_text: MessageText, routing: MessageRouting
) -> list[str]:
    rng = state.rng
    number = rng.randint(1000, 999999)
    if MAILING_LIST in routing.to:
        return _list_fields() if not routing.is_own else []
    if message_text.genre in _BULK:
        return _bulk_fields(message_text, number)
    if message_text.genre == "forge":
        repository = message_text.subject.partition("]")[0].strip("[") or "kingfisher/app"
        project = repository.replace("/", ".")
        return [
            f"List-ID: {repository} <{project}.forge.example>",
            f"List-Archive: <https://forge.example/{repository}>",
            f"List-Unsubscribe: <https://forge.example/notifications/{number}/stop>",
            f"X-Forge-Reason: {rng.choice(('mention', 'subscribed', 'author'))}",
            "Precedence: list",
        ]
    fixed = {
        "cron": ["Auto-Submitted: auto-generated", "X-Cron-Env: <SHELL=/bin/sh>"],
        **{genre: ["Auto-Submitted: auto-replied"] for genre in _NOTICES},
        "report": ["Auto-Submitted: auto-generated"],
        "alert": ["X-Priority: 1 (Highest)", "Importance: high"],
        "spam": ["X-Spam-Flag: YES", f"X-Spam-Score: {number % 20 + 6}.{number % 10}"],
    }
    if message_text.genre in fixed:
        return fixed[message_text.genre]
    language = (
        [f"Content-Language: {message_text.language}"] if message_text.language != ENGLISH else []
    )
    return [rng.choice(_MAILERS), *language]


def _list_fields() -> list[str]:
    base = MAILING_LIST.address.split("@")[0]
    site = f"https://lists.example.org/{base}"
    return [
        "Precedence: list",
        f"List-Id: Users of Python, and of ducks <{base}.lists.example.org>",
        f"List-Post: <mailto:{MAILING_LIST.address}>",
        f"List-Help: <mailto:{base}-request@lists.example.org?subject=help>",
        f"List-Archive: <{site}/>",
        f"List-Unsubscribe: <{site}/options>, <mailto:{base}-leave@lists.example.org>",
    ]


def _bulk_fields(message_text: MessageText, number: int) -> list[str]:
    domain = message_text.sender.address.rsplit("@", 1)[-1]
    return [
        f"List-Id: <letters.{domain}>",
        f"List-Unsubscribe: <https://{domain}/stop/{number}>, <mailto:stop+{number}@{domain}>",
        "List-Unsubscribe-Post: List-Unsubscribe=One-Click",
        f"Feedback-ID: {number}:{message_text.genre}:demo",
    ]
