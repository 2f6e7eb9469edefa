"""Charset labels of Python's text codecs and of the WHATWG Encoding Standard."""

import base64
import encodings
from urllib.parse import quote_from_bytes

import pytest

from mail.mime import body_text, facts_from_message_bytes, parse_structure
from tests.support.mail.charset_samples import CHARSET_CODECS, text_in_codec

WHATWG_LABELS = {  # https://encoding.spec.whatwg.org/#names-and-labels, by Python codec
    "utf_8": "unicode-1-1-utf-8 unicode11utf8 unicode20utf8 utf-8 utf8 x-unicode20utf8",
    "cp866": "866 cp866 csibm866 ibm866",
    "iso8859_2": "csisolatin2 iso-8859-2 iso-ir-101 iso8859-2 iso88592 iso_8859-2"
    " iso_8859-2:1987 l2 latin2",
    "iso8859_3": "csisolatin3 iso-8859-3 iso-ir-109 iso8859-3 iso88593 iso_8859-3"
    " iso_8859-3:1988 l3 latin3",
    "iso8859_4": "csisolatin4 iso-8859-4 iso-ir-110 iso8859-4 iso88594 iso_8859-4"
    " iso_8859-4:1988 l4 latin4",
    "iso8859_5": "csisolatincyrillic cyrillic iso-8859-5 iso-ir-144 iso8859-5 iso88595"
    " iso_8859-5 iso_8859-5:1988",
    "iso8859_6": "arabic asmo-708 csiso88596e csiso88596i csisolatinarabic ecma-114 iso-8859-6"
    " iso-8859-6-e iso-8859-6-i iso-ir-127 iso8859-6 iso88596 iso_8859-6 iso_8859-6:1987",
    "iso8859_7": "csisolatingreek ecma-118 elot_928 greek greek8 iso-8859-7 iso-ir-126 iso8859-7"
    " iso88597 iso_8859-7 iso_8859-7:1987 sun_eu_greek",
    "iso8859_8": "csiso88598e csisolatinhebrew hebrew iso-8859-8 iso-8859-8-e iso-ir-138 iso8859-8"
    " iso88598 iso_8859-8 iso_8859-8:1988 visual csiso88598i iso-8859-8-i logical",
    "iso8859_10": "csisolatin6 iso-8859-10 iso-ir-157 iso8859-10 iso885910 l6 latin6",
    "iso8859_13": "iso-8859-13 iso8859-13 iso885913",
    "iso8859_14": "iso-8859-14 iso8859-14 iso885914",
    "iso8859_15": "csisolatin9 iso-8859-15 iso8859-15 iso885915 iso_8859-15 l9",
    "iso8859_16": "iso-8859-16",
    "koi8_r": "cskoi8r koi koi8 koi8-r koi8_r",
    "koi8_u": "koi8-ru koi8-u",
    "mac_roman": "csmacintosh mac macintosh x-mac-roman",
    "cp874": "dos-874 iso-8859-11 iso8859-11 iso885911 tis-620 windows-874",
    "cp1250": "cp1250 windows-1250 x-cp1250",
    "cp1251": "cp1251 windows-1251 x-cp1251",
    "cp1252": "ansi_x3.4-1968 ascii cp1252 cp819 csisolatin1 ibm819 iso-8859-1 iso-ir-100 iso8859-1"
    " iso88591 iso_8859-1 iso_8859-1:1987 l1 latin1 us-ascii windows-1252 x-cp1252",
    "cp1253": "cp1253 windows-1253 x-cp1253",
    "cp1254": "cp1254 csisolatin5 iso-8859-9 iso-ir-148 iso8859-9 iso88599 iso_8859-9"
    " iso_8859-9:1989 l5 latin5 windows-1254 x-cp1254",
    "cp1255": "cp1255 windows-1255 x-cp1255",
    "cp1256": "cp1256 windows-1256 x-cp1256",
    "cp1257": "cp1257 windows-1257 x-cp1257",
    "cp1258": "cp1258 windows-1258 x-cp1258",
    "mac_cyrillic": "x-mac-cyrillic x-mac-ukrainian",
    "gbk": "chinese csgb2312 csiso58gb231280 gb2312 gb_2312 gb_2312-80 gbk iso-ir-58 x-gbk",
    "gb18030": "gb18030",
    "big5": "big5 big5-hkscs cn-big5 csbig5 x-x-big5",
    "euc_jp": "cseucpkdfmtjapanese euc-jp x-euc-jp",
    "iso2022_jp": "csiso2022jp iso-2022-jp",
    "cp932": "csshiftjis ms932 ms_kanji shift-jis shift_jis sjis windows-31j x-sjis",
    "cp949": "cseuckr csksc56011987 euc-kr iso-ir-149 korean ks_c_5601-1987 ks_c_5601-1989 ksc5601"
    " ksc_5601 windows-949",
    "utf_16_be": "unicodefffe utf-16be",
    "utf_16_le": "csunicode iso-10646-ucs-2 ucs-2 unicode unicodefeff utf-16 utf-16le",
}
LABELS_WITH_CODEC = [
    (label, name) for name, labels in WHATWG_LABELS.items() for label in labels.split()
]


def decode_in_each_place(label: str, codec: str, text: str) -> set[str | None]:
    """Return the texts decoded from subjects, a body and a file name with this charset label."""
    body = text.encode(codec)
    q_word = "".join(f"={byte:02X}" for byte in body)
    head = f"Subject: =?{label}?B?{base64.b64encode(body).decode()}?=\r\n".encode()
    filename = f"{label}''{quote_from_bytes(body, safe='')}"
    raw = (
        head
        + f"X-Other: =?{label.upper()}?Q?{q_word}?=\r\n".encode()
        + b"Content-Type: multipart/mixed; boundary=x\r\n\r\n--x\r\n"
        + f'Content-Type: text/plain; charset="{label}"\r\n'.encode()
        + b"Content-Transfer-Encoding: base64\r\n\r\n"
        + base64.encodebytes(body)
        + b"\r\n--x\r\nContent-Type: application/pdf\r\n"
        + f"Content-Disposition: attachment; filename*={filename}\r\n\r\nx\r\n--x--\r\n".encode()
    )
    facts = facts_from_message_bytes(raw)
    (attachment,) = facts.attachments
    subject_after_bracket = facts_from_message_bytes(
        head.replace(b"Subject: ", b"Subject: (") + b"\r\n"
    ).subject.removeprefix("(")
    q_subject = facts_from_message_bytes(
        f"Subject: =?{label}?q?{q_word}?=\r\n\r\n".encode()
    ).subject
    return {
        facts.subject,
        subject_after_bracket,
        q_subject,
        body_text(raw, parse_structure(raw)),
        attachment.filename,
    }


def test_whatwg_standard_has_221_labels() -> None:
    assert len(LABELS_WITH_CODEC) == len(dict(LABELS_WITH_CODEC)) == 221


@pytest.mark.parametrize("codec", CHARSET_CODECS)
def test_python_codec_name_is_decoded(codec: str) -> None:
    text = text_in_codec(codec)
    assert len(text) > 4
    for label in {codec, codec.replace("_", "-"), codec.upper()}:
        assert decode_in_each_place(label, codec, text) == {text}, label


@pytest.mark.parametrize("alias", sorted(encodings.aliases.aliases))
def test_python_codec_alias_is_decoded(alias: str) -> None:
    codec = encodings.aliases.aliases[alias]
    if codec in CHARSET_CODECS:
        text = text_in_codec(codec)
        assert decode_in_each_place(alias.replace("_", "-"), codec, text) == {text}


@pytest.mark.parametrize(("label", "codec"), LABELS_WITH_CODEC)
def test_whatwg_label_is_decoded(label: str, codec: str) -> None:
    text = text_in_codec(codec)
    assert len(text) > 4
    for spelling in {label, label.upper()}:
        assert decode_in_each_place(spelling, codec, text) == {text}, spelling


@pytest.mark.parametrize("name", ["idna", "punycode", "unicode-escape", "raw-unicode-escape",
                                  "undefined", "charmap", "rot-13", "hex", "base64", "zlib", "uu",
                                  "quopri", "bz2", "aliases"])  # fmt: skip
def test_python_codec_without_charset_is_not_used(name: str) -> None:
    for text in ("xn--bcher-kva", r"\u00fc", "uryyb", "6869", "Ã¼"):
        body = text.encode()
        subject = f"Subject: =?{name}?B?{base64.b64encode(body).decode()}?=\r\n\r\n"
        assert facts_from_message_bytes(subject.encode()).subject == text
