"""Settings of sign-in at the identity providers of domains."""

from datetime import timedelta

from pydantic import Field
from pydantic_settings import BaseSettings

from merganser.settings.value_types import DEFAULT_OPTIONS, Duration


class IdentityProviderSettings(BaseSettings):
    """Settings of identity providers. Each is `MERGANSER_` with the name in capitals."""

    identity_providers_allow_private_networks: bool = Field(
        default=DEFAULT_OPTIONS.identity_providers_allow_private_networks,
        description="Identity providers of domains can use private, loopback and link-local "
        "addresses, and http.",
        json_schema_extra={"hint": "write on or off"},
    )
    identity_providers_check_interval: Duration = Field(
        default=DEFAULT_OPTIONS.identity_providers_check_interval,
        gt=timedelta(0),
        description="Time between two checks whether an account still exists at its identity "
        "provider. Checks need the scope `offline_access`.",
    )
