"""The texts of demo messages: sections of text files, filled with random words."""

import textwrap
from dataclasses import dataclass, field, replace
from datetime import datetime
from importlib.resources import files
from random import Random

from merganser.demo.mime import DemoFile

ENGLISH = "en"
# The charsets of messages in a language.
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
_SECTIONS_WITH_WHOLE_NAMES = (
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
_SECTIONS_WITH_FAMILY_NAME_FIRST = ("hu", "ja", "vi")
_NUMBERS = tuple(number for number in range(4, 40) if number % 10 not in (1, 2, 3))
_WIDTH = 72
_MAX_SUBJECT_TRIES = 60


@dataclass(frozen=True)
class Person:
    """A sender or recipient."""

    name: str
    address: str


@dataclass(frozen=True)
class TextTopic:
    """Subject and paragraphs of a message, for one sender or all senders of a section."""

    subject: str
    paragraphs: list[str]
    sender: Person | None


@dataclass
class TextSection:
    """The senders, topics and phrases of one genre or language."""

    key: str
    senders: list[Person] = field(default_factory=list)
    greetings: list[str] = field(default_factory=list)
    closings: list[str] = field(default_factory=list)
    topics: list[TextTopic] = field(default_factory=list)
    extras: list[str] = field(default_factory=list)
    replies: list[str] = field(default_factory=list)

    @property
    def language(self) -> str:
        """The BCP 47 tag of the section's language."""
        return self.key if self.key in CHARSETS else ENGLISH


@dataclass(frozen=True)
class TextLibrary:
    """All sections by name, and the words for their placeholders."""

    sections: dict[str, TextSection]
    words: dict[str, list[str]]


@dataclass
class GeneratorState:
    """The state of the generator: random numbers, texts, shared files and used subjects."""

    rng: Random
    now: datetime
    owner: Person
    library: TextLibrary
    shared_files: dict[str, DemoFile]
    current_time: datetime
    used_subjects: set[str] = field(default_factory=set)


@dataclass(frozen=True)
class MessageText:
    """The text of a message before it becomes MIME. Paragraphs include greeting and closing."""

    genre: str
    language: str
    charset: str
    sender: Person
    subject: str
    paragraphs: tuple[str, ...]
    quoted_text: str = ""


def read_library() -> TextLibrary:
    """Read the text files beside this module."""
    folder = files("merganser.demo") / "texts"
    sections: dict[str, TextSection] = {}
    for name in _TEXTS:
        section = TextSection("")
        for line in (folder / name).read_text("utf-8").splitlines():
            if line.startswith("== "):
                section = sections.setdefault(line[3:], TextSection(line[3:]))
            elif line:
                _add_line(section, line)
    word_lists = {}
    for line in (folder / "words.txt").read_text("utf-8").splitlines():
        key, choices = line.split(": ", 1)
        word_lists[key] = choices.split("; ")
    return TextLibrary(sections, word_lists)


def _add_line(section: TextSection, line: str) -> None:
    sign, rest = line[:2], line[2:]
    lists = {"< ": section.greetings, "> ": section.closings, "+ ": section.extras}
    lists["~ "] = section.replies
    if sign == "@ ":
        name, address = rest.rstrip(">").split(" <")
        section.senders.append(Person(name, address))
    elif sign[0] == "=":
        number, subject = line[1:].split(" ", 1)
        sender = section.senders[int(number) - 1] if number else None
        section.topics.append(TextTopic(subject, [], sender))
    elif sign in lists:
        lists[sign].append(rest)
    else:
        section.topics[-1].paragraphs.append(line)


def random_words_by_placeholder(state: GeneratorState) -> dict[str, str]:
    """Draw a random word for each placeholder of a message."""
    rng = state.rng
    chosen_words = {key: rng.choice(choices) for key, choices in state.library.words.items()}
    return {
        **chosen_words,
        "n": str(rng.choice(_NUMBERS)),
        "m": str(rng.randint(24, 98)),
        "k": str(rng.randint(100, 9999)),
        "time": f"{rng.randint(9, 20)}:{rng.choice((0, 15, 30, 45)):02d}",
        "ref": f"{rng.choice('ACEFHKMPRT')}{rng.randint(2, 9)}-{rng.randint(10000, 99999)}",
        "price": f"£{rng.randint(3, 180)}.{rng.randint(0, 9)}{rng.choice('05')}",
        "version": f"{rng.randint(0, 7)}.{rng.randint(0, 19)}.{rng.randint(0, 9)}",
    }


def can_encode(text: str, charset: str) -> bool:
    """True if a charset can encode the text."""
    try:
        text.encode(charset)
    except UnicodeEncodeError:
        return False
    return True


def charset_or_utf8(text: str, charset: str) -> str:
    """Return the charset, or utf-8 if it can't encode the text."""
    return charset if can_encode(text, charset) else "utf-8"


def signing_name(section: TextSection, person: Person) -> str:
    """Return the name that a person signs with."""
    if section.key in _SECTIONS_WITH_WHOLE_NAMES:
        return person.name
    return person.name.split(" ")[-1 if section.key in _SECTIONS_WITH_FAMILY_NAME_FIRST else 0]


def write_text(
    state: GeneratorState, section_key: str, charset: str = "", sender: Person | None = None
) -> MessageText:
    """Write a text on a random topic of a section, with an unused subject."""
    section, rng = state.library.sections[section_key], state.rng
    filled, topic = random_words_by_placeholder(state), rng.choice(section.topics)
    for _ in range(_MAX_SUBJECT_TRIES):
        if topic.subject.format_map(filled) not in state.used_subjects:
            break
        filled, topic = random_words_by_placeholder(state), rng.choice(section.topics)
    subject = topic.subject.format_map(filled)
    while subject in state.used_subjects:
        subject = f"{topic.subject.format_map(filled)} [{rng.randint(2, 10**6)}]"
    state.used_subjects.add(subject)
    sender = sender or topic.sender or rng.choice(section.senders)
    extras = rng.sample(section.extras, min(len(section.extras), rng.choice((0, 0, 1, 1, 2, 3))))
    paragraphs = _with_greeting_and_closing(state, section, sender, [*topic.paragraphs, *extras])
    body = tuple(
        paragraph.format_map(filled | {"me": signing_name(section, sender)})
        for paragraph in paragraphs
    )
    message_text = MessageText(section_key, section.language, "utf-8", sender, subject, body)
    return with_charset(message_text, charset or _choose_charset(state, message_text))


def _with_greeting_and_closing(
    state: GeneratorState, section: TextSection, sender: Person, body: list[str]
) -> list[str]:
    start = [state.rng.choice(section.greetings)] if section.greetings else []
    end = [state.rng.choice(section.closings)] if section.closings else []
    if sender == state.owner:
        end = [f"{state.rng.choice(('Best wishes', 'Yours', 'Quack'))},|{{me}}"] if end else []
        start = []
    return [line.replace("|", "\n") for line in (*start, *body, *end)]


def _choose_charset(state: GeneratorState, message_text: MessageText) -> str:
    text = all_text(message_text)
    if message_text.language != ENGLISH:
        return state.rng.choice(CHARSETS[message_text.language])
    if text.isascii():
        return state.rng.choice(_ENGLISH_CHARSETS)
    return next(charset for charset in _ENGLISH_CHARSETS if can_encode(text, charset))


def with_charset(message_text: MessageText, charset: str) -> MessageText:
    """Return the text with a charset, or with utf-8 if the charset can't encode it."""
    return replace(message_text, charset=charset_or_utf8(all_text(message_text), charset))


def all_text(message_text: MessageText) -> str:
    """Return sender name, subject and body as one string."""
    return "\n".join(
        (
            message_text.sender.name,
            message_text.subject,
            *message_text.paragraphs,
            message_text.quoted_text,
        )
    )


def write_reply(
    state: GeneratorState, replied_text: MessageText, sender: Person, replied_at: datetime
) -> MessageText:
    """Write a reply that quotes the replied text."""
    section, rng = state.library.sections[replied_text.genre], state.rng
    filled = random_words_by_placeholder(state) | {"me": signing_name(section, sender)}
    says = [rng.choice(section.replies)]
    if section.extras and rng.random() < 0.5:  # noqa: PLR2004 (every other one)
        says.append(rng.choice(section.extras))
    says.append("{me}")
    body = tuple(sentence.format_map(filled) for sentence in says)
    quoted = (
        f"On {replied_at:%Y-%m-%d at %H:%M}, {replied_text.sender.name} "
        f"wrote:\n{_quote_lines(wrapped_text(replied_text))}"
    )
    subject = (
        replied_text.subject
        if replied_text.subject.startswith("Re: ")
        else f"Re: {replied_text.subject}"
    )
    message_text = MessageText(
        replied_text.genre,
        replied_text.language,
        replied_text.charset,
        sender,
        subject,
        body,
        quoted,
    )
    return with_charset(message_text, replied_text.charset)


def _quote_lines(text: str) -> str:
    return "\n".join(
        f">{'' if row.startswith('>') else ' '}{row}".rstrip() for row in text.split("\n")
    )


def wrapped_text(message_text: MessageText, width: int = _WIDTH) -> str:
    """Return the body as wrapped lines."""
    paragraphs = [
        "\n".join(_wrap_paragraph(paragraph, width)) for paragraph in message_text.paragraphs
    ]
    return (
        "\n\n".join(
            (*paragraphs, message_text.quoted_text) if message_text.quoted_text else paragraphs
        )
        + "\n"
    )


def _wrap_paragraph(paragraph: str, width: int) -> list[str]:
    rows: list[str] = []
    for row in paragraph.split("\n"):
        rows += textwrap.wrap(row, width, break_on_hyphens=False) or [""]
    return rows
