"""From bytes to text: what a charset label means in practice, and what to do when it lies."""

import codecs
import re
from encodings.aliases import aliases
from functools import lru_cache

_LONGEST_NAME = 64
_SAMPLE = 1024  # bytes in which a charset of an unlabelled text is looked for

# Labels are read as the larger sets that senders mean by them.
_MEANT = {
    "latin_1": "cp1252",
    "iso8859_1": "cp1252",
    "iso8859_9": "cp1254",
    "iso8859_11": "cp874",
    "tis_620": "cp874",
    "gb2312": "gb18030",
    "gbk": "gb18030",
    "shift_jis": "cp932",
    "euc_kr": "cp949",
    "big5": "big5hkscs",
}
_ALSO = {
    "x_sjis": "cp932",
    "windows_31j": "cp932",
    "ks_c_5601_1987": "cp949",
    "ks_c_5601": "cp949",
    "x_windows_949": "cp949",
    "windows_874": "cp874",
    "x_gbk": "gb18030",
    "gb_2312_80": "gb18030",
    "x_big5": "big5hkscs",
    "big_5": "big5hkscs",
    "cn_gb": "gb18030",
    "cn_big5": "big5hkscs",
    "x_mac_roman": "mac_roman",
    "x_macroman": "mac_roman",
    "macintosh": "mac_roman",
    "x_mac_cyrillic": "mac_cyrillic",
    "unicode_1_1_utf_7": "utf_7",
    "utf8mb4": "utf_8",
    "unicode_1_1_utf_8": "utf_8",
    "x_unknown": "",
    "unknown": "",
    "unknown_8bit": "",
    "8bit": "",
    "none": "",
    "default": "",
}
# No charsets of mail: some take quadratic time, some are not for text at all.
_NEVER = {"idna", "punycode", "undefined", "mbcs", "oem", "unicode_escape", "raw_unicode_escape"}
_KNOWN = frozenset(aliases) | frozenset(aliases.values())
_PLAIN = frozenset({"ascii", "", "utf_8", "utf_8_sig"})  # these begin with UTF-8 anyway
_ODD = re.compile(r"[^a-z0-9]+")
_META = re.compile(
    rb"""<meta[^>]{0,200}?charset\s{0,9}=\s{0,9}["']?([\w.:-]{1,40})""", re.IGNORECASE
)
_SURROGATE = re.compile("[\ud800-\udfff]")
_ISO_2022 = re.compile(rb"\x1b\$[@B]|\x1b\([BJI]")


@lru_cache(maxsize=512)
def codec(label: str) -> str:
    """Name the codec that a charset label means, "" for none that we know.

    Only names from Python's own list are looked up: the machinery remembers every name it
    was ever asked for, and here strangers do the asking.
    """
    name = _ODD.sub("_", label.strip().strip("\"'").lower()[:_LONGEST_NAME]).strip("_")
    if name in _ALSO:
        return _ALSO[name]
    if name not in _KNOWN:
        name = re.sub(r"^(?:x|cs)_?", "", name)
        name = re.sub(r"^(?:windows|cp|ibm|ccsid)_?0*(?=\d)", "cp", name)
    if name in _NEVER or name not in _KNOWN:
        return ""
    name = aliases.get(name, name)
    found = codecs.lookup(name)
    return _MEANT.get(name, name) if found._is_text_encoding else ""  # noqa: SLF001


def decode(body: bytes, label: str | None) -> str:
    """Decode by the label if it fits, else as UTF-8, else as windows-1252. Never raises."""
    if body.isascii() and b"\x1b" not in body and b"+" not in body and b"~" not in body:
        name = codec(label) if label else ""
        if not name.startswith(("utf_16", "utf_32")):
            return body.decode("ascii")
    else:
        name = codec(label) if label else ("iso2022_jp" if _ISO_2022.search(body) else "")
    if name not in _PLAIN:
        text = _strictly(body, name)
        if text is not None:
            return text
    return _whatever(body, name)


def declared(body: bytes) -> str | None:
    """Look for the charset that an HTML page names itself."""
    found = _META.search(body[:_SAMPLE])
    return found.group(1).decode("ascii", "replace") if found else None


def _strictly(body: bytes, name: str) -> str | None:
    try:
        text = body.decode(name)
    except (ValueError, LookupError, AssertionError):  # AssertionError: some East Asian codecs
        return None
    if name == "utf_7":
        return _SURROGATE.sub("\ufffd", text)  # it lets halves of pairs through
    return text


def _whatever(body: bytes, name: str) -> str:
    text = _strictly(body, "utf_8_sig")
    if text is not None:
        return text
    if name not in ("", "ascii") and not name.startswith("cp125"):
        text = body.decode(name, "replace")
        if text.count("\ufffd") * 20 <= len(text):  # one broken letter spoils not the rest
            return text
    return body.decode("cp1252", "replace")
