"""Header fields of a letter: who, to whom, when, by which way, and what lists and shops add."""

from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from email.utils import format_datetime

from merganser.demo import mime
from merganser.demo.text_library import ENGLISH, Desk, Note, Person, fits

LIST = Person("Python users", "python-users@lists.example.org")
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
class Way:
    """How a letter comes or goes. `own` ones were written by the owner and never travelled."""

    to: tuple[Person, ...]
    cc: tuple[Person, ...]
    when: datetime
    message_id: str
    references: tuple[str, ...] = ()
    parent: str = ""
    own: bool = False


def new_id(desk: Desk, sender: Person) -> str:
    """Make a Message-ID in one of the usual fashions."""
    rng, domain = desk.rng, sender.address.rsplit("@", 1)[-1]
    number = rng.getrandbits(64)
    local = rng.choice((f"{number:016x}", f"{number}.{rng.randint(1, 99)}", f"CA+{number:X}=quack"))
    return f"<{local}@{domain}>"


def envelope_from(note: Note, way: Way) -> str:
    """Return the address of the envelope, empty for a bounce."""
    if note.genre in _NOTICES:
        return ""
    if LIST in way.to and not way.own:
        return "python-users-bounces@lists.example.org"
    if note.genre in _BULK:
        domain = note.sender.address.rsplit("@", 1)[-1]
        return f"bounce+{way.message_id[1:9].lower().replace('.', '-')}@{domain}"
    return note.sender.address


def _style(note: Note) -> tuple[str, str]:
    charset = "utf-8" if note.charset.startswith("utf") else note.charset
    return charset, "b" if note.language in _BASE64_SCRIPTS else "q"


def _people(note: Note, those: tuple[Person, ...]) -> str:
    charset, style = _style(note)
    rows = []
    for each in those:
        held = charset if fits(each.name, charset) else "utf-8"
        rows.append(mime.mailbox(each.name, each.address, held, style))
    return ", ".join(rows)


def _stamp(desk: Desk, when: datetime) -> str:
    zone = timezone(timedelta(minutes=desk.rng.choice(_ZONES)))
    return format_datetime(when.astimezone(zone))


def fields(desk: Desk, note: Note, way: Way) -> list[str]:
    """Return all fields of a letter but those of its content."""
    rows = [] if way.own else _travelled(desk, note, way)
    rows += [f"From: {_people(note, (note.sender,))}"]
    rows += [f"To: {_recipients(desk, note, way)}"]
    if way.cc:
        rows.append(f"Cc: {_people(note, way.cc)}")
    rows.append(f"Subject: {mime.words(note.subject, *_style(note))}")
    sent = way.when - timedelta(seconds=0 if way.own else desk.rng.randint(2, 90))
    rows += [f"Date: {_stamp(desk, sent)}", f"Message-ID: {way.message_id}"]
    if way.parent:
        rows += [f"In-Reply-To: {way.parent}", f"References: {' '.join(way.references)}"]
    return rows + _genre_fields(desk, note, way)


def _recipients(desk: Desk, note: Note, way: Way) -> str:
    if note.genre == "spam" and desk.rng.random() < 0.4:  # noqa: PLR2004 (two in five)
        return "undisclosed-recipients:;"
    if note.genre == "pond" and len(way.to) > 1:
        return f"Volunteers: {_people(note, way.to)};"
    return _people(note, way.to)


def _travelled(desk: Desk, note: Note, way: Way) -> list[str]:
    rng, sender = desk.rng, envelope_from(note, way)
    domain = (sender or note.sender.address).rsplit("@", 1)[-1]
    place = f"192.0.2.{rng.randint(1, 254)}"
    arrived = format_datetime(way.when)
    rows = [
        f"Return-Path: <{sender}>",
        f"Received: from mail.{domain} (mail.{domain} [{place}]) by {_HOST} with ESMTPS"
        f" id {rng.getrandbits(44):011x} for <{desk.owner.address}>; {arrived}",
        f"Authentication-Results: {_HOST}; dkim=pass header.d={domain}; spf=pass",
    ]
    if note.genre != "spam":
        seal = f"{rng.getrandbits(512):0128x}"
        rows.append(
            f"DKIM-Signature: v=1; a=rsa-sha256; c=relaxed/relaxed; d={domain}; s=pond;"
            f" h=from:to:subject:date:message-id; bh={seal[:43]}=; b={seal[43:86]} {seal[86:]}=="
        )
    return rows


def _genre_fields(desk: Desk, note: Note, way: Way) -> list[str]:
    rng = desk.rng
    number = rng.randint(1000, 999999)
    if LIST in way.to:
        return _list_fields() if not way.own else []
    if note.genre in _BULK:
        return _bulk_fields(note, number)
    if note.genre == "forge":
        repository = note.subject.partition("]")[0].strip("[") or "kingfisher/app"
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
    if note.genre in fixed:
        return fixed[note.genre]
    language = [f"Content-Language: {note.language}"] if note.language != ENGLISH else []
    return [rng.choice(_MAILERS), *language]


def _list_fields() -> list[str]:
    base = LIST.address.split("@")[0]
    site = f"https://lists.example.org/{base}"
    return [
        "Precedence: list",
        f"List-Id: Users of Python, and of ducks <{base}.lists.example.org>",
        f"List-Post: <mailto:{LIST.address}>",
        f"List-Help: <mailto:{base}-request@lists.example.org?subject=help>",
        f"List-Archive: <{site}/>",
        f"List-Unsubscribe: <{site}/options>, <mailto:{base}-leave@lists.example.org>",
    ]


def _bulk_fields(note: Note, number: int) -> list[str]:
    domain = note.sender.address.rsplit("@", 1)[-1]
    return [
        f"List-Id: <letters.{domain}>",
        f"List-Unsubscribe: <https://{domain}/stop/{number}>, <mailto:stop+{number}@{domain}>",
        "List-Unsubscribe-Post: List-Unsubscribe=One-Click",
        f"Feedback-ID: {number}:{note.genre}:demo",
    ]
