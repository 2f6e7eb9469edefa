"""What the letters say: sections of text files, filled with words that a seed has drawn."""

import textwrap
from dataclasses import dataclass, field, replace
from datetime import datetime
from importlib.resources import files
from random import Random

from merganser.demo.mime import File

ENGLISH = "en"
# How letters in a language are encoded; the first one that holds all of the text is taken.
CHARSETS: dict[str, tuple[str, ...]] = {
    "de": ("iso-8859-1", "iso-8859-15", "windows-1252", "utf-8"),
    "fr": ("iso-8859-15", "windows-1252", "utf-8", "iso-8859-1"),
    "es": ("iso-8859-1", "windows-1252", "utf-8"),
    "pt": ("iso-8859-1", "utf-8"),
    "it": ("iso-8859-15", "iso-8859-1", "utf-8"),
    "nl": ("iso-8859-1", "utf-8"),
    "da": ("iso-8859-1", "iso-8859-10", "utf-8"),
    "sv": ("iso-8859-1", "iso-8859-4", "utf-8"),
    "fi": ("iso-8859-15", "iso-8859-4", "utf-8"),
    "tr": ("iso-8859-9", "windows-1254", "utf-8"),
    "is": ("iso-8859-10", "iso-8859-1", "utf-8"),
    "vi": ("utf-8",),
    "pl": ("iso-8859-2", "windows-1250", "iso-8859-13", "utf-8"),
    "cs": ("iso-8859-2", "windows-1250", "utf-8"),
    "hu": ("iso-8859-2", "windows-1250", "utf-8"),
    "ro": ("iso-8859-16", "utf-8"),
    "ru": ("koi8-r", "windows-1251", "iso-8859-5", "utf-8"),
    "uk": ("koi8-u", "windows-1251", "utf-8"),
    "bg": ("windows-1251", "iso-8859-5"),
    "el": ("iso-8859-7", "windows-1253", "utf-8"),
    "he": ("windows-1255", "iso-8859-8", "utf-8"),
    "ar": ("windows-1256", "iso-8859-6", "utf-8"),
    "ja": ("iso-2022-jp", "shift_jis", "euc-jp", "utf-8"),
    "zh-hans": ("gb2312", "gbk", "gb18030", "utf-8"),
    "zh-hant": ("big5", "utf-8"),
    "ko": ("euc-kr", "utf-8"),
    "th": ("tis-620", "utf-8"),
    "hi": ("utf-8",),
    "ka": ("utf-8",),
}
RIGHT_TO_LEFT = ("ar", "he")
_ENGLISH_CHARSETS = ("us-ascii", "iso-8859-1", "windows-1252", "utf-8")
_TEXTS = ("people.txt", "machines.txt", "west.txt", "east.txt")
_WHOLE_NAMES = (
    "bounce",
    "report",
    "shop",
    "travel",
    "bank",
    "newsletter",
    "spam",
    "zh-hans",
    "zh-hant",
    "ko",
)
_LAST_NAMES = ("hu", "ja", "vi")
_NUMBERS = tuple(number for number in range(4, 40) if number % 10 not in (1, 2, 3))
_WIDTH = 72
_TRIES = 60


@dataclass(frozen=True)
class Person:
    """Somebody who writes or is written to."""

    name: str
    address: str


@dataclass(frozen=True)
class Topic:
    """Something to write about, for all senders of a section or for one of them."""

    subject: str
    paragraphs: list[str]
    sender: Person | None


@dataclass
class Section:
    """What people of one kind, or of one language, write about."""

    key: str
    senders: list[Person] = field(default_factory=list)
    greetings: list[str] = field(default_factory=list)
    closings: list[str] = field(default_factory=list)
    topics: list[Topic] = field(default_factory=list)
    extras: list[str] = field(default_factory=list)
    replies: list[str] = field(default_factory=list)

    @property
    def language(self) -> str:
        """Which language it is in."""
        return self.key if self.key in CHARSETS else ENGLISH


@dataclass(frozen=True)
class Library:
    """All sections by name, and words for the gaps in them."""

    sections: dict[str, Section]
    words: dict[str, list[str]]


@dataclass
class Desk:
    """What a letter is written at, and `when`. `used` are the subjects that are taken."""

    rng: Random
    now: datetime
    owner: Person
    library: Library
    shared: dict[str, File]
    when: datetime
    used: set[str] = field(default_factory=set)


@dataclass(frozen=True)
class Note:
    """A letter before it has a form. Greeting and closing are among the paragraphs."""

    genre: str
    language: str
    charset: str
    sender: Person
    subject: str
    paragraphs: tuple[str, ...]
    quoted: str = ""


def read() -> Library:
    """Read the text files beside this module."""
    folder = files("merganser.demo") / "texts"
    sections: dict[str, Section] = {}
    for name in _TEXTS:
        section = Section("")
        for line in (folder / name).read_text("utf-8").splitlines():
            if line.startswith("== "):
                section = sections.setdefault(line[3:], Section(line[3:]))
            elif line:
                _add(section, line)
    words = {}
    for line in (folder / "words.txt").read_text("utf-8").splitlines():
        key, choices = line.split(": ", 1)
        words[key] = choices.split("; ")
    return Library(sections, words)


def _add(section: Section, line: str) -> None:
    sign, rest = line[:2], line[2:]
    lists = {"< ": section.greetings, "> ": section.closings, "+ ": section.extras}
    lists["~ "] = section.replies
    if sign == "@ ":
        name, address = rest.rstrip(">").split(" <")
        section.senders.append(Person(name, address))
    elif sign[0] == "=":
        number, subject = line[1:].split(" ", 1)
        sender = section.senders[int(number) - 1] if number else None
        section.topics.append(Topic(subject, [], sender))
    elif sign in lists:
        lists[sign].append(rest)
    else:
        section.topics[-1].paragraphs.append(line)


def gaps(desk: Desk) -> dict[str, str]:
    """Draw a word for each gap; one letter keeps them all through."""
    rng = desk.rng
    drawn = {key: rng.choice(choices) for key, choices in desk.library.words.items()}
    return {
        **drawn,
        "n": str(rng.choice(_NUMBERS)),
        "m": str(rng.randint(24, 98)),
        "k": str(rng.randint(100, 9999)),
        "time": f"{rng.randint(9, 20)}:{rng.choice((0, 15, 30, 45)):02d}",
        "ref": f"{rng.choice('ACEFHKMPRT')}{rng.randint(2, 9)}-{rng.randint(10000, 99999)}",
        "price": f"£{rng.randint(3, 180)}.{rng.randint(0, 9)}{rng.choice('05')}",
        "version": f"{rng.randint(0, 7)}.{rng.randint(0, 19)}.{rng.randint(0, 9)}",
    }


def fits(text: str, charset: str) -> bool:
    """Tell whether a charset holds all of a text."""
    try:
        text.encode(charset)
    except UnicodeEncodeError:
        return False
    return True


def fitting(text: str, wanted: str) -> str:
    """Return the wanted charset, or utf-8 where it does not hold all of the text."""
    return wanted if fits(text, wanted) else "utf-8"


def familiar(section: Section, person: Person) -> str:
    """Return the name that somebody signs with."""
    if section.key in _WHOLE_NAMES:
        return person.name
    return person.name.split(" ")[-1 if section.key in _LAST_NAMES else 0]


def write(desk: Desk, key: str, charset: str = "", sender: Person | None = None) -> Note:
    """Write a note about something of a section, under a subject that nothing had before."""
    section, rng = desk.library.sections[key], desk.rng
    filled, topic = gaps(desk), rng.choice(section.topics)
    for _ in range(_TRIES):
        if topic.subject.format_map(filled) not in desk.used:
            break
        filled, topic = gaps(desk), rng.choice(section.topics)
    subject = topic.subject.format_map(filled)
    while subject in desk.used:
        subject = f"{topic.subject.format_map(filled)} [{rng.randint(2, 10**6)}]"
    desk.used.add(subject)
    sender = sender or topic.sender or rng.choice(section.senders)
    extras = rng.sample(section.extras, min(len(section.extras), rng.choice((0, 0, 1, 1, 2, 3))))
    paragraphs = _framed(desk, section, sender, [*topic.paragraphs, *extras])
    body = tuple(each.format_map(filled | {"me": familiar(section, sender)}) for each in paragraphs)
    note = Note(key, section.language, "utf-8", sender, subject, body)
    return with_charset(note, charset or _charset(desk, note))


def _framed(desk: Desk, section: Section, sender: Person, body: list[str]) -> list[str]:
    start = [desk.rng.choice(section.greetings)] if section.greetings else []
    end = [desk.rng.choice(section.closings)] if section.closings else []
    if sender == desk.owner:
        end = [f"{desk.rng.choice(('Best wishes', 'Yours', 'Quack'))},|{{me}}"] if end else []
        start = []
    return [each.replace("|", "\n") for each in (*start, *body, *end)]


def _charset(desk: Desk, note: Note) -> str:
    text = whole(note)
    if note.language != ENGLISH:
        return desk.rng.choice(CHARSETS[note.language])
    if text.isascii():
        return desk.rng.choice(_ENGLISH_CHARSETS)
    return next(each for each in _ENGLISH_CHARSETS if fits(text, each))


def with_charset(note: Note, charset: str) -> Note:
    """Give a note a charset, or utf-8 if that one does not hold all of it."""
    return replace(note, charset=fitting(whole(note), charset))


def whole(note: Note) -> str:
    """Return all text of a note in one piece."""
    return "\n".join((note.sender.name, note.subject, *note.paragraphs, note.quoted))


def answer(desk: Desk, before: Note, sender: Person, when: datetime) -> Note:
    """Write an answer to a note, with that note quoted below."""
    section, rng = desk.library.sections[before.genre], desk.rng
    filled = gaps(desk) | {"me": familiar(section, sender)}
    says = [rng.choice(section.replies)]
    if section.extras and rng.random() < 0.5:  # noqa: PLR2004 (every other one)
        says.append(rng.choice(section.extras))
    says.append("{me}")
    body = tuple(each.format_map(filled) for each in says)
    quoted = f"On {when:%Y-%m-%d at %H:%M}, {before.sender.name} wrote:\n{_quote(plain(before))}"
    subject = before.subject if before.subject.startswith("Re: ") else f"Re: {before.subject}"
    note = Note(before.genre, before.language, before.charset, sender, subject, body, quoted)
    return with_charset(note, before.charset)


def _quote(text: str) -> str:
    return "\n".join(
        f">{'' if row.startswith('>') else ' '}{row}".rstrip() for row in text.split("\n")
    )


def plain(note: Note, width: int = _WIDTH) -> str:
    """Write a note as lines of text."""
    paragraphs = ["\n".join(_wrapped(each, width)) for each in note.paragraphs]
    return "\n\n".join((*paragraphs, note.quoted) if note.quoted else paragraphs) + "\n"


def _wrapped(paragraph: str, width: int) -> list[str]:
    rows: list[str] = []
    for row in paragraph.split("\n"):
        rows += textwrap.wrap(row, width, break_on_hyphens=False) or [""]
    return rows
