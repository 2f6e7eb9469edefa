"""Decoding of text by its charset label, also if the label is wrong or missing."""

import codecs
import encodings
import pkgutil
import re
from encodings.aliases import aliases
from functools import lru_cache

_MAX_LABEL_LENGTH = 64
_META_SEARCH_BYTES = 1024  # bytes of HTML in which a charset declaration is searched

# Senders label text with the smaller charset and use characters of the larger one.
_SUPERSET_CODECS = {
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
_EXTRA_LABELS = {
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
    "unicode11utf8": "utf_8",
    "unicode20utf8": "utf_8",
    "x_unicode20utf8": "utf_8",
    "unicode": "utf_16",
    "ucs_2": "utf_16",
    "iso_10646_ucs_2": "utf_16",
    "csunicode": "utf_16",
    "unicodefeff": "utf_16_le",
    "unicodefffe": "utf_16_be",
    "koi": "koi8_r",
    "koi8": "koi8_r",
    "koi8_ru": "koi8_u",
    "dos_874": "cp874",
    "csiso88596e": "iso8859_6",
    "csiso88596i": "iso8859_6",
    "iso_8859_6_e": "iso8859_6",
    "iso_8859_6_i": "iso8859_6",
    "csiso88598e": "iso8859_8",
    "csiso88598i": "iso8859_8",
    "iso_8859_8_e": "iso8859_8",
    "iso_8859_8_i": "iso8859_8",
    "logical": "iso8859_8",
    "visual": "iso8859_8",
    "sun_eu_greek": "iso8859_7",
    "csisolatin9": "iso8859_15",
    "l9": "iso8859_15",
    "mac": "mac_roman",
    "csmacintosh": "mac_roman",
    "x_mac_ukrainian": "mac_cyrillic",
    "x_mac_ce": "mac_latin2",
    "gb_2312": "gb18030",
    "csgb2312": "gb18030",
    "x_x_big5": "big5hkscs",
    "cseucpkdfmtjapanese": "euc_jp",
    "ks_c_5601_1989": "cp949",
    "ksc5601": "cp949",
    "ksc_5601": "cp949",
    "cshproman8": "hp_roman8",
    "csksc56011987": "cp949",
    "iso_ir_149": "cp949",
    "x_unknown": "",
    "unknown": "",
    "unknown_8bit": "",
    "8bit": "",
    "none": "",
    "default": "",
}
# Codecs that are not charsets of mail. Some take quadratic time.
_REFUSED_CODECS = {
    *("idna", "punycode", "undefined", "charmap", "mbcs", "oem"),
    *("unicode_escape", "raw_unicode_escape"),
}
# The alias table omits codecs that have no other name, such as koi8_u.
_CODECS = frozenset(module.name for module in pkgutil.iter_modules(encodings.__path__)) - {
    "aliases"
}
_KNOWN_NAMES = frozenset(aliases) | frozenset(aliases.values()) | _CODECS
_UTF8_TRIED_FIRST = frozenset({"ascii", "", "utf_8", "utf_8_sig"})  # decoded as UTF-8 first
_LABEL_SEPARATORS = re.compile(r"[^a-z0-9]+")
_META = re.compile(
    rb"""<meta[^>]{0,200}?charset\s{0,9}=\s{0,9}["']?([\w.:-]{1,40})""", re.IGNORECASE
)
_SURROGATE = re.compile("[\ud800-\udfff]")
_UNMARKED_ISO = re.compile(r"iso_?8859_?(\d{1,2})")
_ASCII = bytes(set(range(128)) - set(b"\x0e\x0f\x1b+~")).decode()  # without shift characters
_ISO_2022 = re.compile(rb"\x1b\$[@B]|\x1b\([BJI]")


@lru_cache(maxsize=512)
def codec_name_or_empty(label: str) -> str:
    """Return the Python codec name of a charset label, "" for an unknown label.

    Accepts the labels of all text codecs of Python except refused ones, and of the WHATWG Encoding
    Standard. Looks up known names only, since `codecs` caches every name.
    """
    name = _LABEL_SEPARATORS.sub("_", label.strip().strip("\"'").lower()[:_MAX_LABEL_LENGTH]).strip(
        "_"
    )
    if name in _EXTRA_LABELS:
        return _EXTRA_LABELS[name]
    if name not in _KNOWN_NAMES:
        name = re.sub(r"^(?:x|cs)_?", "", name)
        name = re.sub(r"^(?:windows|cp|ibm|ccsid)_?0*(?=\d)", "cp", name)
        name = _UNMARKED_ISO.sub(r"iso8859_\1", name)
        name = _EXTRA_LABELS.get(name, name)
    if name in _REFUSED_CODECS or name not in _KNOWN_NAMES:
        return ""
    name = aliases.get(name, name)
    codec = codecs.lookup(name)
    return _SUPERSET_CODECS.get(name, name) if codec._is_text_encoding else ""  # noqa: SLF001


def decode_text(data: bytes, charset: str | None) -> str:
    """Decode the text of a body part without its byte order mark. Never raises.

    Decodes by the charset label if it fits, else as UTF-8, else as windows-1252.
    """
    return _decode_by_charset_or_fallback(data, charset, "utf_8_sig")


def decode_header_text(data: bytes, charset: str | None) -> str:
    """Decode the text of a header field as `decode_text` does, but keep a leading U+FEFF.

    In a protocol element that has a charset label, U+FEFF is a character (RFC 3629, section 6).
    """
    return _decode_by_charset_or_fallback(data, charset, "utf_8")


def _decode_by_charset_or_fallback(data: bytes, charset: str | None, utf8_codec: str) -> str:
    """Decode by the charset label if it fits, else as UTF-8, else as windows-1252."""
    if data.isascii() and b"\x1b" not in data and b"+" not in data and b"~" not in data:
        name = codec_name_or_empty(charset) if charset else ""
        if not name or _is_ascii_compatible(name):
            return data.decode("ascii")
    else:
        name = (
            codec_name_or_empty(charset)
            if charset
            else ("iso2022_jp" if _ISO_2022.search(data) else "")
        )
    if name not in _UTF8_TRIED_FIRST:
        text = _decode_strictly_or_none(data, name)
        if text is not None:
            return text
    return _decode_leniently(data, name, utf8_codec)


@lru_cache(maxsize=256)
def _is_ascii_compatible(codec: str) -> bool:
    """True if the codec decodes ASCII bytes to the same characters."""
    try:
        return _ASCII.encode().decode(codec) == _ASCII
    except UnicodeDecodeError:
        return False


def declared_html_charset_or_none(html: bytes) -> str | None:
    """Return the charset label of a meta element of an HTML page, None if there is none."""
    match = _META.search(html[:_META_SEARCH_BYTES])
    return match.group(1).decode("ascii", "replace") if match else None


def _decode_strictly_or_none(data: bytes, codec: str) -> str | None:
    """Decode with a codec. Returns None if a byte is invalid."""
    try:
        text = data.decode(codec)
    except (ValueError, LookupError, AssertionError):  # AssertionError: some East Asian codecs
        return None
    if codec == "utf_7":
        return _SURROGATE.sub("\ufffd", text)  # the codec accepts single surrogates
    return text


def _decode_leniently(data: bytes, codec: str, utf8_codec: str) -> str:
    """Decode as UTF-8, else by the codec with few replacements, else as windows-1252."""
    text = _decode_strictly_or_none(data, "utf_8_sig" if codec == "utf_8_sig" else utf8_codec)
    if text is not None:
        return text
    if codec == "utf_8":
        codec = utf8_codec
    if codec not in ("", "ascii") and not codec.startswith("cp125"):
        text = data.decode(codec, "replace")
        if text.count("\ufffd") * 20 <= len(text):  # a few invalid characters are tolerated
            return text
    return data.decode("cp1252", "replace")
