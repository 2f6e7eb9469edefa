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

REQUEST_TIMEOUT = 15  # seconds, for one response
RSA_KEY_SIZE = 2048
DEFAULT_ADVICE_SECONDS = 6 * 60 * 60  # without Retry-After (RFC 9773, section 4.3.3)
POLL_TIME = datetime.timedelta(seconds=2)  # maximum of one call, so that the server can stop
POLL_PAUSE = 1.0  # seconds between two polls
MAX_MESSAGE_CHARACTERS = 300  # of an error text
MAX_TOKEN_CHARACTERS = 200  # the key authorization can have twice as many
CHALLENGE_PATH = "/.well-known/acme-challenge/"
RATE_LIMITED = "rateLimited"
UNKNOWN_ACCOUNT = "accountDoesNotExist"
ALREADY_REVOKED, UNREASONABLE = "alreadyRevoked", "badRevocationReason"
PARSE_ERRORS = (
    ValueError,
    TypeError,
    AttributeError,
    OverflowError,
)  # what invalid responses raise
BINDING_MISSING_TEXT = (
    "the authority asks for an account outside of ACME: set MERGANSER_ACME_EAB_KEY_ID and "
    "MERGANSER_ACME_EAB_HMAC"
)


class AcmeError(Exception):
    """An ACME request failed: a text for administrators, and the error type of RFC 8555 if any."""

    def __init__(self, message: str, *, error_type: str = "") -> None:
        text = "".join(sign if sign.isprintable() else " " for sign in message)
        super().__init__(text[:MAX_MESSAGE_CHARACTERS])
        self.code = error_type


class RevocationReason(StrEnum):
    """The reason for revoking a certificate (RFC 5280, section 5.3.1)."""

    UNSPECIFIED = "UNSPECIFIED"
    KEY_COMPROMISE = "KEY_COMPROMISE"
    AFFILIATION_CHANGED = "AFFILIATION_CHANGED"
    SUPERSEDED = "SUPERSEDED"
    CESSATION_OF_OPERATION = "CESSATION_OF_OPERATION"


REASON_CODES = {
    RevocationReason.UNSPECIFIED: 0,
    RevocationReason.KEY_COMPROMISE: 1,
    RevocationReason.AFFILIATION_CHANGED: 3,
    RevocationReason.SUPERSEDED: 4,
    RevocationReason.CESSATION_OF_OPERATION: 5,
}


@dataclass(frozen=True, slots=True)
class AcmeServer:
    """An ACME server: its directory URL, CA file, and external account binding."""

    directory_url: str
    ca_file: Path | None = None
    user_agent: str = "merganser"
    external_binding: tuple[str, str] | None = field(
        default=None, repr=False
    )  # key id and HMAC, base64url


@dataclass(frozen=True, slots=True)
class RenewalAdvice:
    """The window in which a server suggests the renewal (RFC 9773), and how long it is valid."""

    start: datetime.datetime
    end: datetime.datetime
    valid_for: datetime.timedelta


@dataclass(frozen=True, slots=True)
class HttpChallenge:
    """An HTTP-01 challenge: the key authorization that the server must find under the token."""

    token: str
    key_authorization: str
    challenge_body: Any = field(repr=False)


def new_account_key() -> str:
    """Generate an ECDSA key for an ACME account, as PEM."""
    return _private_key_pem(ec.generate_private_key(ec.SECP256R1()))


def new_certificate_key() -> str:
    """Generate an RSA key for a certificate, as PEM. All mail servers support RSA."""
    return _private_key_pem(rsa.generate_private_key(65537, RSA_KEY_SIZE))


def _private_key_pem(private_key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey) -> str:
    no_encryption, key_format = serialization.NoEncryption(), serialization.PrivateFormat.PKCS8
    return private_key.private_bytes(Encoding.PEM, key_format, no_encryption).decode()


def certificate_id(chain_pem: str) -> str | None:
    """The renewal id (RFC 9773, section 4.1) of the first certificate of a PEM chain.

    None if the certificate has no authority key identifier.
    """
    certificate = x509.load_pem_x509_certificate(chain_pem.encode())
    try:
        extension = certificate.extensions.get_extension_for_class(x509.AuthorityKeyIdentifier)
    except (x509.ExtensionNotFound, ValueError):
        return None
    serial = certificate.serial_number.to_bytes(
        certificate.serial_number.bit_length() // 8 + 1, "big"
    )
    key = extension.value.key_identifier
    return f"{_base64url(key)}.{_base64url(serial)}" if key else None


def _base64url(octets: bytes) -> str:
    return urlsafe_b64encode(octets).decode().rstrip("=")


def certificate_request(key_pem: str, dns_names: Sequence[str]) -> bytes:
    """The certificate signing request for these names, as PEM."""
    private_key: Any = serialization.load_pem_private_key(key_pem.encode(), None)
    alternative_names = x509.SubjectAlternativeName([x509.DNSName(name) for name in dns_names])
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    has_own_digest = isinstance(private_key, ed25519.Ed25519PrivateKey | ed448.Ed448PrivateKey)
    csr = builder.add_extension(alternative_names, critical=False).sign(
        private_key, None if has_own_digest else hashes.SHA256()
    )
    return csr.public_bytes(Encoding.PEM)


class AcmeClient:
    """A session with an ACME server. All methods block and raise AcmeError."""

    def __init__(self, server: AcmeServer, account_key_pem: str) -> None:
        from acme.client import ClientNetwork, ClientV2
        from josepy.jwa import ES256
        from josepy.jwk import JWKEC

        key: Any = serialization.load_pem_private_key(account_key_pem.encode(), None)
        verify: Any = str(server.ca_file) if server.ca_file else True
        self._key = JWKEC(key=key)
        self._network = ClientNetwork(
            self._key,
            alg=ES256,
            user_agent=server.user_agent,
            timeout=REQUEST_TIMEOUT,
            verify_ssl=verify,
        )
        self._binding = server.external_binding
        self._current_order: OrderResource | None = None
        self._pending: deque[AuthorizationResource] = deque()  # authorizations without a result
        try:
            with _acme_errors():
                directory = ClientV2.get_directory(server.directory_url, self._network)
        except AcmeError:
            self.close()
            raise
        self._client = ClientV2(directory, self._network)

    @property
    def caa_identities(self) -> tuple[str, ...]:
        """The CAA identities of the authority. Empty if it publishes none."""
        metadata = self._client.directory.to_partial_json().get("meta")
        published = getattr(metadata, "caa_identities", None) or ()
        return tuple(str(identity).lower() for identity in published)

    @property
    def has_renewal_info(self) -> bool:
        """True if the server publishes renewal windows (RFC 9773)."""
        return "renewalInfo" in self._client.directory.to_partial_json()

    def load_renewal_advice(self, chain_pem: str) -> RenewalAdvice:
        """Load the suggested renewal window of a certificate. Raises AcmeError if it is invalid.

        The library's renewal_time accepts windows that end before they start, which are invalid
        (RFC 9773, section 4.2).
        """
        from acme.client import ClientV2
        from acme.messages import RenewalInfo

        renewal_id = certificate_id(chain_pem)
        if renewal_id is None:
            raise AcmeError("the certificate does not say which key signed it")
        with _acme_errors():
            base_url = str(self._client.directory["renewalInfo"]).rstrip("/")
            response = self._network.get(f"{base_url}/{renewal_id}")
            window = RenewalInfo.from_json(response.json()).suggested_window
            local_now = datetime.datetime.now()  # noqa: DTZ005 - the library uses local time
            valid_for = ClientV2.retry_after(response, DEFAULT_ADVICE_SECONDS) - local_now
            if not window.start < window.end:
                raise AcmeError("the authority's window for the renewal ends before it starts")
            return RenewalAdvice(window.start, window.end, valid_for)

    def open_account(self, account_url: str | None, contact_address: str) -> str:
        """Use the account with this URL, or create one and agree to the terms. Returns its URL."""
        from acme import errors
        from acme.messages import NewRegistration, Registration, RegistrationResource

        if account_url:
            self._network.account = RegistrationResource(uri=account_url, body=Registration())
            return account_url
        with _acme_errors():
            registration = NewRegistration.from_data(
                email=contact_address or None,
                terms_of_service_agreed=True,
                external_account_binding=self._external_account_binding(),
            )
            try:
                account = self._client.new_account(registration)
            except errors.ConflictError as conflict:
                self._network.account = RegistrationResource(
                    uri=str(conflict.location), body=Registration()
                )
                return str(conflict.location)
        return str(account.uri)

    def _external_account_binding(self) -> dict[str, Any] | None:
        """The external account binding (RFC 8555, section 7.3.4), if the server requires one.

        Raises AcmeError if it is not configured.
        """
        from acme.messages import ExternalAccountBinding

        if not self._client.external_account_required():
            return None
        if self._binding is None:
            raise AcmeError(BINDING_MISSING_TEXT)
        public_key = self._key.public_key()
        return ExternalAccountBinding.from_data(public_key, *self._binding, self._client.directory)

    def create_order(
        self, csr_pem: bytes, dns_names: Sequence[str], replaced_id: str | None = None
    ) -> list[str]:
        """Order a certificate for these names. Returns the authorization URLs.

        `replaced_id` is the renewal id of the certificate that it replaces (RFC 9773, section 5).
        """
        from acme.messages import Order, OrderResource

        with _acme_errors():
            response = self._post_order(dns_names, replaced_id)
            body = Order.from_json(response.json())
            authorization_urls = [str(url) for url in body.authorizations]
            if len(authorization_urls) > len(dns_names):
                raise AcmeError("the authority wants more proved than was asked for")
            self._current_order = OrderResource(
                body=body, uri=response.headers["Location"], authorizations=(), csr_pem=csr_pem
            )
            return authorization_urls

    def _post_order(self, dns_names: Sequence[str], replaced_id: str | None) -> "Response":
        """Send the order, and repeat it without `replaced_id` if the server refuses that."""
        from acme import errors
        from acme.messages import IDENTIFIER_FQDN, Error, Identifier, NewOrder
        from josepy.json_util import field as member

        class ReplacingOrder(NewOrder):  # the library lacks the field
            replaces: str | None = member("replaces", omitempty=True)

        url = self._client.directory["newOrder"]
        identifiers = [Identifier(typ=IDENTIFIER_FQDN, value=name) for name in dns_names]
        if replaced_id:
            try:
                return self._post(
                    url, ReplacingOrder(identifiers=identifiers, replaces=replaced_id)
                )
            except errors.ConflictError:
                pass  # the certificate was replaced already
            except Error as problem:
                if problem.code in (RATE_LIMITED, UNKNOWN_ACCOUNT):
                    raise
        return self._post(url, NewOrder(identifiers=identifiers))

    def load_challenge(self, authorization_url: str) -> HttpChallenge | None:
        """Load the HTTP-01 challenge of an authorization. None if it is valid already."""
        from acme.challenges import HTTP01
        from acme.messages import STATUS_VALID, Authorization, AuthorizationResource

        with _acme_errors():
            body = Authorization.from_json(self._post(authorization_url, None).json())
            if body.status == STATUS_VALID:
                return None
            dns_name = body.identifier.value
            http_challenges = [
                offered for offered in body.challenges if isinstance(offered.chall, HTTP01)
            ]
            if not http_challenges:
                raise AcmeError(f"the authority offers no challenge by HTTP for {dns_name}")
            key_authorization = http_challenges[0].chall.validation(self._key)
            token = http_challenges[0].chall.encode("token")
            if (
                len(token) > MAX_TOKEN_CHARACTERS
                or len(key_authorization) > 2 * MAX_TOKEN_CHARACTERS
            ):
                raise AcmeError("the authority makes tokens that are too long")
            self._pending.append(AuthorizationResource(body=body, uri=authorization_url))
            return HttpChallenge(token, key_authorization, http_challenges[0])

    def answer_challenge(self, challenge: HttpChallenge) -> None:
        """Tell the server that the challenge can be checked."""
        with _acme_errors():
            response = challenge.challenge_body.chall.response(self._key)
            self._client.answer_challenge(challenge.challenge_body, response)

    def poll_authorizations(self) -> bool:
        """Poll the pending authorizations once. Returns True if all are valid.

        Raises AcmeError if the server refused one. It returns after about two seconds, so callers
        must repeat it.
        """
        from acme.messages import STATUS_PENDING, STATUS_VALID

        deadline, failed = time.monotonic() + POLL_TIME.total_seconds(), []
        with _acme_errors():
            for _ in range(len(self._pending)):
                if time.monotonic() > deadline:
                    break
                authorization, _answer = self._client.poll(self._pending.popleft())
                if authorization.body.status == STATUS_PENDING:
                    self._pending.append(authorization)
                elif authorization.body.status != STATUS_VALID:
                    failed.append(authorization)
        if failed:
            raise _failure_of_authorizations(failed)
        if self._pending:
            time.sleep(POLL_PAUSE)
        return not self._pending

    def finalize_order(self) -> None:
        """Tell the server to issue the certificate."""
        with _acme_errors():
            self._current_order = self._client.begin_finalization(self._required_order)

    def poll_certificate(self) -> str | None:
        """Poll for the certificate chain, as PEM. None if it is not issued yet."""
        from acme import errors

        with _acme_errors():
            try:  # the library uses local time
                deadline = datetime.datetime.now() + POLL_TIME  # noqa: DTZ005
                self._current_order = self._client.poll_finalization(self._required_order, deadline)
            except errors.TimeoutError:
                return None
        return str(self._required_order.fullchain_pem)

    def revoke(self, chain_pem: str, reason: RevocationReason) -> None:
        """Revoke the first certificate of a chain with this account.

        It is no error if it is revoked already.
        """
        from acme.messages import Error

        certificate = x509.load_pem_x509_certificate(chain_pem.encode())
        with _acme_errors():
            try:
                self._client.revoke(certificate, REASON_CODES[reason])
            except Error as problem:
                if problem.code != ALREADY_REVOKED:
                    raise

    def close(self) -> None:
        """Close the connections to the server.

        `Session.close` only forgets them: they stay open as long as an exception refers to them.
        """
        from requests.adapters import HTTPAdapter

        for adapter in self._network.session.adapters.values():
            if isinstance(adapter, HTTPAdapter):
                pools = adapter.poolmanager.pools
                for key in pools.keys():  # noqa: SIM118 - it cannot be iterated over
                    pools[key].close()
        self._network.session.close()

    def _post(self, url: str, body: Any) -> "Response":
        """Send a signed request. Without a body it reads the resource (POST-as-GET)."""
        nonce_url = self._client.directory["newNonce"]
        return self._network.post(url, body, new_nonce_url=nonce_url)

    @property
    def _required_order(self) -> "OrderResource":
        """The current order, which must exist."""
        assert self._current_order is not None  # noqa: S101 - `create_order` comes first
        return self._current_order


@asynccontextmanager
async def connect_acme(server: AcmeServer, account_key_pem: str) -> AsyncGenerator[AcmeClient]:
    """Yield a client of an ACME server, and close its connections at the end. Raises AcmeError.

    The exception of a failure would otherwise keep the client and its connections alive.
    """
    client = await asyncio.to_thread(AcmeClient, server, account_key_pem)
    try:
        yield client
    finally:
        client.close()


@contextmanager
def _acme_errors() -> Generator[None]:
    """Convert exceptions of the library to AcmeError. Texts contain no key."""
    from acme import errors, messages
    from josepy.errors import DeserializationError
    from requests.exceptions import RequestException, SSLError

    try:
        yield
    except messages.Error as problem:
        raise _failure_from_problem(problem) from None
    except errors.IssuanceError as problem:
        raise _failure_from_problem(problem.error) from None
    except SSLError:
        text = "the ACME server's certificate is not to be trusted: set MERGANSER_ACME_CA"
        raise AcmeError(text) from None
    except (RequestException, OSError) as problem:
        text = f"the ACME server does not answer: {type(problem).__name__}"
        raise AcmeError(text) from None
    except (errors.Error, DeserializationError, KeyError, *PARSE_ERRORS) as problem:
        text = f"the ACME server says what makes no sense: {type(problem).__name__}"
        raise AcmeError(text) from None


def _failure_from_problem(problem: Any) -> AcmeError:
    """The failure for a problem document (RFC 8555, section 6.7), with its subproblems."""
    error_type = str(problem.code or "error")
    parts = [f"{error_type}: {problem.detail or 'no reason given'}"]
    for subproblem in problem.subproblems or ():
        prefix = f"{subproblem.identifier.value}: " if subproblem.identifier else ""
        parts.append(f"{prefix}{subproblem.detail or subproblem.code or 'no reason given'}")
    return AcmeError("; ".join(parts), error_type=error_type)


def _failure_of_authorizations(authorizations: "Sequence[AuthorizationResource]") -> AcmeError:
    """The failure for refused authorizations: the problem of the first, and the other names."""
    dns_names = [str(authorization.body.identifier.value) for authorization in authorizations]
    problems = (
        challenge.error
        for challenge in authorizations[0].body.challenges
        if challenge.error is not None
    )
    problem = next(problems, None)
    failure = _failure_from_problem(problem) if problem else AcmeError("the challenge failed")
    return failure_of_names(dns_names, str(failure), error_type=failure.code)


def failure_of_names(dns_names: Sequence[str], reason: str, *, error_type: str = "") -> AcmeError:
    """The failure for these names, with the reason of the first one."""
    other_names = f"; and not {', '.join(dns_names[1:])}" if dns_names[1:] else ""
    return AcmeError(f"{dns_names[0]}: {reason}{other_names}", error_type=error_type)
