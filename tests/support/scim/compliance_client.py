"""The client that scim2-tester checks a running server with."""

from typing import Any, cast

import httpx
from scim2_client import BaseSyncSCIMClient

EXAMPLE_COUNT = 100_000


class HttpxScimClient(BaseSyncSCIMClient):
    """A client of scim2-client that sends its requests over a socket."""

    def __init__(self, base_url: str, secret: str) -> None:
        super().__init__()
        self.base_url = base_url
        self.http = httpx.Client(
            base_url=base_url, headers={"Authorization": f"Bearer {secret}"}, timeout=60
        )

    def close(self) -> None:
        """Close the connections."""
        self.http.close()

    def request(self, method: str, url: str, **arguments: Any) -> Any:
        """Send a request and return the response."""
        return self.http.request(method, url, **arguments)

    def _stays_under_base_url(self, endpoint: str) -> bool:
        return not endpoint.startswith("http") or endpoint.startswith(self.base_url)

    def _parse_json(self, response: Any) -> Any:
        return response.json()

    def discover_with_addresses(self, domain: str) -> None:
        """Read the schemas of the server, and let the checker use addresses of a domain.

        Without examples the checker makes up addresses of random domains.
        """
        self.discover()
        account_model = cast("Any", self.provider.model_for("User"))
        email_model = account_model.get_field_root_type("emails")
        email_model.model_fields["value"].examples = [
            f"check{number}@{domain}" for number in range(EXAMPLE_COUNT)
        ]
