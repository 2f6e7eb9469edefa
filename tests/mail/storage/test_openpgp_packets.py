"""Keys are read as hostile input: the packets are counted before a library parses them."""

import base64
import time

import pysequoia
import pytest

from mail.storage.openpgp_packets import (
    MAX_PACKETS,
    MalformedCertificate,
    certificate_from_armor,
    packet_tags,
)
from tests.conftest import GraphQLClient
from tests.support.accounts.openpgp_keys import RSA_1024_KEY, SIGN_ONLY_KEY, make_public_key
from tests.support.accounts.user_operations import try_update_users

MAX_CPU_SECONDS = 0.5  # a refusal takes some ms; to parse 30,000 packets takes some seconds
PUBLIC_KEY_TAG, SIGNATURE_TAG, USER_ID_TAG, SUBKEY_TAG = 6, 2, 13, 14
EMPTY_PACKETS = {
    "user ID": b"\xcd\x00",
    "old format": b"\xb4\x00",
    "signature": b"\xc2\x00",
    "unknown": b"\xfc\x00",
}


def armor(certificate: bytes) -> str:
    encoded = base64.encodebytes(certificate).decode()
    return (
        "-----BEGIN PGP PUBLIC KEY BLOCK-----\nComment: a: b\n\n"
        f"{encoded}-----END PGP PUBLIC KEY BLOCK-----\n"
    )


@pytest.mark.parametrize("packet", EMPTY_PACKETS.values(), ids=EMPTY_PACKETS)
async def test_key_with_many_empty_packets_is_refused_within_cpu_limit(
    ada: GraphQLClient, packet: bytes
) -> None:
    key = armor(certificate_from_armor(make_public_key("Ada <a@b.example>")) + packet * 30_000)
    start = time.process_time()
    _, (error,) = await try_update_users(ada, openpgpPublicKey=key)
    assert time.process_time() - start < MAX_CPU_SECONDS
    assert (error["code"], error["path"], error["constraint"]) == (
        "VALIDATION",
        ["set", "openpgpPublicKey"],
        "KEY",
    )


@pytest.mark.parametrize("key", [RSA_1024_KEY, SIGN_ONLY_KEY, make_public_key("Ada")])
def test_certificate_is_that_of_the_library(key: str) -> None:
    certificate = certificate_from_armor(f"Here it is:\n\n{key}\nBye!\n")
    expected = pysequoia.Cert.from_bytes(key.encode())
    assert str(pysequoia.Cert.from_bytes(certificate)) == str(expected)
    tags = list(packet_tags(certificate))
    assert tags[0] == PUBLIC_KEY_TAG
    assert set(tags) <= {PUBLIC_KEY_TAG, SIGNATURE_TAG, USER_ID_TAG, SUBKEY_TAG}


def test_number_of_packets_is_limited() -> None:
    packet = EMPTY_PACKETS["user ID"]
    assert certificate_from_armor(armor(packet * MAX_PACKETS)) == packet * MAX_PACKETS
    with pytest.raises(MalformedCertificate, match=r"at most 1,000 packets"):
        certificate_from_armor(armor(packet * (MAX_PACKETS + 1)))


@pytest.mark.parametrize(
    "packets",
    [
        b"\x00\x00",  # no header
        b"\xc8\x00",  # compressed data
        b"\xcd\x05abc",  # shorter than its length
        b"\xcd",
        b"\xcd\xff\x00\x00",
        b"\xcd\xe1ab",  # a partial length
        b"\xb7abc",  # no length
    ],
)
def test_malformed_packets_are_refused(packets: bytes) -> None:
    with pytest.raises(MalformedCertificate):
        certificate_from_armor(armor(packets))


@pytest.mark.parametrize("text", ["", "-----BEGIN PGP PUBLIC KEY BLOCK-----\n\n", "a" * 100_000])
def test_text_without_armor_is_refused(text: str) -> None:
    with pytest.raises(MalformedCertificate):
        certificate_from_armor(text)
