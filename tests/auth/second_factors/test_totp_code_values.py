"""HOTP and TOTP codes of the RFC test vectors."""

import base64
import random

import pyotp
import pytest

from resolvers.auth.second_factors import totp

RFC_KEY = b"12345678901234567890"  # of both RFCs


HOTP_CODES = "755224 287082 359152 969429 338314 254676 287922 162583 399871 520489"


@pytest.mark.parametrize(("step", "code"), list(enumerate(HOTP_CODES.split())))
def test_hotp_codes_match_rfc_4226_appendix_d(step: int, code: str) -> None:
    assert totp.code_at(RFC_KEY, step) == code


@pytest.mark.parametrize(
    ("timestamp", "code"),  # the RFC shows eight digits
    [
        (59, "94287082"),
        (1111111109, "07081804"),
        (1111111111, "14050471"),
        (1234567890, "89005924"),
        (2000000000, "69279037"),
        (20000000000, "65353130"),
    ],
)
def test_totp_codes_match_rfc_6238_appendix_b(timestamp: int, code: str) -> None:
    assert totp.code_at(RFC_KEY, timestamp // totp.STEP_SECONDS) == code[2:]


def test_totp_codes_match_pyotp() -> None:
    rng = random.Random(6238)  # noqa: S311
    for _ in range(50):
        secret = rng.randbytes(rng.randint(14, 64))
        timestamp = rng.randrange(2**37)
        pyotp_code = pyotp.TOTP(base64.b32encode(secret).decode()).at(timestamp)
        assert totp.code_at(secret, timestamp // totp.STEP_SECONDS) == pyotp_code
