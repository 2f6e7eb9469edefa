"""OpenPGP keys, and the decryption of PGP/MIME messages."""

import email
import email.policy
from email.message import EmailMessage

import pysequoia


def make_public_key(name: str, *, seconds: int = 10**9) -> str:
    """Make a key pair and return its public key, armored. It expires after `seconds`."""
    return armored_public_key(make_secret_key(name, seconds=seconds))


def make_secret_key(name: str, *, seconds: int = 10**9) -> pysequoia.Tsk:
    """Make a secret key that expires after `seconds`."""
    return pysequoia.Tsk.generate(user_id=name, validity_seconds=seconds)


def armored_public_key(secret_key: pysequoia.Tsk) -> str:
    """The public key of a secret key, armored."""
    return str(secret_key.extract_certificate())


def decrypt_message(raw: bytes, secret_key: pysequoia.Tsk) -> bytes:
    """Decrypt a PGP/MIME message (RFC 3156) and return the inner message."""
    message = email.message_from_bytes(raw, policy=email.policy.default)
    assert isinstance(message, EmailMessage)
    assert message.get_content_type() == "multipart/encrypted"
    assert message.get_param("protocol") == "application/pgp-encrypted"
    version, content = message.iter_parts()
    assert version.get_content_type() == "application/pgp-encrypted"
    assert version.get_content().strip() == b"Version: 1"
    assert content.get_content_type() == "application/octet-stream"
    inner = pysequoia.decrypt(content.get_content(), decryptor=secret_key.decryptor()).bytes
    assert inner is not None
    return inner


SIGN_ONLY_KEY = """
-----BEGIN PGP PUBLIC KEY BLOCK-----

mDMEawBrhhYJKwYBBAHaRw8BAQdA4FiZg7xqWOQh+/p0yQ7u6qwbjLtrfovUA+E7
YQF+E8a0F3NpZ24gPHNpZ25AZXhhbXBsZS5vcmc+iJAEExYIADgWIQRib0tXP33b
o0TymuDZYm+256wjcwUCawBrhgIbAwULCQgHAgYVCgkICwIEFgIDAQIeAQIXgAAK
CRDZYm+256wjc1B1AP9pvBBHgY33EHXxpIhXuwy3cFJBLY8/ZIRcU+Xrj8JxPQD9
EYt/1WJGxYWIUQ9aAfoPyv6o9Nnxg2mu4i+xrHiNDQg=
=X5ZX
-----END PGP PUBLIC KEY BLOCK-----
"""
RSA_1024_KEY = """
-----BEGIN PGP PUBLIC KEY BLOCK-----

mI0EawBrhgEEALpb+7FfCnfbogN2qkaSggwB2rG8djtfZlqTIyW8aWG1XvhuEcjj
hJVAmHMaQPdDZj9Ru2L8UZ738DCm0VvHFjFwja1cythI34DKcnDpbRDC4Ofh+qk5
5gzIoVOWjQzhLZjk1CiI0v3kpsfBuQMMxCNd98jkVmLnOkrjnsKF7kmXABEBAAG0
FXJzYSA8cnNhQGV4YW1wbGUub3JnPojOBBMBCgA4FiEEjSvxw4ZfCpWxflieTxO3
AV9iikUFAmsAa4YCGy8FCwkIBwIGFQoJCAsCBBYCAwECHgECF4AACgkQTxO3AV9i
ikUujwP9G6rkrluAH5iYVlcQuzdzr58Ak9wAQ7P19vzy3LZtSpYPjve4cQK/eMl/
qXal8oWqytpmvNyh8r5x1kEHaj6SL74iprWV3AJwyK8GScZh/j/FvGSEDn/zgBtt
UVPdNDYPEXFgkTE0bpgwXgjQc+eb3FahYIy72s72Ka8aTbAZJWS4jQRrAGuGAQQA
0V+7ZdFtZB7ets6CAxYwDdy7RDud9XnOtw3T1s41Zzq0HrLA6Iy+fWfqBSmCstxQ
DhW0XHetM6XdO8O7EfycUbARIhAAEGgUfLstum6kkNBZOXt9FZwnxT9D4f9cHmL9
Q/IlSGI/pNzx7sFBvEfLSJs3PdNaPtFIr9/rQPhg3ocAEQEAAYkBawQYAQoAIBYh
BI0r8cOGXwqVsX5Ynk8TtwFfYopFBQJrAGuGAhsuAL8JEE8TtwFfYopFtCAEGQEK
AB0WIQRD2bsGXm3MnMXIF2HLHkiH7A2XYgUCawBrhgAKCRDLHkiH7A2XYgE6BAC8
axsnThbbM0nH3bZGy172176tyGPI9yz55o3ILCdg9kwsNZj2BJsXzgnm8V/hNTy1
ddIJju96bdXvjZHCVvYVAyXEX6lsp+BmnjUbSfbJ6Eu4ZeElzSA/Gw2oyjEgvXM9
JHd5C1WsGPsbMFutaZx47l+bwgNIev+M/zGpgKK34T1GA/0Ylbv2wTpt9akY/1Z4
BL92wg+YVloHxJpEmXuYmBeFSb0yQmIWt3UwkXJE2Oz6RMNQpzRka1+b/G/slfSf
PuL0DIOaKEK1jsjssZToEdSH60zK1vP4DmiTukAWszHkD1nTMK3AaDRpLKYqHvZr
VrUa6LnyzvZSMiiig7f099tOJg==
=evwv
-----END PGP PUBLIC KEY BLOCK-----
"""
