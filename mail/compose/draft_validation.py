"""Validation of the fields of a draft."""

from collections.abc import Sequence

from mail.addresses.address_syntax import normalize_and_validate_address
from mail.compose.message_draft import (
    CONTROL_CHARACTERS,
    FIELD_NAME_PATTERN,
    MAX_CUSTOM_HEADERS,
    MAX_HEADER_VALUE_BYTES,
    MAX_NAME_BYTES,
    RESERVED_FIELDS,
    RESERVED_PREFIXES,
    CustomHeader,
    MessageDraft,
)
from mail.mime.header_encoding import NamedAddress
from models.errors import ErrorCollector, InvalidInput
from models.validation_constraints import ValidationConstraint


def collect_valid_addresses_by_field(
    draft: MessageDraft, problems: ErrorCollector
) -> dict[str, list[NamedAddress]]:
    """Return the valid addresses of each address field; problems are collected."""
    addresses_by_field = {
        "From": [draft.from_],
        "Sender": [draft.sender] if draft.sender else [],
        "Reply-To": draft.reply_to,
        "To": draft.to,
        "Cc": draft.cc,
        "Bcc": draft.bcc,
    }
    addresses: dict[str, list[NamedAddress]] = {}
    for key, people in addresses_by_field.items():
        path = "replyTo" if key == "Reply-To" else key.lower()
        is_single = key in {"From", "Sender"}
        with problems.collecting():
            addresses[key] = [
                _validated_address(person, path, None if is_single else nth)
                for nth, person in enumerate(people)
            ]
    return addresses


def _validated_address(
    named_address: NamedAddress, path: str, index: int | None = None
) -> NamedAddress:
    name = validate_single_line_text(named_address.name or "", [path], MAX_NAME_BYTES)
    return NamedAddress(
        normalize_and_validate_address_with_index(named_address.address, path, index), name or None
    )


def normalize_and_validate_address_with_index(
    text: str, path: str, index: int | None = None
) -> str:
    """Return the address unchanged, if it is valid.

    Raises InvalidInput with `path` and `index` if the address is invalid.
    """
    try:
        return normalize_and_validate_address(text, path=path, allows_quotes=True)
    except InvalidInput as wrong:
        raise InvalidInput(
            wrong.message, constraint=wrong.constraint, path=[path], index=index
        ) from wrong


def validate_text_size_and_characters(text: str, path: Sequence[str], max_bytes: int) -> str:
    """Return the text, unless it is invalid.

    Raises InvalidInput if it has more than `max_bytes` bytes, a NUL or a lone surrogate.
    """
    try:
        size = len(text.encode())
    except UnicodeEncodeError as half:
        raise InvalidInput(
            "The text must not contain unpaired surrogates.",
            constraint=ValidationConstraint.UNICODE,
            path=path,
        ) from half
    if size > max_bytes:
        raise InvalidInput(
            f"The text has at most {max_bytes} bytes.",
            constraint=ValidationConstraint.MAX,
            path=path,
        )
    if "\0" in text:
        raise InvalidInput(
            "The text must not contain NUL.", constraint=ValidationConstraint.PATTERN, path=path
        )
    return text


def validate_single_line_text(text: str, path: Sequence[str], max_bytes: int) -> str:
    """Return the text, unless it is invalid or has more than one line.

    Raises InvalidInput as `validate_text_size_and_characters` does, and for control characters.
    """
    if CONTROL_CHARACTERS.search(text):
        raise InvalidInput(
            "The text must be one line without control characters.",
            constraint=ValidationConstraint.PATTERN,
            path=path,
        )
    return validate_text_size_and_characters(text, path, max_bytes)


def collect_custom_header_problems(
    headers: Sequence[CustomHeader], problems: ErrorCollector
) -> None:
    """Collect the problems of the header fields that the client adds."""
    with problems.collecting():
        if len(headers) > MAX_CUSTOM_HEADERS:
            raise InvalidInput(
                f"A message has at most {MAX_CUSTOM_HEADERS} custom header fields.",
                constraint=ValidationConstraint.MAX,
                path=["headers"],
            )
        for nth, header in enumerate(headers):
            with problems.collecting():
                _require_usable_field_name(header.name, _header_path(nth, "name"))
            with problems.collecting():
                validate_single_line_text(
                    header.value, _header_path(nth, "value"), MAX_HEADER_VALUE_BYTES
                )


def is_valid_custom_header(name: str, value: str) -> bool:
    """True if a client can add a header field with this name and value."""
    try:
        _require_usable_field_name(name, [])
        validate_single_line_text(value, [], MAX_HEADER_VALUE_BYTES)
    except InvalidInput:
        return False
    return True


def without_control_characters(text: str) -> str:
    """Return the text without the characters that a line can't have."""
    return CONTROL_CHARACTERS.sub("", text)


def _require_usable_field_name(key: str, path: Sequence[str]) -> None:
    """Raises InvalidInput if a header field name is invalid or reserved."""
    if len(key) > MAX_NAME_BYTES or not FIELD_NAME_PATTERN.fullmatch(key):
        raise InvalidInput(
            "Not a name of a header field.", constraint=ValidationConstraint.PATTERN, path=path
        )
    if key.lower() in RESERVED_FIELDS or key.lower().startswith(RESERVED_PREFIXES):
        raise InvalidInput(
            f"The header field {key} can't be set.",
            constraint=ValidationConstraint.RESERVED,
            path=path,
        )


def _header_path(index: int, name: str) -> list[str]:
    return ["headers", str(index), name]
