"""State of a message in header fields that other programs add when they write it to a file.

mbox files of mutt, Pine and Dovecot have `Status`, `X-Status` and `X-Keywords`. Thunderbird writes
`X-Mozilla-Status` and `X-Mozilla-Keys`, and Google Takeout `X-Gmail-Labels`. Values that can't be
read are ignored.
"""

import csv
import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime

from mail.archives.gmail_label_names import (
    CATEGORY_WORDS,
    IMPORTANT_NAMES,
    SPECIAL_USE_BY_LABEL,
    STARRED_NAMES,
    STATE_NAMES,
    UNREAD_NAMES,
)
from mail.archives.source_message import INBOX, SourceMessage
from mail.mailboxes import paths
from mail.mailboxes.special_use_names import ENGLISH_NAMES, NAMED_USES
from mail.mime.encoded_words import decode_encoded_words_and_drop_controls, unfold_and_decode_utf8
from mail.mime.header_fields import MAX_HEADER_BYTES
from mail.text import confusables
from mail.text.storable_text import make_storable
from models.mailboxes.tables import SpecialUse

MAX_VALUE_BYTES = 1 << 16  # of a field; longer ones are ignored
MAX_KEYWORDS = 50  # of a message; a message here has at most 64
MAX_KEYWORD_LENGTH = 128  # characters
MAX_LABEL_LEVELS = 20  # of a label that becomes a mailbox

_STATE_FIELD = re.compile(
    rb"^(Status|X-Status|X-Keywords|X-Mozilla-Status|X-Mozilla-Keys|X-Gmail-Labels)[ \t]*:"
    rb"([^\n]*+(?:\n[ \t][^\n]*+)*+)",
    re.IGNORECASE | re.MULTILINE,
)
_HEADER_END = re.compile(rb"\n\r?\n")
_STATUS_LETTERS = re.compile(r"[RONUADFT]{0,8}")  # others have another meaning
_MBOX_STATUS_FLAGS = {
    "R": "\\Seen",
    "F": "\\Flagged",
    "A": "\\Answered",
    "T": "\\Draft",
    "D": "\\Deleted",
}
_MOZILLA_STATUS = re.compile(r"(?:0x)?([0-9A-Fa-f]{1,8})")
_MOZILLA_FLAGS = {
    0x0001: "\\Seen",
    0x0002: "\\Answered",
    0x0004: "\\Flagged",
    0x0008: "\\Deleted",  # Thunderbird removes the message when it compacts the file
    0x1000: "$Forwarded",
}
_NOT_IN_KEYWORD = re.compile(r'[\x00-\x20\x7f-\xa0(){%*"\\\]]+')
_GMAIL_USES_BY_PRIORITY = (
    SpecialUse.TRASH,
    SpecialUse.JUNK,
    SpecialUse.DRAFTS,
    SpecialUse.INBOX,
    SpecialUse.SENT,
)
_FOLDER_NAMES = {  # if the account has no mailbox with this special use
    SpecialUse.INBOX: INBOX,
    SpecialUse.ARCHIVE: "Archive",
    **dict(zip(NAMED_USES, ENGLISH_NAMES, strict=True)),
}


@dataclass(frozen=True, slots=True)
class _GmailLabels:
    """The labels of a message, sorted by what they mean."""

    flags: Sequence[str]
    uses: frozenset[SpecialUse]
    own: Sequence[str]  # labels that the user created


def with_message_and_state(
    source_message: SourceMessage, raw: bytes, received_at: datetime | None
) -> SourceMessage:
    """Return the item with its message, and with the flags and the mailbox of its state fields."""
    fields = _state_fields(raw)
    if not fields:
        return source_message.with_message(raw, received_at=received_at)
    labels = _gmail_labels_or_none(fields.get("x-gmail-labels", ()))
    flags = [*_status_flags(fields), *_mozilla_flags(fields)]
    keyword_texts = [
        word
        for name in ("x-keywords", "x-mozilla-keys")
        for value in fields.get(name, ())
        for word in _decode(value).replace(",", " ").split()
    ]
    changed = replace(source_message, raw=raw, received_at=received_at)
    if labels is not None:
        flags += labels.flags
        changed, remaining_labels = _with_gmail_mailbox(changed, labels)
        keyword_texts += remaining_labels
    return replace(changed, flags=list(dict.fromkeys([*flags, *_keywords(keyword_texts)])))


def _state_fields(raw: bytes) -> dict[str, list[bytes]]:
    """Return the values of the state fields of a message, by name in lower case."""
    header_end = _HEADER_END.search(raw, 0, MAX_HEADER_BYTES)
    fields: dict[str, list[bytes]] = {}
    for name, value in _STATE_FIELD.findall(raw[: header_end.start() if header_end else 1 << 16]):
        if len(value) <= MAX_VALUE_BYTES:
            fields.setdefault(name.decode().lower(), []).append(value)
    return fields


def _decode(value: bytes) -> str:
    """Decode a field value with encoded words."""
    text = unfold_and_decode_utf8(value.decode("latin-1"))
    storable_text: str = make_storable(decode_encoded_words_and_drop_controls(text))
    return storable_text


def _status_flags(fields: Mapping[str, Sequence[bytes]]) -> list[str]:
    """Return the flags of `Status` and `X-Status`: capital letters, as in `RO` and `AF`."""
    values = [value for name in ("status", "x-status") for value in fields.get(name, ())]
    texts = [value.decode("latin-1").strip() for value in values]
    letters = "".join(text for text in texts if _STATUS_LETTERS.fullmatch(text))
    return [flag for character, flag in _MBOX_STATUS_FLAGS.items() if character in letters]


def _mozilla_flags(fields: Mapping[str, Sequence[bytes]]) -> list[str]:
    """Return the flags of `X-Mozilla-Status`, a hexadecimal number."""
    bits = 0
    for value in fields.get("x-mozilla-status", ()):
        number = _MOZILLA_STATUS.fullmatch(value.decode("latin-1").strip())
        bits |= int(number[1], 16) if number else 0
    return [flag for bit, flag in _MOZILLA_FLAGS.items() if bits & bit]


def _keywords(texts: Iterable[str]) -> list[str]:
    """Return texts as IMAP keywords: characters that are not allowed are replaced by `_`."""
    keywords = (
        _NOT_IN_KEYWORD.sub("_", unicodedata.normalize("NFC", text)).strip("_")[:MAX_KEYWORD_LENGTH]
        for text in texts
    )
    return list(dict.fromkeys(word for word in keywords if word))[:MAX_KEYWORDS]


def _gmail_labels_or_none(values: Sequence[bytes]) -> _GmailLabels | None:
    """Return the labels of `X-Gmail-Labels`, None if the message has none.

    A message without the label "Unread" is seen.
    """
    names = [name for value in values for name in _split_labels(_decode(value))]
    if not names:
        return None
    folded_names = {unicodedata.normalize("NFC", name).casefold(): name for name in names}
    uses = frozenset(use for key in folded_names if (use := SPECIAL_USE_BY_LABEL.get(key)))
    flags = [] if UNREAD_NAMES & folded_names.keys() else ["\\Seen"]
    flags += ["\\Flagged"] if STARRED_NAMES & folded_names.keys() else []
    flags += ["\\Draft"] if SpecialUse.DRAFTS in uses else []
    flags += ["$Important"] if IMPORTANT_NAMES & folded_names.keys() else []
    known_names = UNREAD_NAMES | STARRED_NAMES | IMPORTANT_NAMES | STATE_NAMES
    own = [
        name
        for key, name in folded_names.items()
        if key not in known_names and key not in SPECIAL_USE_BY_LABEL
    ]
    return _GmailLabels(flags, uses, own)


def _split_labels(text: str) -> Iterator[str]:
    """Yield the labels of a list separated by commas. Labels with a comma are in quotes."""
    if text.count('"') % 2:  # a quotation mark is missing
        text = text.replace('"', "")
    try:
        for row in csv.reader([text], skipinitialspace=True):
            yield from (label for part in row if (label := " ".join(part.split())))
    except csv.Error:
        return


def _with_gmail_mailbox(
    source_message: SourceMessage, labels: _GmailLabels
) -> tuple[SourceMessage, Sequence[str]]:
    """Return the message with its mailbox, and the labels that are not the mailbox.

    A message stays in the mailbox of its file if the file is named after one of its labels.
    """
    folder = paths.canonical_path(source_message.folder)
    file_use = SPECIAL_USE_BY_LABEL.get(folder.casefold())
    if any(folder == paths.canonical_path(label) for label in labels.own):
        return source_message, [own for own in labels.own if paths.canonical_path(own) != folder]
    uses = [use for use in (file_use, *_GMAIL_USES_BY_PRIORITY) if use in labels.uses]
    use = uses[0] if uses else None
    if use is None:
        for label in labels.own:
            if _can_be_mailbox(label):
                other_labels = [other for other in labels.own if other != label]
                return replace(source_message, folder=label), other_labels
        use = SpecialUse.ARCHIVE
    return replace(source_message, folder=_FOLDER_NAMES[use], special_use=use), labels.own


def _can_be_mailbox(label: str) -> bool:
    """True if a label is no category of Gmail, and a mailbox can have its name."""
    levels = paths.canonical_path(label).split("/")
    return (
        not label.casefold().startswith(CATEGORY_WORDS)
        and len(levels) <= MAX_LABEL_LEVELS
        and all(
            level.strip()
            and level.isprintable()
            and len(level) <= paths.MAX_LEVEL_LENGTH
            and not confusables.is_confusable_with(level, paths.SPECIAL_USE_NAMES)
            for level in levels
        )
    )
