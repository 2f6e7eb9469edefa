"""The worker that checks accounts at identity providers, as a way of writing to the database."""

from resolvers.identity_providers.account_checks import (
    check_account_and_end_access_if_ended,
    reserve_links_due_for_check,
)
from tests.support.identity_providers.scripted_provider import run_scripted_provider
from tests.support.oauth.oauth_flow import add_client, open_oauth_browser
from tests.support.oauth.provider_flow import add_provider, tokens_by_provider
from tests.support.write_paths.write_path import (
    WriteAction,
    WritePathContext,
    register_write_path,
)


@register_write_path("resolvers.identity_providers.account_checks.check_accounts_forever")
async def suspend_account_of_identity_provider(stage: WritePathContext) -> WriteAction:
    environment = stage.environment
    browser = await stage.stack.enter_async_context(
        open_oauth_browser(
            environment, stage.folder, identity_providers_allow_private_networks=True
        )
    )
    provider = await stage.stack.enter_async_context(
        run_scripted_provider(now=lambda: environment.now().timestamp())
    )
    await add_provider(environment, provider.issuer, active_claim="active")
    provider.claims["active"] = True
    await tokens_by_provider(browser, await add_client(environment), provider)
    provider.claims["active"] = False
    stage.clock.tick(minutes=61)

    async def action() -> None:
        (link,) = await reserve_links_due_for_check(environment)
        await check_account_and_end_access_if_ended(environment, link)

    return action
