"""ARC seals of messages that are sent on, with the key of the domain that sends them (RFC 8617)."""

import asyncio
import base64
import hashlib
import logging
import stat
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey, generate_private_key
from cryptography.hazmat.primitives.asymmetric.utils import Prehashed
from cryptography.hazmat.primitives.hashes import SHA256

from mail.addresses.address_syntax import ascii_domain
from mail.authentication import arc, signing_keys
from mail.authentication.arc import ArcChain, ArcSet
from mail.authentication.dkim import AuthResult, SignedMessage, header_digest, parse_signature
from mail.authentication.dns_queries import MessageDns
from mail.authentication.header_fields import parse_tags
from mail.authentication.public_keys import MAX_RSA_BITS, MIN_RSA_BITS, is_domain
from mail.authentication.signature_fields import (
    append_signature,
    build_folded_signature_field,
    fold_names,
)
from models.observability import metrics
from models.runtime.environment import Environment

log = logging.getLogger(__name__)

SEALS = metrics.counter(
    "merganser_arc_seals",
    "Forwarded messages of domains with a key: sealed; chain, their ARC chain is broken; "
    "dns, it can't be checked; key, the key can't be used.",
    "outcome",
)
NEW_KEY_BITS = 2048  # of a new key
MAX_PEM_SIZE = 16 << 10  # bytes of a file with a key
OTHERS_PERMISSIONS = 0o077  # file permissions of group and others
DOMAINKEY_LABEL = "._domainkey."
SIGNED_FIELDS = (  # all fields with these names are signed
    *("from", "reply-to", "sender", "subject", "date", "to", "cc", "message-id"),
    *("in-reply-to", "references", "mime-version", "content-type", "content-transfer-encoding"),
    *("content-id", "content-description", "list-id", "list-unsubscribe", "list-post"),
    *("resent-from", "resent-to", "resent-date", "resent-message-id", "dkim-signature"),
)


class UnusableSealKey(Exception):
    """A key that can't seal. The text gives the reason and nothing of the key."""


@dataclass(frozen=True, slots=True)
class SealKey:
    """An RSA key with the selector and domain of its DNS record."""

    selector: str
    domain: str
    key: RSAPrivateKey

    def sign(self, digest: bytes) -> bytes:
        """Sign a SHA-256 digest."""
        return self.key.sign(digest, PKCS1v15(), Prehashed(SHA256()))


async def make_arc_fields_or_empty(
    environment: Environment, source: bytes | Path, domain: str, authentication_results: str | None
) -> bytes:
    """The ARC fields to put before a message that a domain sends on; empty without a key.

    `authentication_results` are the results of the message, as in Authentication-Results. A
    message is not sealed if its chain is broken or can't be checked now. It never raises.
    """
    try:
        key = await _find_arc_key_or_rsa_dkim_key(environment, domain)
    except (UnusableSealKey, ValueError, OSError) as problem:
        SEALS.add("key")
        log.warning("Message not ARC-sealed: %s", problem, extra={"domain": domain})
        return b""
    if key is None:
        return b""
    message = await SignedMessage.read(source)
    now = int(environment.now().timestamp())
    chain_result = await arc.check_chain(MessageDns(environment.options.dns_resolver), message, now)
    if (
        chain_result.result not in (AuthResult.NONE, AuthResult.PASS)
        or len(chain_result.arc_sets) >= arc.MAX_SETS
    ):
        SEALS.add("dns" if chain_result.result is AuthResult.TEMPERROR else "chain")
        return b""
    await message.compute_body_hashes(["relaxed"])
    SEALS.add("sealed")
    hostname_and_results = _hostname_and_results(authentication_results) or [
        environment.options.hostname,
        "none",
    ]
    return await asyncio.to_thread(
        _make_arc_fields_with_key, key, message, chain_result, (hostname_and_results, now)
    )


async def _find_arc_key_or_rsa_dkim_key(environment: Environment, domain: str) -> SealKey | None:
    """The key of a domain in the key folder, else its DKIM key; None if it has no RSA key."""
    folder = environment.options.arc_keys_folder
    if folder is not None:
        domain_key = await asyncio.to_thread(load_domain_key_or_none, folder, ascii_name(domain))
        if domain_key is not None:
            return domain_key
    for signer in await signing_keys.load_own_or_published_shared_signers(environment, domain):
        if isinstance(signer.key.key, RSAPrivateKey):  # others are rarely understood in seals
            return SealKey(signer.selector, signer.domain, signer.key.key)
    return None


def _hostname_and_results(results: str | None) -> list[str]:
    """Merge results of several lines into one list: a server name, then the results."""
    parts = [" ".join(line.split()).split("; ") for line in (results or "").splitlines()]
    return [*parts[0], *(value for line in parts[1:] for value in line[1:])] if parts else []


def ascii_name(domain: str) -> str:
    """The domain as A-labels in lower case. Raises ValueError if it has no such form."""
    return ascii_domain(domain).lower()


def load_domain_key_or_none(folder: Path, domain: str) -> SealKey | None:
    """Load the key of a domain from the file `selector._domainkey.domain.pem` in the folder.

    Of several files the last by name is used. Returns None without a file; raises
    UnusableSealKey or OSError.
    """
    key_suffix = f"{DOMAINKEY_LABEL}{domain}.pem"
    paths = sorted(path for path in folder.iterdir() if path.name.endswith(key_suffix))
    if not paths or not is_domain(domain):
        return None
    return SealKey(paths[-1].name.removesuffix(key_suffix), domain, load_arc_private_key(paths[-1]))


def load_arc_private_key(path: Path) -> RSAPrivateKey:
    """Load the key in a file. Raises UnusableSealKey or OSError."""
    status = path.stat()
    if stat.S_IMODE(status.st_mode) & OTHERS_PERMISSIONS:
        raise UnusableSealKey(f"Other users of the machine can read {path.name}.")
    if status.st_size > MAX_PEM_SIZE:
        raise UnusableSealKey(f"{path.name} is too large.")
    return _load_cached_key(path, status.st_mtime_ns)


@lru_cache(maxsize=100)
def _load_cached_key(path: Path, _modified_at: int) -> RSAPrivateKey:
    from cryptography.hazmat.primitives import serialization  # noqa: PLC0415 - few need it

    try:
        key = serialization.load_pem_private_key(path.read_bytes(), None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise UnusableSealKey(f"{path.name} has no key that can be parsed.") from None
    if not isinstance(key, RSAPrivateKey) or not MIN_RSA_BITS <= key.key_size <= MAX_RSA_BITS:
        raise UnusableSealKey(
            f"{path.name} has no RSA key of {MIN_RSA_BITS} to {MAX_RSA_BITS} bits."
        )
    return key


def new_key_pem() -> str:
    """Generate an RSA key and return it as PEM."""
    from cryptography.hazmat.primitives import serialization as forms  # noqa: PLC0415

    key = generate_private_key(65537, NEW_KEY_BITS)
    pem_options = forms.Encoding.PEM, forms.PrivateFormat.PKCS8, forms.NoEncryption()
    return key.private_bytes(*pem_options).decode()


def arc_key_dns_record(key: RSAPrivateKey) -> str:
    """The TXT record with the public key."""
    from cryptography.hazmat.primitives import serialization as forms  # noqa: PLC0415

    der_options = forms.Encoding.DER, forms.PublicFormat.SubjectPublicKeyInfo
    public = key.public_key().public_bytes(*der_options)
    return f"v=DKIM1; k=rsa; p={base64.b64encode(public).decode()}"


def _make_arc_fields_with_key(
    key: SealKey,
    message: SignedMessage,
    arc_chain: ArcChain,
    results_and_time: tuple[list[str], int],
) -> bytes:
    """Make the three fields of the next ARC set, the seal first.

    `results_and_time` are the authentication results and the time in seconds since 1970.
    """
    results, now = results_and_time
    number = len(arc_chain.arc_sets) + 1
    first = build_folded_signature_field(arc.RESULTS_FIELD, [f"i={number}", *results])
    signer_tags = [f"d={key.domain}", f"s={key.selector}", f"t={now}"]
    body = base64.b64encode(message.body_hash("relaxed")).decode()
    signed = fold_names([field.name for field in message.fields if field.name in SIGNED_FIELDS])
    head = [
        f"i={number}",
        "a=rsa-sha256",
        "c=relaxed/relaxed",
        *signer_tags,
        f"h={signed}",
        f"bh={body}",
    ]
    bare = build_folded_signature_field(arc.SIGNATURE_FIELD, [*head, "b="])
    signature = parse_signature(bare, {**parse_tags(bare.value), "b": "AA=="})
    second = append_signature(bare, key.sign, header_digest(message, signature))
    head = [f"i={number}", "a=rsa-sha256", f"cv={arc_chain.result.value}", *signer_tags]
    seal = build_folded_signature_field(arc.SEAL_FIELD, [*head, "b="])
    signed_bytes = arc.sealed_bytes([*arc_chain.arc_sets, ArcSet(first, second, seal)])
    third = append_signature(seal, key.sign, hashlib.sha256(signed_bytes).digest())
    return third.raw + second.raw + first.raw
