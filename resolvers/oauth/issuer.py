"""The issuer: the URL of this server in discovery documents, tokens and responses."""

from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import ip_address
from urllib.parse import urlsplit

from models.errors import ServiceUnavailable
from models.runtime.options import Options

SubjectOfUser = Callable[[int], str]


@dataclass(frozen=True, slots=True)
class Issuer:
    """The issuer, and the function that returns the subject (`sub`) of a user by its id."""

    url: str  # without a slash at the end
    subject_of_user: SubjectOfUser

    @property
    def origin(self) -> str:
        """The origin of the pages."""
        parts = urlsplit(self.url)
        return f"{parts.scheme}://{parts.netloc}".lower()

    @property
    def is_https(self) -> bool:
        """True if browsers reach the server by TLS."""
        return self.url.startswith("https:")


def require_issuer(options: Options, subject_of_user: SubjectOfUser) -> Issuer:
    """Return the issuer: the setting `public_url`.

    Raises ServiceUnavailable if it is not set, or is neither https nor a loopback address.
    """
    url = options.public_url.rstrip("/")
    parts = urlsplit(url)
    if parts.scheme == "https" or (parts.scheme == "http" and _is_loopback(parts.hostname)):
        return Issuer(url, subject_of_user)
    text = "OAuth requires a public URL with https: set MERGANSER_PUBLIC_URL."
    raise ServiceUnavailable(text, component="oauth")


def _is_loopback(host: str | None) -> bool:
    if host == "localhost":
        return True
    try:
        return ip_address(host or "").is_loopback
    except ValueError:
        return False
