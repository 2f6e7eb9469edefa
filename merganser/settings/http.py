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

    documents: Literal["any", "trusted"] = Field(
        default="any",
        description="Which GraphQL documents are run: any, or trusted: only those that "
        "`merganser documents add` has registered.",
        json_schema_extra={"hint": "write any or trusted"},
    )
    compiled_executor: bool = Field(
        default=True,
        description="Complete answers by functions made for each document; off: as graphql-core "
        "does, for comparison.",
        json_schema_extra={"hint": "write on or off"},
    )
    connections: int = Field(
        default=10_000,
        ge=1,
        description="HTTP and WebSocket connections at once; more are answered 503.",
    )
    connections_each: int = Field(
        default=1000,
        ge=1,
        description="Connections of one address at once, but for proxies; more are answered 503.",
    )
    followers_each: int = Field(
        default=200,
        ge=1,
        description="WebSockets and event streams of one user at once, and of one address by those "
        "who have not signed in.",
    )
    operations: int = Field(
        default=1000,
        ge=2,
        description="Queries and mutations that run at once; more are answered 503.",
    )
    operations_each: int = Field(
        default=100,
        ge=1,
        description="Of these, those of one user, or of one address; more are answered 429. A key "
        "of ADMIN or above may have half of all.",
    )
    budget_strangers: int = Field(
        default=250,
        ge=0,
        description="Cost points a second for those of one address who have not signed in; what is "
        "not spent is kept for 100 seconds; 0 is unlimited.",
    )
    budget_users: int = Field(
        default=2500,
        ge=0,
        description="Cost points a second for each user; 0 is unlimited.",
    )
    budget_admins: int = Field(
        default=50_000,
        ge=0,
        description="Cost points a second for each user or key of ADMIN or above; 0 is unlimited.",
    )
    answer_max: ByteSize = Field(
        default=32 << 20,
        ge=1 << 20,
        description="Bytes of one GraphQL answer, and of each event of a subscription. A larger "
        "one ends with the error RESPONSE_TOO_LARGE.",
    )
    introspection: Literal["open", "signed-in", "off"] = Field(
        default="open",
        description="Who may look at the schema: open, signed-in or off. Whoever may not is given "
        "no suggestions in errors either.",
        json_schema_extra={"hint": "write open, signed-in or off"},
    )
    proxies: WordList = Field(
        default=("127.0.0.1", "::1"),
        description="Addresses and networks of proxies before us, with spaces between; none, where "
        "there are none. What they say in X-Forwarded-For and X-Forwarded-Proto is believed.",
        json_schema_extra={
            **table_default("127.0.0.1 ::1"),
            "hint": "write addresses and networks such as 10.0.0.0/8, or none",
        },
    )
    head_timeout: Duration = Field(
        default=timedelta(seconds=10),
        description="A request whose head is not there by then is given up.",
    )
    body_timeout: Duration = Field(
        default=timedelta(seconds=10),
        description="The same for the body of a GraphQL request.",
    )
    init_timeout: Duration = Field(
        default=timedelta(seconds=5),
        description="A WebSocket that does not begin with connection_init by then is closed.",
    )
    keep_alive: Duration = Field(
        default=timedelta(seconds=5),
        description="How long a connection stays open for another request. More than the proxy "
        "before us keeps it, if there is one.",
    )
    write_timeout: Duration = Field(
        default=timedelta(seconds=30),
        description="Whoever reads nothing of an answer for so long is dropped.",
    )

    @field_validator("proxies")
    @classmethod
    def _check_proxies(cls, proxies: tuple[str, ...]) -> tuple[str, ...]:
        return () if proxies == ("none",) else check_networks(proxies)
