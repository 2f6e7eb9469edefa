"""Documents, archives, cards and calendars that are valid files."""

import base64
import io
import struct
import zipfile
import zlib
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from html import escape
from random import Random

_OFFICE = "http://schemas.openxmlformats.org"
_XML = '<?xml version="1.0" encoding="UTF-8" standalone="yes"?>'
_WORD = "application/vnd.openxmlformats-officedocument.wordprocessingml.document.main+xml"
_CALENDAR_LINE = 74  # octets, RFC 5545 section 3.1
_CRC24 = 0xB704CE  # RFC 4880 section 6


def create_pdf(rng: Random, title: str, lines: list[str], picture_size: int = 0) -> bytes:
    """Write one page of text, and a grey square of `picture_size` pixels a side, as a PDF."""
    text_operators = "".join(f"({_escape_pdf_text(line)}) Tj T*\n" for line in (title, "", *lines))
    page = f"BT /F1 12 Tf 72 760 Td 16 TL\n{text_operators}ET\n"
    resources = "/Font << /F1 5 0 R >>"
    if picture_size:
        page += f"q {min(picture_size, 400)} 0 0 {min(picture_size, 400)} 72 72 cm /P1 Do Q\n"
        resources += " /XObject << /P1 6 0 R >>"
    objects = [
        b"<< /Type /Catalog /Pages 2 0 R >>",
        b"<< /Type /Pages /Kids [3 0 R] /Count 1 >>",
        f"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 595 842] /Contents 4 0 R"
        f" /Resources << {resources} >> >>".encode(),
        _pdf_stream("", page.encode("latin-1", "replace")),
        b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica /Encoding /WinAnsiEncoding >>",
    ]
    if picture_size:
        shape = f"/Type /XObject /Subtype /Image /Width {picture_size} /Height {picture_size}"
        colours = "/ColorSpace /DeviceGray /BitsPerComponent 8 /Filter /FlateDecode"
        objects.append(
            _pdf_stream(f"{shape} {colours}", zlib.compress(rng.randbytes(picture_size**2)))
        )
    return _pdf_file(objects)


def _escape_pdf_text(line: str) -> str:
    return line.replace("\\", "\\\\").replace("(", "\\(").replace(")", "\\)")


def _pdf_stream(entries: str, content: bytes) -> bytes:
    head = f"<< {entries} /Length {len(content)} >>\nstream\n".encode()
    return head + content + b"\nendstream"


def _pdf_file(objects: list[bytes]) -> bytes:
    content = b"%PDF-1.4\n%\xe2\xe3\xcf\xd3\n"
    offsets = []
    for number, object_ in enumerate(objects, 1):
        offsets.append(len(content))
        content += f"{number} 0 obj\n".encode() + object_ + b"\nendobj\n"
    table = "".join(f"{offset:010d} 00000 n \n" for offset in offsets)
    count = len(objects) + 1
    tail = (
        f"xref\n0 {count}\n0000000000 65535 f \n{table}trailer\n<< /Size {count} /Root 1 0 R >>\n"
    )
    return content + f"{tail}startxref\n{len(content)}\n%%EOF\n".encode()


def create_zip(members: dict[str, bytes]) -> bytes:
    """Zip some files; each is as old as zip itself, so that the bytes are always the same."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            # OpenDocument wants its first member readable without unpacking.
            compression = zipfile.ZIP_STORED if name == "mimetype" else zipfile.ZIP_DEFLATED
            archive.writestr(zipfile.ZipInfo(name), content, compression)
    return buffer.getvalue()


def create_docx(paragraphs: list[str]) -> bytes:
    """Write paragraphs as a word processor's document."""
    rows = "".join(
        f"<w:p><w:r><w:t>{escape(paragraph)}</w:t></w:r></w:p>" for paragraph in paragraphs
    )
    space = f'xmlns:w="{_OFFICE}/wordprocessingml/2006/main"'
    document = f"{_XML}<w:document {space}><w:body>{rows}</w:body></w:document>"
    return _create_office_file("word/document.xml", _WORD, document)


def _create_office_file(main: str, kind: str, document: str) -> bytes:
    rels = "application/vnd.openxmlformats-package.relationships+xml"
    types = (
        f'{_XML}<Types xmlns="{_OFFICE}/package/2006/content-types">'
        f'<Default Extension="rels" ContentType="{rels}"/>'
        f'<Default Extension="xml" ContentType="application/xml"/>'
        f'<Override PartName="/{main}" ContentType="{kind}"/></Types>'
    )
    relation = f"{_OFFICE}/officeDocument/2006/relationships/officeDocument"
    links = (
        f'{_XML}<Relationships xmlns="{_OFFICE}/package/2006/relationships">'
        f'<Relationship Id="rId1" Type="{relation}" Target="{main}"/></Relationships>'
    )
    members = {"[Content_Types].xml": types, "_rels/.rels": links, main: document}
    return create_zip({name: member.encode() for name, member in members.items()})


def create_odt(paragraphs: list[str]) -> bytes:
    """Write paragraphs as an OpenDocument text."""
    space = "urn:oasis:names:tc:opendocument:xmlns"
    kind = "application/vnd.oasis.opendocument.text"
    rows = "".join(f"<text:p>{escape(paragraph)}</text:p>" for paragraph in paragraphs)
    content = (
        f'<?xml version="1.0" encoding="UTF-8"?><office:document-content office:version="1.2" '
        f'xmlns:office="{space}:office:1.0" xmlns:text="{space}:text:1.0">'
        f"<office:body><office:text>{rows}</office:text></office:body></office:document-content>"
    )
    listing = (
        f'<?xml version="1.0" encoding="UTF-8"?><manifest:manifest manifest:version="1.2" '
        f'xmlns:manifest="{space}:manifest:1.0">'
        f'<manifest:file-entry manifest:full-path="/" manifest:media-type="{kind}"/>'
        f'<manifest:file-entry manifest:full-path="content.xml" manifest:media-type="text/xml"/>'
        f"</manifest:manifest>"
    )
    members = {"mimetype": kind, "content.xml": content, "META-INF/manifest.xml": listing}
    return create_zip({name: member.encode() for name, member in members.items()})


def duck_svg(colour: str) -> bytes:
    """Draw a duck for a browser."""
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 120 90" width="120" height="90">\n'
        f'<rect y="55" width="120" height="35" fill="{colour}"/>\n'
        '<ellipse cx="52" cy="52" rx="30" ry="16" fill="#f1c40f"/>\n'
        '<circle cx="76" cy="32" r="13" fill="#f4d03f"/>\n'
        '<path d="M87 30 l18 4 l-18 5 z" fill="#e67e22"/>\n</svg>\n'
    ).encode()


def create_vcard(name: str, address: str) -> bytes:
    """Write a visiting card (RFC 6350)."""
    last = name.rsplit(" ", 1)
    rows = (
        "BEGIN:VCARD",
        "VERSION:4.0",
        f"FN:{name}",
        f"N:{last[-1]};{last[0]};;;",
        f"EMAIL;TYPE=work:{address}",
        "TEL;VALUE=uri:tel:+44-1632-960123",
        "END:VCARD",
    )
    return "".join(f"{row}\r\n" for row in rows).encode()


@dataclass(frozen=True)
class DemoEvent:
    """A calendar event. `method` is a method of RFC 5546."""

    method: str
    uid: str
    summary: str
    stamp: datetime
    start: datetime
    organizer: str
    attendee: str
    place: str = ""
    sequence: int = 0


def create_calendar(event: DemoEvent) -> bytes:
    """Write an event with its lines folded (RFC 5545)."""
    status = {"CANCEL": "CANCELLED", "REQUEST": "CONFIRMED"}.get(event.method)
    answer = "ACCEPTED" if event.method == "REPLY" else "NEEDS-ACTION"
    start = event.start.astimezone(UTC)
    rows = [
        "BEGIN:VCALENDAR",
        "PRODID:-//Merganser//Demo//EN",
        "VERSION:2.0",
        f"METHOD:{event.method}",
        "BEGIN:VEVENT",
        f"UID:{event.uid}",
        f"SEQUENCE:{event.sequence}",
        f"DTSTAMP:{event.stamp.astimezone(UTC):%Y%m%dT%H%M%SZ}",
        f"DTSTART:{start:%Y%m%dT%H%M%SZ}",
        f"DTEND:{start + timedelta(hours=1):%Y%m%dT%H%M%SZ}",
        f"SUMMARY:{_escape_calendar_text(event.summary)}",
        f"LOCATION:{_escape_calendar_text(event.place)}",
        f"ORGANIZER:mailto:{event.organizer}",
        f"ATTENDEE;PARTSTAT={answer};RSVP=TRUE:mailto:{event.attendee}",
        *([f"STATUS:{status}"] if status else []),
        "END:VEVENT",
        "END:VCALENDAR",
    ]
    return "".join(f"{_fold_calendar_line(row)}\r\n" for row in rows).encode()


def _escape_calendar_text(value: str) -> str:
    return value.replace("\\", "\\\\").replace(";", "\\;").replace(",", "\\,")


def _fold_calendar_line(row: str) -> str:
    rows, line = [], ""
    for character in row:
        if len((line + character).encode()) > _CALENDAR_LINE:
            rows.append(line)
            line = " "
        line += character
    return "\r\n".join((*rows, line))


def _tnef_attribute(level: int, number: int, content: bytes) -> bytes:
    head = struct.pack("<BII", level, number, len(content))
    return head + content + struct.pack("<H", sum(content) & 0xFFFF)


def create_tnef(subject: str, file_name: str, content: bytes) -> bytes:
    """Wrap a file as TNEF, as some mail programs do."""
    return struct.pack("<IH", 0x223E9F78, 1) + b"".join(
        (
            _tnef_attribute(1, 0x00089006, struct.pack("<I", 0x10000)),
            _tnef_attribute(1, 0x00018004, subject.encode("ascii", "replace") + b"\0"),
            _tnef_attribute(2, 0x00069002, struct.pack("<HIHHI", 1, 0xFFFFFFFF, 32, 32, 0)),
            _tnef_attribute(2, 0x00018010, file_name.encode() + b"\0"),
            _tnef_attribute(2, 0x0006800F, content),
        )
    )


def pgp_armor(block_type: str, content: bytes) -> str:
    """Write bytes in the armour of OpenPGP, with its checksum (RFC 4880 section 6)."""
    check = _CRC24
    for byte in content:
        check ^= byte << 16
        for _ in range(8):
            check <<= 1
            if check & 0x1000000:
                check ^= 0x1864CFB
    encoded = base64.b64encode(content).decode()
    rows = [encoded[at : at + 64] for at in range(0, len(encoded), 64)]
    tail = base64.b64encode(check.to_bytes(3, "big")).decode()
    lines = (
        f"-----BEGIN PGP {block_type}-----",
        "",
        *rows,
        f"={tail}",
        f"-----END PGP {block_type}-----",
    )
    return "".join(f"{line}\n" for line in lines)


def fake_pkcs7(rng: Random, size: int) -> bytes:
    """Create random bytes that begin like a PKCS #7 structure."""
    inside = b"\x06\x09\x2a\x86\x48\x86\xf7\x0d\x01\x07\x02" + rng.randbytes(size)
    return b"\x30\x82" + struct.pack(">H", len(inside)) + inside
