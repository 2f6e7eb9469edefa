"""The ACME client (RFC 8555): certificates by HTTP-01 challenges.

The ACME library blocks, so all methods of the client must be called in a thread. The library is
imported at first use, since most servers never need it.
"""
# ruff: noqa: PLC0415 - see the docstring

import asyncio
import datetime
import time
from base64 import urlsafe_b64encode
from collections import deque
from collections.abc import AsyncGenerator, Generator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding

if TYPE_CHECKING:
    from acme.messages import AuthorizationResource, OrderResource
    from requests import Response

PATIENCE = 15  # seconds, for one response
BITS = 2048
HOLDS = 6 * 60 * 60  # without Retry-After (RFC 9773, section 4.3.3)
PIECE = datetime.timedelta(seconds=2)  # maximum of one call, so that the server can stop
PAUSE = 1.0  # seconds between two polls
SAID = 300  # of an error text
TOKEN = 200  # the key authorization can have twice as many
WELL_KNOWN = "/.well-known/acme-challenge/"
LIMITED = "rateLimited"
UNKNOWN = "accountDoesNotExist"
REVOKED, UNREASONABLE = "alreadyRevoked", "badRevocationReason"
SENSELESS = (ValueError, TypeError, AttributeError, OverflowError)  # what invalid responses raise
UNBOUND = (
    "the authority asks for an account outside of ACME: set MERGANSER_ACME_EAB_KEY_ID and "
    "MERGANSER_ACME_EAB_HMAC"
)


class Failure(Exception):
    """An ACME request failed: a text for administrators, and the error type of RFC 8555 if any."""

    def __init__(self, message: str, *, code: str = "") -> None:
        text = "".join(sign if sign.isprintable() else " " for sign in message)
        super().__init__(text[:SAID])
        self.code = code


class Reason(StrEnum):
    """The reason for revoking a certificate (RFC 5280, section 5.3.1)."""

    UNSPECIFIED = "UNSPECIFIED"
    KEY_COMPROMISE = "KEY_COMPROMISE"
    AFFILIATION_CHANGED = "AFFILIATION_CHANGED"
    SUPERSEDED = "SUPERSEDED"
    CESSATION_OF_OPERATION = "CESSATION_OF_OPERATION"


CODES = {
    Reason.UNSPECIFIED: 0,
    Reason.KEY_COMPROMISE: 1,
    Reason.AFFILIATION_CHANGED: 3,
    Reason.SUPERSEDED: 4,
    Reason.CESSATION_OF_OPERATION: 5,
}


@dataclass(frozen=True, slots=True)
class Server:
    """An ACME server: its directory URL, CA file, and external account binding."""

    directory: str
    ca: Path | None = None
    agent: str = "merganser"
    binding: tuple[str, str] | None = field(default=None, repr=False)  # key id and HMAC, base64url


@dataclass(frozen=True, slots=True)
class Advice:
    """The window in which a server suggests the renewal (RFC 9773), and how long it is valid."""

    start: datetime.datetime
    end: datetime.datetime
    holds: datetime.timedelta


@dataclass(frozen=True, slots=True)
class Challenge:
    """An HTTP-01 challenge: the key authorization that the server must find under the token."""

    token: str
    answer: str
    raw: Any = field(repr=False)


def new_account_key() -> str:
    """Generate an ECDSA key for an ACME account, as PEM."""
    return _pem(ec.generate_private_key(ec.SECP256R1()))


def new_key() -> str:
    """Generate an RSA key for a certificate, as PEM. All mail servers support RSA."""
    return _pem(rsa.generate_private_key(65537, BITS))


def _pem(key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey) -> str:
    plain, form = serialization.NoEncryption(), serialization.PrivateFormat.PKCS8
    return key.private_bytes(Encoding.PEM, form, plain).decode()


def certificate_id(chain: str) -> str | None:
    """The renewal id (RFC 9773, section 4.1) of the first certificate of a PEM chain.

    None if the certificate has no authority key identifier.
    """
    own = x509.load_pem_x509_certificate(chain.encode())
    try:
        found = own.extensions.get_extension_for_class(x509.AuthorityKeyIdentifier)
    except (x509.ExtensionNotFound, ValueError):
        return None
    serial = own.serial_number.to_bytes(own.serial_number.bit_length() // 8 + 1, "big")
    key = found.value.key_identifier
    return f"{_base64url(key)}.{_base64url(serial)}" if key else None


def _base64url(octets: bytes) -> str:
    return urlsafe_b64encode(octets).decode().rstrip("=")


def request(key: str, names: Sequence[str]) -> bytes:
    """The certificate signing request for these names, as PEM."""
    loaded: Any = serialization.load_pem_private_key(key.encode(), None)
    found = x509.SubjectAlternativeName([x509.DNSName(name) for name in names])
    asked = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    own = isinstance(loaded, ed25519.Ed25519PrivateKey | ed448.Ed448PrivateKey)
    signed = asked.add_extension(found, critical=False).sign(
        loaded, None if own else hashes.SHA256()
    )
    return signed.public_bytes(Encoding.PEM)


class Client:
    """A session with an ACME server. All methods block and raise AcmeError."""

    def __init__(self, server: Server, account_key: str) -> None:
        from acme.client import ClientNetwork, ClientV2
        from josepy.jwa import ES256
        from josepy.jwk import JWKEC

        key: Any = serialization.load_pem_private_key(account_key.encode(), None)
        trust: Any = str(server.ca) if server.ca else True
        self._key = JWKEC(key=key)
        self._net = ClientNetwork(
            self._key, alg=ES256, user_agent=server.agent, timeout=PATIENCE, verify_ssl=trust
        )
        self._binding = server.binding
        self._order: OrderResource | None = None
        self._open: deque[AuthorizationResource] = deque()  # authorizations without a result
        try:
            with _told():
                directory = ClientV2.get_directory(server.directory, self._net)
        except Failure:
            self.close()
            raise
        self._client = ClientV2(directory, self._net)

    @property
    def identities(self) -> tuple[str, ...]:
        """The CAA identities of the authority. Empty if it publishes none."""
        meta = self._client.directory.to_partial_json().get("meta")
        found = getattr(meta, "caa_identities", None) or ()
        return tuple(str(identity).lower() for identity in found)

    @property
    def advises(self) -> bool:
        """True if the server publishes renewal windows (RFC 9773)."""
        return "renewalInfo" in self._client.directory.to_partial_json()

    def advice(self, chain: str) -> Advice:
        """Load the suggested renewal window of a certificate. Raises AcmeError if it is invalid.

        The library's renewal_time accepts windows that end before they start, which are invalid
        (RFC 9773, section 4.2).
        """
        from acme.client import ClientV2
        from acme.messages import RenewalInfo

        name = certificate_id(chain)
        if name is None:
            raise Failure("the certificate does not say which key signed it")
        with _told():
            base = str(self._client.directory["renewalInfo"]).rstrip("/")
            answer = self._net.get(f"{base}/{name}")
            window = RenewalInfo.from_json(answer.json()).suggested_window
            holds = ClientV2.retry_after(answer, HOLDS) - datetime.datetime.now()  # noqa: DTZ005
            if not window.start < window.end:
                raise Failure("the authority's window for the renewal ends before it starts")
            return Advice(window.start, window.end, holds)

    def enter(self, url: str | None, contact: str) -> str:
        """Use the account with this URL, or create one and agree to the terms. Returns its URL."""
        from acme import errors
        from acme.messages import NewRegistration, Registration, RegistrationResource

        if url:
            self._net.account = RegistrationResource(uri=url, body=Registration())
            return url
        with _told():
            new = NewRegistration.from_data(
                email=contact or None,
                terms_of_service_agreed=True,
                external_account_binding=self._bound(),
            )
            try:
                made = self._client.new_account(new)
            except errors.ConflictError as conflict:
                self._net.account = RegistrationResource(
                    uri=str(conflict.location), body=Registration()
                )
                return str(conflict.location)
        return str(made.uri)

    def _bound(self) -> dict[str, Any] | None:
        """The external account binding (RFC 8555, section 7.3.4), if the server requires one.

        Raises AcmeError if it is not configured.
        """
        from acme.messages import ExternalAccountBinding

        if not self._client.external_account_required():
            return None
        if self._binding is None:
            raise Failure(UNBOUND)
        public = self._key.public_key()
        return ExternalAccountBinding.from_data(public, *self._binding, self._client.directory)

    def order(self, csr: bytes, names: Sequence[str], replaces: str | None = None) -> list[str]:
        """Order a certificate for these names. Returns the authorization URLs.

        `replaced_id` is the renewal id of the certificate that it replaces (RFC 9773, section 5).
        """
        from acme.messages import Order, OrderResource

        with _told():
            answer = self._ordered(names, replaces)
            body = Order.from_json(answer.json())
            urls = [str(url) for url in body.authorizations]
            if len(urls) > len(names):
                raise Failure("the authority wants more proved than was asked for")
            self._order = OrderResource(
                body=body, uri=answer.headers["Location"], authorizations=(), csr_pem=csr
            )
            return urls

    def _ordered(self, names: Sequence[str], replaces: str | None) -> "Response":
        """Send the order, and repeat it without `replaced_id` if the server refuses that."""
        from acme import errors
        from acme.messages import IDENTIFIER_FQDN, Error, Identifier, NewOrder
        from josepy.json_util import field as member

        class Replacing(NewOrder):  # the library lacks the field
            replaces: str | None = member("replaces", omitempty=True)

        url = self._client.directory["newOrder"]
        asked = [Identifier(typ=IDENTIFIER_FQDN, value=name) for name in names]
        if replaces:
            try:
                return self._post(url, Replacing(identifiers=asked, replaces=replaces))
            except errors.ConflictError:
                pass  # the certificate was replaced already
            except Error as problem:
                if problem.code in (LIMITED, UNKNOWN):
                    raise
        return self._post(url, NewOrder(identifiers=asked))

    def challenge(self, url: str) -> Challenge | None:
        """Load the HTTP-01 challenge of an authorization. None if it is valid already."""
        from acme.challenges import HTTP01
        from acme.messages import STATUS_VALID, Authorization, AuthorizationResource

        with _told():
            body = Authorization.from_json(self._post(url, None).json())
            if body.status == STATUS_VALID:
                return None
            name = body.identifier.value
            ways = [offered for offered in body.challenges if isinstance(offered.chall, HTTP01)]
            if not ways:
                raise Failure(f"the authority offers no challenge by HTTP for {name}")
            answer = ways[0].chall.validation(self._key)
            token = ways[0].chall.encode("token")
            if len(token) > TOKEN or len(answer) > 2 * TOKEN:
                raise Failure("the authority makes tokens that are too long")
            self._open.append(AuthorizationResource(body=body, uri=url))
            return Challenge(token, answer, ways[0])

    def answer(self, challenge: Challenge) -> None:
        """Tell the server that the challenge can be checked."""
        with _told():
            response = challenge.raw.chall.response(self._key)
            self._client.answer_challenge(challenge.raw, response)

    def proved(self) -> bool:
        """Poll the pending authorizations once. Returns True if all are valid.

        Raises AcmeError if the server refused one. It returns after about two seconds, so callers
        must repeat it.
        """
        from acme.messages import STATUS_PENDING, STATUS_VALID

        ends, failed = time.monotonic() + PIECE.total_seconds(), []
        with _told():
            for _ in range(len(self._open)):
                if time.monotonic() > ends:
                    break
                one, _answer = self._client.poll(self._open.popleft())
                if one.body.status == STATUS_PENDING:
                    self._open.append(one)
                elif one.body.status != STATUS_VALID:
                    failed.append(one)
        if failed:
            raise _refused(failed)
        if self._open:
            time.sleep(PAUSE)
        return not self._open

    def finish(self) -> None:
        """Tell the server to issue the certificate."""
        with _told():
            self._order = self._client.begin_finalization(self._asked)

    def issued(self) -> str | None:
        """Poll for the certificate chain, as PEM. None if it is not issued yet."""
        from acme import errors

        with _told():
            try:  # the library uses local time
                ends = datetime.datetime.now() + PIECE  # noqa: DTZ005
                self._order = self._client.poll_finalization(self._asked, ends)
            except errors.TimeoutError:
                return None
        return str(self._asked.fullchain_pem)

    def revoke(self, chain: str, reason: Reason) -> None:
        """Revoke the first certificate of a chain with this account.

        It is no error if it is revoked already.
        """
        from acme.messages import Error

        own = x509.load_pem_x509_certificate(chain.encode())
        with _told():
            try:
                self._client.revoke(own, CODES[reason])
            except Error as problem:
                if problem.code != REVOKED:
                    raise

    def close(self) -> None:
        """Close the connections to the server.

        `Session.close` only forgets them: they stay open as long as an exception refers to them.
        """
        from requests.adapters import HTTPAdapter

        for adapter in self._net.session.adapters.values():
            if isinstance(adapter, HTTPAdapter):
                pools = adapter.poolmanager.pools
                for key in pools.keys():  # noqa: SIM118 - it cannot be iterated over
                    pools[key].close()
        self._net.session.close()

    def _post(self, url: str, said: Any) -> "Response":
        """Send a signed request. Without a body it reads the resource (POST-as-GET)."""
        nonces = self._client.directory["newNonce"]
        return self._net.post(url, said, new_nonce_url=nonces)

    @property
    def _asked(self) -> "OrderResource":
        """The current order, which must exist."""
        assert self._order is not None  # noqa: S101 - `create_order` comes first
        return self._order


@asynccontextmanager
async def connect(server: Server, account_key: str) -> AsyncGenerator[Client]:
    """Yield a client of an ACME server, and close its connections at the end. Raises AcmeError.

    The exception of a failure would otherwise keep the client and its connections alive.
    """
    client = await asyncio.to_thread(Client, server, account_key)
    try:
        yield client
    finally:
        client.close()


@contextmanager
def _told() -> Generator[None]:
    """Convert exceptions of the library to AcmeError. Texts contain no key."""
    from acme import errors, messages
    from josepy.errors import DeserializationError
    from requests.exceptions import RequestException, SSLError

    try:
        yield
    except messages.Error as problem:
        raise _said(problem) from None
    except errors.IssuanceError as problem:
        raise _said(problem.error) from None
    except SSLError:
        text = "the ACME server's certificate is not to be trusted: set MERGANSER_ACME_CA"
        raise Failure(text) from None
    except (RequestException, OSError) as problem:
        text = f"the ACME server does not answer: {type(problem).__name__}"
        raise Failure(text) from None
    except (errors.Error, DeserializationError, KeyError, *SENSELESS) as problem:
        text = f"the ACME server says what makes no sense: {type(problem).__name__}"
        raise Failure(text) from None


def _said(problem: Any) -> Failure:
    """The failure for a problem document (RFC 8555, section 6.7), with its subproblems."""
    code = str(problem.code or "error")
    words = [f"{code}: {problem.detail or 'no reason given'}"]
    for one in problem.subproblems or ():
        name = f"{one.identifier.value}: " if one.identifier else ""
        words.append(f"{name}{one.detail or one.code or 'no reason given'}")
    return Failure("; ".join(words), code=code)


def _refused(failed: "Sequence[AuthorizationResource]") -> Failure:
    """The failure for refused authorizations: the problem of the first, and the other names."""
    names = [str(authorization.body.identifier.value) for authorization in failed]
    problems = (
        challenge.error for challenge in failed[0].body.challenges if challenge.error is not None
    )
    problem = next(problems, None)
    why = _said(problem) if problem else Failure("the challenge failed")
    return failure_of(names, str(why), code=why.code)


def failure_of(names: Sequence[str], why: str, *, code: str = "") -> Failure:
    """The failure for these names, with the reason of the first one."""
    others = f"; and not {', '.join(names[1:])}" if names[1:] else ""
    return Failure(f"{names[0]}: {why}{others}", code=code)
