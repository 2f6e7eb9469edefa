"""Settings of incoming mail: authentication checks, trusted headers and quarantine."""

from datetime import timedelta
from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator
from pydantic_settings import BaseSettings

from merganser.settings.value_types import DEFAULT_OPTIONS, ByteSize, Duration, WordList
from models.runtime.options import MIB


class IncomingSettings(BaseSettings):
    """Settings of incoming mail. Each is the variable `MERGANSER_` with the name in capitals."""

    authserv_ids: WordList = Field(
        default=DEFAULT_OPTIONS.authserv_ids,
        description="authserv-ids (RFC 8601) of the server that delivers by LMTP, separated by "
        "spaces. Only `Authentication-Results` with one of them are trusted.",
    )
    authserv_hops: int = Field(
        default=DEFAULT_OPTIONS.authserv_hops,
        ge=1,
        le=20,
        description="Number of the `Received` field, counted from the top, that the server "
        "writes which receives mail from outside. Only fields above it are trusted.",
    )
    authentication_check: Literal["off", "smtp", "all"] = Field(
        default="smtp",
        description="Which incoming mail is checked by SPF, DKIM, DMARC and ARC. smtp: mail "
        "received by SMTP. all: also mail received by LMTP, without SPF. off: none, and the "
        "results of the server in front are trusted for all mail.",
        json_schema_extra={"hint": "write off, smtp or all"},
    )
    dmarc_on_failure: Literal["ignore", "junk", "reject"] = Field(
        default="junk",
        description="What happens to mail that fails DMARC if the policy of its domain is "
        "quarantine or reject. junk: delivery to Junk. reject: rejection if the policy is reject, "
        "else delivery to Junk. ignore: nothing.",
        json_schema_extra={"hint": "write ignore, junk or reject"},
    )
    arc_trusted_domains: WordList = Field(
        default=DEFAULT_OPTIONS.arc_trusted_domains,
        description="Domains of servers, such as mailing lists, whose ARC seals are trusted, "
        "separated by spaces. If their seal says that DMARC passed, it counts as passed.",
    )
    arc_keys_folder: Path | None = Field(
        default=DEFAULT_OPTIONS.arc_keys_folder,
        description="Folder of the keys that seal forwarded mail by ARC: a file "
        "`selector._domainkey.example.org.pem` for each domain, readable only by the "
        "system user of the server. `merganser domain arc-key` makes one.",
    )
    spam_headers: WordList = Field(
        default=DEFAULT_OPTIONS.spam_headers,
        description="Header fields of a spam filter that are trusted in mail received by LMTP, "
        "separated by spaces, or none. The filter must remove such fields from incoming mail.",
        json_schema_extra={
            "default": " ".join(DEFAULT_OPTIONS.spam_headers),
            "hint": f"write some of {' '.join(DEFAULT_OPTIONS.spam_headers)}, or none",
        },
    )

    spam_quarantine_score: int = Field(
        default=DEFAULT_OPTIONS.spam_quarantine_score,
        ge=0,
        le=100,
        description="Spam score (0 to 100) from which mail is quarantined and not delivered to "
        "Junk. 0: never.",
    )
    quarantine_retention: Duration = Field(
        default=DEFAULT_OPTIONS.quarantine_retention,
        ge=timedelta(days=1),
        le=timedelta(days=366),
        description="How long messages that nobody releases stay in the quarantine.",
    )
    quarantine_max_message_size: ByteSize = Field(
        default=DEFAULT_OPTIONS.quarantine_max_message_size,
        ge=1 << 16,
        le=256 * MIB,
        description="Largest message that is quarantined.",
    )
    quarantine_max_messages_per_user: int = Field(
        default=DEFAULT_OPTIONS.quarantine_max_messages_per_user,
        ge=1,
        le=10_000,
        description="Largest number of messages of a user in the quarantine. The oldest are "
        "deleted if there are more.",
    )
    quarantine_max_bytes_per_user: ByteSize = Field(
        default=DEFAULT_OPTIONS.quarantine_max_bytes_per_user,
        ge=1 << 16,
        description="Total size of the messages of a user in the quarantine. The oldest are "
        "deleted if it is larger.",
    )
    quarantine_url: str = Field(
        default=DEFAULT_OPTIONS.quarantine_url,
        pattern=r"^(https?://\S+)?$",
        max_length=500,
        description="Page where users see their quarantine. Quarantine notices link to it.",
        json_schema_extra={"hint": "write https:// and a page, or nothing"},
    )

    @field_validator("spam_headers")
    @classmethod
    def _normalize_spam_headers(cls, field_names: tuple[str, ...]) -> tuple[str, ...]:
        known_fields = {name.lower(): name for name in DEFAULT_OPTIONS.spam_headers}
        if field_names == ("none",):
            return ()
        for field_name in field_names:
            if field_name.lower() not in known_fields:
                raise ValueError("not a supported header field of a spam filter")
        return tuple(known_fields[field_name.lower()] for field_name in field_names)
