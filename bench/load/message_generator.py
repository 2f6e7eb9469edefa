"""Generator of messages for benchmarks and soak tests. The same seed gives the same bytes."""

import itertools
from base64 import encodebytes
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from random import Random

FIRST_DATE = datetime(2030, 1, 1, tzinfo=UTC)  # Date header of message 0
WORD_COUNT, PARAGRAPH_COUNT, PERSON_COUNT = 3000, 300, 60
CONSONANTS, VOWELS = "bdfghklmnprstvwz", "aeiou"


@dataclass
class MessageGenerator:
    """Generator of messages with the word frequencies of natural language."""

    seed: int = 1
    random: Random = field(init=False)
    paragraphs: list[str] = field(init=False)
    people: list[tuple[str, str]] = field(init=False)

    def __post_init__(self) -> None:
        self.random = Random(self.seed)  # noqa: S311 - nothing here is secret
        syllables = [first + second for first in CONSONANTS for second in VOWELS]
        words = ["".join(self.random.choices(syllables, k=2 + n % 3)) for n in range(WORD_COUNT)]
        summed_weights = list(itertools.accumulate(1 / (rank + 2) for rank in range(WORD_COUNT)))
        self.paragraphs = [
            self._make_paragraph(words, summed_weights) for _ in range(PARAGRAPH_COUNT)
        ]
        names = self.random.sample(words, PERSON_COUNT)
        self.people = [(f"{n.title()} {n[::-1].title()}", f"{n}@example.com") for n in names]

    def _make_paragraph(self, words: list[str], summed_weights: list[float]) -> str:
        rows = (
            " ".join(self.random.choices(words, cum_weights=summed_weights, k=10)) for _ in range(8)
        )
        return ".\r\n".join(row.capitalize() for row in rows)

    def make_text(self, size: int) -> str:
        """Return a text of at most `size` characters."""
        some, length = list[str](), 0
        while length < size:
            some.append(self.random.choice(self.paragraphs))
            length += len(some[-1])
        return "\r\n\r\n".join(some)[:size]

    def make_message(
        self, number: int, *, size: int = 2000, subject: str = "", attachment: bytes = b""
    ) -> bytes:
        """Return a unique message with text and HTML of about `size` bytes, and an attachment."""
        name, address = self.people[number % PERSON_COUNT]
        subject = subject or f"{self.make_text(40).partition('.')[0]} {number}"
        half = self.make_text(max(size // 2 - 500, 40))
        mark = f"{self.seed}.{number}.{self.random.getrandbits(64):x}"
        head = (
            f"From: {name} <{address}>\r\n"
            f"To: Ada Duck <ada@bench.example>, {self.people[-1][0]} <{self.people[-1][1]}>\r\n"
            f"Subject: {subject}\r\n"
            f"Date: {format_datetime(FIRST_DATE + timedelta(minutes=number))}\r\n"
            f"Message-ID: <{mark}@example.com>\r\n"
            "MIME-Version: 1.0\r\n"
        )
        body = _alternative_part(f"Message {mark}.\r\n\r\n{half}\r\n")
        if attachment:
            body = _mixed_part(body, attachment, f"file-{number}.bin")
        return (head + body).encode()


def endless_messages(size: int) -> Iterator[bytes]:
    """Yield different messages of about this many bytes, always the same ones."""
    writer = MessageGenerator(seed=size)
    return (writer.make_message(number, size=size) for number in itertools.count())


def _alternative_part(text: str) -> str:
    """Return a multipart/alternative body with the text as plain text and HTML."""
    html = "".join(f"<p>{part}</p>\r\n" for part in text.split("\r\n\r\n"))
    return (
        'Content-Type: multipart/alternative; boundary="alt"\r\n\r\n'
        f"--alt\r\nContent-Type: text/plain; charset=utf-8\r\n\r\n{text}\r\n"
        f"--alt\r\nContent-Type: text/html; charset=utf-8\r\n\r\n<html><body>{html}</body></html>"
        "\r\n--alt--\r\n"
    )


def _mixed_part(body: str, attachment: bytes, filename: str) -> str:
    """Return a multipart/mixed body with an attachment."""
    encoded = encodebytes(attachment).decode().replace("\n", "\r\n")
    return (
        f'Content-Type: multipart/mixed; boundary="mix"\r\n\r\n--mix\r\n{body}'
        "\r\n--mix\r\nContent-Type: application/octet-stream\r\n"
        "Content-Transfer-Encoding: base64\r\n"
        f'Content-Disposition: attachment; filename="{filename}"\r\n\r\n{encoded}\r\n--mix--\r\n'
    )
