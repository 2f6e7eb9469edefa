"""Settings of DKIM keys and MTA-STS policies of hosted domains."""

from datetime import timedelta
from typing import Literal

from pydantic import Field
from pydantic_settings import BaseSettings

from merganser.settings.value_types import DEFAULT_OPTIONS, Duration


class SigningSettings(BaseSettings):
    """Settings of signatures. Each is the variable `MERGANSER_` with the name in capitals."""

    dkim_host: bool = Field(
        default=DEFAULT_OPTIONS.dkim_host,
        description="Sign what leaves also with the keys of the domain that this machine is in, "
        "beside those of the author's domain.",
    )
    mta_sts: Literal["off", "testing", "enforce"] = Field(
        default="off",
        description="The policy (MTA-STS) that is served for the domains here, at "
        "`https://mta-sts.example.org/.well-known/mta-sts.txt`: testing, failures of encryption "
        "are only reported; enforce, mail comes encrypted or not at all; off, there is none.",
        json_schema_extra={"hint": "write off, testing or enforce"},
    )
    dkim_overlap: Duration = Field(
        default=DEFAULT_OPTIONS.dkim_overlap,
        ge=timedelta(days=1),
        description="Keys that have been replaced are kept so long, and their records are needed: "
        "what they have signed may still be checked.",
    )
