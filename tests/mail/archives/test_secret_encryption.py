"""The secrets of an archive are encrypted with a key that is derived from its passphrase."""

import hashlib

import pytest

from mail.archives.secret_encryption import KEY_DERIVATION, ArchiveCipher, ArchiveDecryptionError


def test_archive_cipher_decrypts_only_its_own_context() -> None:
    cipher = ArchiveCipher.for_new_archive("Grüße und so")
    assert cipher.derivation_record() == {
        **KEY_DERIVATION,
        "salt": cipher.derivation_record()["salt"],
    }
    assert cipher.key == hashlib.scrypt(
        "Grüße und so".encode(), salt=cipher.salt, n=1 << 15, r=8, p=1, maxmem=64 << 20, dklen=32
    )
    encrypted = cipher.encrypt("word", b"here")
    same_cipher = ArchiveCipher.from_derivation_record(
        cipher.derivation_record(), "Gru\u0308\u00dfe und so"
    )  # another Unicode form of the same passphrase
    assert same_cipher.decrypt(encrypted, b"here") == "word"
    assert cipher.encrypt("word", b"here") != encrypted
    for other_cipher, cipher_context, text in (
        (same_cipher, b"there", encrypted),
        (
            ArchiveCipher.from_derivation_record(cipher.derivation_record(), "Grüße und So"),
            b"here",
            encrypted,
        ),
        (ArchiveCipher.for_new_archive("Grüße und so"), b"here", encrypted),
        (same_cipher, b"here", encrypted[:-8]),
        (same_cipher, b"here", ""),
        (same_cipher, b"here", None),
    ):
        with pytest.raises(ArchiveDecryptionError):
            other_cipher.decrypt(text, cipher_context)
    assert "key" not in repr(cipher)
