"""Settings of HTTP: documents, connections, limits and timeouts."""

from datetime import timedelta
from typing import Literal

from pydantic import Field, field_validator
from pydantic_settings import BaseSettings

from merganser.settings.value_types import (
    ByteSize,
    Duration,
    WordList,
    check_networks,
    table_default,
)


class HttpSettings(BaseSettings):
    """Settings of HTTP. Each is the environment variable `MERGANSER_` with the name in capitals."""

    allowed_documents: Literal["any", "trusted"] = Field(
        default="any",
        description="Which GraphQL documents run: any, or trusted for only those that `merganser "
        "documents add` has stored.",
        json_schema_extra={"hint": "write any or trusted"},
    )
    compiled_executor: bool = Field(
        default=True,
        description="Complete responses by functions that are generated for each document. off: "
        "by graphql-core, for comparison.",
        json_schema_extra={"hint": "write on or off"},
    )
    row_cache_size: ByteSize = Field(
        default=16 << 20,
        ge=0,
        description="Memory of each process for encoded rows of lists that clients read "
        "repeatedly. 0: off.",
        json_schema_extra={"hint": "write a size such as 16 MiB"},
    )
    http_connections: int = Field(
        default=10_000,
        ge=1,
        description="Largest number of concurrent HTTP and WebSocket connections. Further ones "
        "get 503.",
    )
    http_connections_per_client: int = Field(
        default=1000,
        ge=1,
        description="Largest number of concurrent connections of one IP address, except trusted "
        "proxies. Further ones get 503.",
    )
    subscriptions_per_user: int = Field(
        default=200,
        ge=1,
        description="Largest number of concurrent WebSockets and event streams of one user, and "
        "of one IP address for anonymous clients.",
    )
    concurrent_operations: int = Field(
        default=1000,
        ge=2,
        description="Largest number of concurrent queries and mutations. Further ones get 503.",
    )
    concurrent_operations_per_client: int = Field(
        default=100,
        ge=1,
        description="Largest number of concurrent queries and mutations of one user or IP "
        "address. Further ones get 429. A key of ADMIN or above can use half of "
        "MERGANSER_CONCURRENT_OPERATIONS.",
    )
    cost_budget_anonymous: int = Field(
        default=250,
        ge=0,
        description="Cost points per second for the anonymous clients of one IP address. Unused "
        "points are kept for 100 seconds. 0: unlimited.",
    )
    cost_budget_user: int = Field(
        default=2500,
        ge=0,
        description="Cost points per second for each user. 0: unlimited.",
    )
    cost_budget_admin: int = Field(
        default=50_000,
        ge=0,
        description="Cost points per second for each user or key with the role ADMIN or above. "
        "0: unlimited.",
    )
    response_max_size: ByteSize = Field(
        default=32 << 20,
        ge=1 << 20,
        description="Size of one GraphQL response, and of each event of a subscription. A larger "
        "one ends with the error RESPONSE_TOO_LARGE.",
    )
    introspection: Literal["open", "signed-in", "off"] = Field(
        default="open",
        description="Who can read the schema by introspection: open, signed-in or off. Others "
        "get no suggestions in errors either.",
        json_schema_extra={"hint": "write open, signed-in or off"},
    )
    trusted_proxies: WordList = Field(
        default=("127.0.0.1", "::1"),
        description="Addresses and networks of your reverse proxies, separated by spaces, or "
        "none. Only their X-Forwarded-For and X-Forwarded-Proto are trusted.",
        json_schema_extra={
            **table_default("127.0.0.1 ::1"),
            "hint": "write addresses and networks such as 10.0.0.0/8, or none",
        },
    )
    http_header_timeout: Duration = Field(
        default=timedelta(seconds=10),
        description="Time in which the header of a request must arrive.",
    )
    http_body_timeout: Duration = Field(
        default=timedelta(seconds=10),
        description="Time in which the body of a GraphQL request must arrive.",
    )
    websocket_init_timeout: Duration = Field(
        default=timedelta(seconds=5),
        description="Time in which a WebSocket must send connection_init.",
    )
    http_keep_alive: Duration = Field(
        default=timedelta(seconds=5),
        description="How long an idle connection stays open. Set it longer than the keep-alive "
        "of your proxy.",
    )
    http_write_timeout: Duration = Field(
        default=timedelta(seconds=30),
        description="A client that reads nothing of a response for this time is disconnected.",
    )

    @field_validator("trusted_proxies")
    @classmethod
    def _check_proxies(cls, proxies: tuple[str, ...]) -> tuple[str, ...]:
        return () if proxies == ("none",) else check_networks(proxies)
