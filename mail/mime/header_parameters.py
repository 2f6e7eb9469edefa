"""Content-Type and Content-Disposition: value and parameters (RFC 2045, 2183, 2231)."""

import re
from urllib.parse import unquote_to_bytes

from mail.mime.charsets import decode_header_text
from mail.mime.encoded_words import decode_encoded_words_and_drop_controls

MAX_PARAMETER_BYTES = 64 << 10
_MAX_PARAMETERS = 1000

_PARAMETER = re.compile(
    r";\s*+(?:\((?:[^()\\]|\\.)*+\)\s*+)?([^\s=;\"()]++)\s*+=\s*+"
    r"(?:\"([^\"\\]*+(?:\\.[^\"\\]*+)*+)\"?|([^;]*+))",
    re.DOTALL,
)
_SPACE_AROUND_SLASH = re.compile(r"(?<!\s)\s*+/\s*+")
_ESCAPE = re.compile(r"\\(.)", re.DOTALL)
_SEGMENT = re.compile(r"([^*]+)\*(?:(\d{1,4})(\*?))?")
_MAIN_VALUE_EDGE = re.compile(r"[();\\]")
# Control characters, line separators, and characters that change the direction of text.
_INVISIBLE = re.compile(
    "[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]+"
)
_FILENAME_PARAMETERS = ("filename", "name")  # often contain spaces and brackets without quotes


def parse_value_and_parameters(value: str) -> tuple[str, dict[str, str]]:
    """Return the unfolded value's first word in lower case, and its decoded parameters.

    `name*` goes before `name*0`, which goes before `name`; the first of equal names counts.
    """
    main_value, semicolon, _ = value.partition(";")
    if "(" in main_value:
        main_value, parameters = _split_after_main_value(value)
        main_value = _SPACE_AROUND_SLASH.sub("/", main_value)
        semicolon, value = parameters[:1], main_value + parameters
    if "=" in main_value:  # the semicolon is missing
        main_value, *rest = value.split(None, 1)
        value = main_value + ";" + "".join(rest)
        semicolon = ";"
    main_value = main_value.strip().lower()
    if not semicolon:
        return main_value, {}
    values: dict[str, str] = {}
    extended: dict[str, dict[int, tuple[str, bool]]] = {}
    for count, match in enumerate(_PARAMETER.finditer(value, 0, MAX_PARAMETER_BYTES)):
        if count == _MAX_PARAMETERS:
            break
        name, text = match.group(1).lower(), _parameter_text(match)
        segment = _SEGMENT.fullmatch(name) if "*" in name else None
        if segment is None:
            values.setdefault(name, text)
            continue
        base, number, star = segment.groups()
        segment_number = -1 if number is None else int(number)
        segments = extended.setdefault(base, {})
        segments.setdefault(segment_number, (text, number is None or star == "*"))
    for base, segments in extended.items():
        values[base] = _join_segments(segments)
    return main_value, values


def first_filename(*candidates: str | None) -> str | None:
    """Return the first candidate that is a file name, with encoded words decoded.

    Encoded words are not allowed in parameters, but common. Returns None if there is no name.
    """
    for candidate in candidates:
        if candidate and (
            name := safe_filename_or_none(decode_encoded_words_and_drop_controls(candidate))
        ):
            return name
    return None


def safe_filename_or_none(text: str) -> str | None:
    """Return the last part of a path without control and bidirectional characters.

    Returns None if nothing is left.
    """
    levels = _INVISIBLE.sub("", text).replace("\\", "/").split("/")
    names = [name for level in levels if (name := level.strip()) not in ("", ".", "..")]
    return names[-1] if names else None


def _split_after_main_value(value: str) -> tuple[str, str]:
    """Split a value before its first semicolon outside of comments.

    In the first part, each comment is replaced by a space, also nested ones: it separates the
    tokens beside it (RFC 5322, section 3.2.2). A comment without end extends to the end.
    """
    out: list[str] = []
    depth = end = at = 0
    while edge := _MAIN_VALUE_EDGE.search(value, at):
        at = edge.end()
        character = edge.group()
        if character == "\\":
            at += 1
        elif character == "(":
            if depth == 0:
                out += [value[end : edge.start()], " "]
            depth += 1
        elif character == ")" and depth:
            depth -= 1
            end = at if depth == 0 else end
        elif character == ";" and depth == 0:
            return "".join([*out, value[end : edge.start()]]), value[edge.start() :]
    return "".join(out if depth else [*out, value[end:]]), ""


def _parameter_text(match: re.Match[str]) -> str:
    """Return the unquoted text of a matched parameter."""
    quoted, bare = match.group(2), match.group(3)
    if quoted is not None:
        return _ESCAPE.sub(r"\1", quoted) if "\\" in quoted else quoted
    bare = bare.strip()
    if match.group(1).lower().startswith(_FILENAME_PARAMETERS):
        return bare
    if match.group(1).lower() != "boundary":
        bare = bare.partition("(")[0]
    return (bare.split() or [""])[0]


def _join_segments(segments: dict[int, tuple[str, bool]]) -> str:
    """Join the segments of RFC 2231 as bytes and decode them.

    A character can be split between two segments.
    """
    if -1 in segments:
        segments = {0: segments[-1]}
    label = "utf-8"
    body = b""
    for index, number in enumerate(sorted(segments)):
        if index != number:
            break  # a segment is missing
        text, is_encoded = segments[number]
        if not is_encoded:
            body += text.encode()
            continue
        if number == 0 and text.count("'") > 1:
            label, _, text = text.split("'", 2)
        body += unquote_to_bytes(text)
    return decode_header_text(body, label or "utf-8")
