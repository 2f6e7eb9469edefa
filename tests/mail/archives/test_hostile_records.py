"""Records in archives that would need much more memory than their text."""

import io
import tracemalloc
import zipfile
from pathlib import Path

import pytest

from mail.archives import json_lines
from mail.archives.mail_sources import inspect_mail_source, read_source_messages_and_skips
from mail.archives.source_message import UnusableMessageError
from mail.archives.zip_format import DamagedArchiveError

VALUES = b'{"kind": "message", "file": "a", "x": [%b]}\n' % b",".join([b"[]"] * 2_000_000)


def zip_file(name: str, content: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(name, content)
    return file.getvalue()


def json_lines_file(line: bytes) -> bytes:
    account = {"kind": "account", "format": json_lines.FORMAT, "version": json_lines.VERSION}
    return json_lines.json_line(account) + line


@pytest.mark.parametrize(
    "content",
    [
        zip_file(json_lines.ACCOUNT_FILE, VALUES),
        zip_file(f"{json_lines.MANIFEST_PREFIX}1", VALUES),
        zip_file(f"{json_lines.MANIFEST_PREFIX}1", b'{"file": "a"}\n' * 1_100_000),
        json_lines_file(VALUES),
    ],
    ids=["account", "manifest", "manifest with many lines", "JSON lines"],
)
def test_record_with_too_many_values_is_not_parsed(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "archive"
    path.write_bytes(content)
    tracemalloc.start()
    try:
        with pytest.raises((UnusableMessageError, DamagedArchiveError)):
            list(read_source_messages_and_skips(inspect_mail_source(path, 1 << 20), None))
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak_bytes < 6 * json_lines.MAX_RECORD_BYTES
