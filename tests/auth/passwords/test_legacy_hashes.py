"""Password hashes of other systems: checks, refusals, and the replacement at sign-in."""

import time

import pytest

from models.errors import AuthenticationFailed, InvalidInput
from resolvers.auth.passwords import foreign_hashes, password_hashes
from tests.support.accounts.legacy_password_hashes import (
    LEGACY_HASHES,
    PBKDF2_SHA1,
    PBKDF2_SHA256,
    SHA512_CRYPT,
)
from tests.support.accounts.sign_in_environment import SignInEnvironment
from tests.support.case_loop import each_case


async def test_legacy_hash_accepts_only_its_password(
    sign_in_environment: SignInEnvironment,
) -> None:
    for case in each_case(LEGACY_HASHES):
        with case as (password, stored):
            assert foreign_hashes.validate_foreign_hash(f" {stored}\n") == stored
            assert await password_hashes.check_password(
                sign_in_environment.environment, stored, password
            )
            assert not await password_hashes.check_password(
                sign_in_environment.environment, stored, f"x{password}"
            )
            assert not await password_hashes.check_password(
                sign_in_environment.environment, stored, f"{password[:-1]}x"
            )
            if not stored.startswith("$argon2id$"):
                assert password_hashes.is_outdated(sign_in_environment.environment, stored)


@pytest.mark.parametrize(
    "stored",
    [
        "",
        "none",
        "secret",
        "x" * 5000,
        "\0" * 13,
        "$argon2id$",
        "$argon2x$v=19$m=8,t=1,p=1$c2FsdHNhbHQ$V2ZLF9Rz1I5x88qWRftZTg",
        "$argon2id$v=19$m=8,t=1,p=1$c2FsdHNhbHQ$V2ZLF9Rz1I5x88qWRftZT",  # base64 ends inside a byte
        # less memory than the minimum
        "$argon2id$v=19$m=1,t=1,p=1$c2FsdHNhbHQ$V2ZLF9Rz1I5x88qWRftZTg",
        "$argon2id$v=19$m=8,t=0,p=1$c2FsdHNhbHQ$V2ZLF9Rz1I5x88qWRftZTg",
        "$2x$05$CCCCCCCCCCCCCCCCCCCCC.E5YPO9kmyuRGyh0XouQYb4YMJKvyOeW",
        "$2a$03$CCCCCCCCCCCCCCCCCCCCC.E5YPO9kmyuRGyh0XouQYb4YMJKvyOeW",
        "$2a$05$CCCCCCCCCCCCCCCCCCCCC.E5YPO9kmyuRGyh0XouQYb4YMJKvyOe",
        "$2b$05$CCCCCCCCCCCCCCCCCCCCCCE5YPO9kmyuRGyh0XouQYb4YMJKvyOeW",  # salt of 16½ bytes
        # less than 8 KiB per lane
        "$argon2id$v=19$m=31,t=1,p=4$c2FsdHNhbHQ$V2ZLF9Rz1I5x88qWRftZTg",
        "$5$rounds=01000$abcdefgh$gruCpC7VkOTspMQTTSAR8mtlO9Upms.fwqE5y16JVM.",
        "$5$rounds=999$abcdefgh$gruCpC7VkOTspMQTTSAR8mtlO9Upms.fwqE5y16JVM.",
        "$5$abcdefgh$gruCpC7V",
        "$1$abcdefghi$cHJi5PXp/ki/ktXzqlk6I1",
        "$pbkdf2-md5$i=2$c2FsdA$6mwBTcctb4zNHtkqzh1B8NjeiVc",
        "$pbkdf2-sha1$i=x$c2FsdA$6mwBTcctb4zNHtkqzh1B8NjeiVc",
        "abNANd1rDfiN",
        "abNANd1rDfiN!",
        "{SSHA}MTIzNDU2Nzg5MDEyMzQ1Njc4OTA",
        "$y$j9T$abc$def",
    ],
)
def test_unknown_hash_format_is_refused(stored: str) -> None:
    with pytest.raises(InvalidInput) as error_info:
        foreign_hashes.validate_foreign_hash(stored, path=["set", "password"])
    assert (error_info.value.constraint, error_info.value.path) == (
        "PASSWORD_HASH",
        ["set", "password"],
    )
    with pytest.raises(ValueError, match="The format of the hash is unknown"):
        foreign_hashes.verify_foreign_hash("secret", "nobody's")


@pytest.mark.parametrize(
    "stored",
    [
        PBKDF2_SHA1.replace("i=2$", "i=2000001$"),
        PBKDF2_SHA1.replace("i=2$", "i=0$"),
        "$2b$15$CCCCCCCCCCCCCCCCCCCCC.E5YPO9kmyuRGyh0XouQYb4YMJKvyOeW",
        "$2b$99$CCCCCCCCCCCCCCCCCCCCC.E5YPO9kmyuRGyh0XouQYb4YMJKvyOeW",
        SHA512_CRYPT.replace("$6$", "$6$rounds=1000001$"),
        "$argon2id$v=19$m=262145,t=1,p=1$c2FsdHNhbHQ$V2ZLF9Rz1I5x88qWRftZTg",
        "$argon2id$v=19$m=65536,t=17,p=1$c2FsdHNhbHQ$V2ZLF9Rz1I5x88qWRftZTg",
        "$argon2id$v=19$m=999999999,t=999999999,p=1$c2FsdHNhbHQ$V2ZLF9Rz1I5x88qWRftZTg",
        "$argon2id$v=19$m=8192,t=1,p=17$c2FsdHNhbHQ$V2ZLF9Rz1I5x88qWRftZTg",
    ],
)
def test_hash_with_excessive_cost_is_refused(stored: str) -> None:
    with pytest.raises(InvalidInput) as error_info:
        foreign_hashes.validate_foreign_hash(stored)
    assert error_info.value.constraint == "HASH_COST"


@pytest.mark.parametrize(
    "stored",
    [
        "$2b$14$CCCCCCCCCCCCCCCCCCCCC.E5YPO9kmyuRGyh0XouQYb4YMJKvyOeW",
        SHA512_CRYPT.replace("$6$", "$6$rounds=1000000$"),
        PBKDF2_SHA256.replace("i=1$", "i=2000000$"),
        "$argon2id$v=19$m=65536,t=16,p=1$c2FsdHNhbHQ$V2ZLF9Rz1I5x88qWRftZTg",
    ],
)
def test_expensive_hash_is_validated_without_hashing(stored: str) -> None:
    """One comparison with these hashes takes from half a second to several seconds."""
    before = time.process_time()
    assert [foreign_hashes.validate_foreign_hash(stored) for _ in range(10)] == [stored] * 10
    assert time.process_time() - before < 0.1


async def test_first_sign_in_replaces_legacy_hash(sign_in_environment: SignInEnvironment) -> None:
    for case in each_case(LEGACY_HASHES[1:4] + LEGACY_HASHES[7:13]):
        with case as (password, stored):
            await sign_in_environment.change_user("ada", password=stored)
            with pytest.raises(AuthenticationFailed):
                await sign_in_environment.sign_in("ada", f"x{password}")
            assert (await sign_in_environment.load_user_row("ada")).password == stored
            await sign_in_environment.sign_in("ada", password)
            new_hash = (await sign_in_environment.load_user_row("ada")).password
            assert new_hash.startswith("$argon2id$v=19$m=8,t=1,p=1$")
            await sign_in_environment.sign_in("ada", password)
            assert (await sign_in_environment.load_user_row("ada")).password == new_hash


async def test_sign_in_replaces_bcrypt_hash_of_first_72_bytes(
    sign_in_environment: SignInEnvironment,
) -> None:
    import bcrypt

    password = "ü" * 50
    stored = bcrypt.hashpw(password.encode()[:72], bcrypt.gensalt(4)).decode()
    assert await password_hashes.check_password(sign_in_environment.environment, stored, password)
    await sign_in_environment.change_user("ada", password=stored)
    await sign_in_environment.sign_in("ada", password)
    with pytest.raises(AuthenticationFailed):
        await sign_in_environment.sign_in("ada", f"{password}x")  # the new hash covers all bytes


async def test_bcrypt_hash_of_unnormalized_password_is_accepted(
    sign_in_environment: SignInEnvironment,
) -> None:
    import bcrypt

    unnormalized = "Gru\u0308ße sehr"
    stored = bcrypt.hashpw(unnormalized.encode(), bcrypt.gensalt(4)).decode()
    assert await password_hashes.check_password(
        sign_in_environment.environment, stored, unnormalized
    )
