"""Codes by time, as the RFCs have them."""

import base64
import random

import pyotp
import pytest

from resolvers.auth.second_factors import totp

SEED = b"12345678901234567890"  # of both RFCs


HOTP = "755224 287082 359152 969429 338314 254676 287922 162583 399871 520489"


@pytest.mark.parametrize(("step", "code"), list(enumerate(HOTP.split())))
def test_codes_are_those_of_rfc_4226_appendix_d(step: int, code: str) -> None:
    assert totp.code_at(SEED, step) == code


@pytest.mark.parametrize(
    ("at", "code"),  # of which the RFC shows eight digits
    [
        (59, "94287082"),
        (1111111109, "07081804"),
        (1111111111, "14050471"),
        (1234567890, "89005924"),
        (2000000000, "69279037"),
        (20000000000, "65353130"),
    ],
)
def test_codes_are_those_of_rfc_6238_appendix_b(at: int, code: str) -> None:
    assert totp.code_at(SEED, at // totp.STEP_SECONDS) == code[2:]


def test_codes_are_those_of_another_implementation() -> None:
    dice = random.Random(6238)  # noqa: S311
    for _ in range(50):
        seed = dice.randbytes(dice.randint(14, 64))
        at = dice.randrange(2**37)
        other = pyotp.TOTP(base64.b32encode(seed).decode()).at(at)
        assert totp.code_at(seed, at // totp.STEP_SECONDS) == other
