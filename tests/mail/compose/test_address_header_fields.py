"""Addresses as fields of our own messages have them."""

from email import message_from_bytes
from email.policy import default

import pytest

from mail.mime.header_encoding import NamedAddress, address_field


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        ("ada@example.org", "ada@example.org"),
        ("ada+x.y'z@example.org", "ada+x.y'z@example.org"),
        ('"ada b"@example.org', '"ada b"@example.org'),
        ("a,mallory@example.net", '"a,mallory"@example.net'),
        ("a b@example.net", '"a b"@example.net'),
        ('a"b\\c@example.net', '"a\\"b\\\\c"@example.net'),
        ("a<mallory@evil.example>@example.net", '"a<mallory@evil.example>"@example.net'),
    ],
)
def test_an_address_is_one_address(address: str, shown: str) -> None:
    field = address_field("To", [NamedAddress(address), NamedAddress("eve@example.org", "Eve")])
    assert field == f"To: {shown}, Eve <eve@example.org>\r\n".encode()
    read = message_from_bytes(field + b"\r\n", policy=default)["To"]
    assert [each.domain for each in read.addresses] == [shown.rpartition("@")[2], "example.org"]
