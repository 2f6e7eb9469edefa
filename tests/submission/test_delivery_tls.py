"""Test how the TLS of a delivery attempt is shown."""

import pytest

from graph.messages.authentication import TlsInfo


@pytest.mark.parametrize(
    ("description", "version", "cipher", "certificate_check"),
    [
        ("TLSv1.3 TLS_AES_256_GCM_SHA384", "TLSv1.3", "TLS_AES_256_GCM_SHA384", None),
        ("TLSv1.3 TLS_AES_256_GCM_SHA384 (DANE)", "TLSv1.3", "TLS_AES_256_GCM_SHA384", "DANE"),
        (
            "TLSv1.2 ECDHE-RSA-AES256-GCM-SHA384 (MTA-STS)",
            "TLSv1.2",
            "ECDHE-RSA-AES256-GCM-SHA384",
            "MTA-STS",
        ),
    ],
)
def test_certificate_check_is_not_part_of_the_cipher(
    description: str, version: str, cipher: str, certificate_check: str | None
) -> None:
    tls = TlsInfo.parse_or_none(description)
    assert tls == TlsInfo(version=version, cipher=cipher, certificate_check=certificate_check)


def test_unencrypted_attempt_has_no_tls() -> None:
    assert TlsInfo.parse_or_none(None) is None
    assert TlsInfo.parse_or_none("") is None
