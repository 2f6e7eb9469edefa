"""Settings of the scanners rspamd and clamd."""

import re
from datetime import timedelta
from typing import Any, Literal

from pydantic import Field, SecretStr, field_validator
from pydantic_settings import BaseSettings

from mail.network.outbound_http import parse_http_target
from merganser.settings.value_types import DEFAULT_OPTIONS, HOST_PORT_PATTERN, ByteSize, Duration
from models.errors import InvalidInput

# an SMTP client waits for 10 minutes
MIN_TIMEOUT, MAX_TIMEOUT = timedelta(seconds=1), timedelta(minutes=4)
ON_FAILURE_HINT: dict[str, Any] = {"hint": "write accept or defer"}


class ScannerSettings(BaseSettings):
    """Settings of scanners. Each is the variable `MERGANSER_` with the name in capitals."""

    rspamd_url: str = Field(
        default=DEFAULT_OPTIONS.rspamd_url,
        description="URL of rspamd, which scores incoming mail, as in http://127.0.0.1:11333.",
        json_schema_extra={"hint": "write http://host:port"},
    )
    rspamd_password: SecretStr | None = Field(
        default=DEFAULT_OPTIONS.rspamd_password,
        description="Password of the rspamd controller (`enable_password`), which training needs.",
    )
    rspamd_timeout: Duration = Field(
        default=DEFAULT_OPTIONS.rspamd_timeout,
        ge=MIN_TIMEOUT,
        le=MAX_TIMEOUT,
        description="How long a message waits for rspamd.",
    )
    rspamd_max_size: ByteSize = Field(
        default=DEFAULT_OPTIONS.rspamd_max_size,
        description="Largest message that is sent to rspamd. Larger ones get no score.",
    )
    rspamd_on_failure: Literal["accept", "defer"] = Field(
        default="accept",
        description="What happens to mail while rspamd does not answer: accept, delivery without "
        "a score; defer, a temporary error (4xx).",
        json_schema_extra=ON_FAILURE_HINT,
    )
    rspamd_learn_url: str = Field(
        default=DEFAULT_OPTIONS.rspamd_learn_url,
        description="URL of the rspamd controller for training, as in http://127.0.0.1:11334. It "
        "learns messages that users move to Junk or out of it. Without it there is no training.",
        json_schema_extra={"hint": "write http://host:port"},
    )
    clamd_address: str = Field(
        default=DEFAULT_OPTIONS.clamd_address,
        description="Address of clamd, which scans incoming mail for viruses: host:port, or "
        "unix: and the path of its socket.",
        json_schema_extra={"hint": "write host:port or unix:/path"},
    )
    clamd_timeout: Duration = Field(
        default=DEFAULT_OPTIONS.clamd_timeout,
        ge=MIN_TIMEOUT,
        le=MAX_TIMEOUT,
        description="How long a message waits for clamd.",
    )
    clamd_max_size: ByteSize = Field(
        default=DEFAULT_OPTIONS.clamd_max_size,
        description="Largest message that is sent to clamd. Larger ones are not scanned. "
        "StreamMaxLength of clamd should not be less.",
    )
    clamd_on_failure: Literal["accept", "defer"] = Field(
        default="accept",
        description="What happens to mail while clamd does not answer: accept, delivery without "
        "a scan; defer, a temporary error (4xx).",
        json_schema_extra=ON_FAILURE_HINT,
    )
    virus_action: Literal["reject", "tag", "quarantine"] = Field(
        default="reject",
        description="What happens to mail with a virus: reject; tag, delivery to Junk; "
        "quarantine, or rejection if it is too large for the quarantine.",
        json_schema_extra={"hint": "write reject, tag or quarantine"},
    )

    outbound_scan: Literal["off", "viruses", "spam"] = Field(
        default="off",
        description="Scan of mail that users send: off; viruses, by clamd; spam, by clamd and "
        "rspamd. Infected mail and spam is not sent, and the user is told.",
        json_schema_extra={"hint": "write off, viruses or spam"},
    )

    @field_validator("rspamd_url", "rspamd_learn_url")
    @classmethod
    def _check_scanner_url(cls, url: str) -> str:
        if url:
            try:
                parse_http_target(url, allow_private=True)
            except InvalidInput as problem:
                raise ValueError(problem.message) from None
        if "?" in url:
            raise ValueError("must have no query")
        return url

    @field_validator("clamd_address")
    @classmethod
    def _check_clamd_address(cls, address: str) -> str:
        if not address or address.startswith("unix:/"):
            return address
        if (
            not re.fullmatch(HOST_PORT_PATTERN, address)
            or not 0 < int(address.rpartition(":")[2]) < 1 << 16
        ):
            raise ValueError("must be a host and port, or a path")
        return address
