"""Settings of DKIM keys and MTA-STS policies of hosted domains."""

from datetime import timedelta
from typing import Literal

from pydantic import Field
from pydantic_settings import BaseSettings

from merganser.settings.value_types import DEFAULT_OPTIONS, Duration


class SigningSettings(BaseSettings):
    """Settings of signatures. Each is the variable `MERGANSER_` with the name in capitals."""

    dkim_sign_host_domain: bool = Field(
        default=DEFAULT_OPTIONS.dkim_sign_host_domain,
        description="Sign outgoing mail also with the DKIM keys of the domain of this server's "
        "host name, in addition to those of the author's domain.",
    )
    mta_sts_mode: Literal["off", "testing", "enforce"] = Field(
        default="off",
        description="Mode of the MTA-STS policy (RFC 8461) that is served for the domains here at "
        "`https://mta-sts.example.org/.well-known/mta-sts.txt`. testing: failures of encryption "
        "are only reported. enforce: mail is only sent encrypted. off: there is no policy.",
        json_schema_extra={"hint": "write off, testing or enforce"},
    )
    dkim_retired_key_retention: Duration = Field(
        default=DEFAULT_OPTIONS.dkim_retired_key_retention,
        ge=timedelta(days=1),
        description="How long DKIM keys that no longer sign are kept. Their DNS records are "
        "needed for the same time, since recipients may still check signatures.",
    )
