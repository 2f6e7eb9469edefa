"""Pages of accounts and groups, with the charge for their work and a time limit."""

import asyncio
from collections.abc import Awaitable
from typing import TypeVar

from scim2_models import TooManyException

from graph.scim.representation import SCIM_IDS
from graph.scim.service import (
    ACCOUNT_POINTS,
    ACCOUNTS_PER_INDEX_POINT,
    ACCOUNTS_PER_SCAN_POINT,
    QUERY_SECONDS,
    ScimCall,
)
from resolvers.scim.account_listing import (
    AccountPage,
    account_query,
    count_tenant_accounts,
    load_account_page,
)
from resolvers.scim.filter_attributes import FilterAccess
from resolvers.scim.groups import GroupPage, load_group_page
from resolvers.scim.search_parameters import ScimSearch

ACCOUNTS_PER_POINT = {
    FilterAccess.INDEX: ACCOUNTS_PER_INDEX_POINT,
    FilterAccess.SCAN: ACCOUNTS_PER_SCAN_POINT,
}

Page = TypeVar("Page", AccountPage, GroupPage)


async def load_account_page_and_charge(call: ScimCall, search: ScimSearch) -> AccountPage:
    """Load a page of accounts.

    Raises RateLimited, TooManyException after the time limit, or the errors of `account_query`.
    """
    query = account_query(call.ctx, search, SCIM_IDS)
    if accounts_per_point := ACCOUNTS_PER_POINT.get(query.access):
        call.charge(await count_tenant_accounts(call.ctx) // accounts_per_point)
    page = await _result_within_time_limit(load_account_page(call.ctx, query))
    points = len(page.accounts) * ACCOUNT_POINTS
    if search.filter and query.access is FilterAccess.LOOKUP:
        points += page.total_count // ACCOUNTS_PER_SCAN_POINT  # it reads and sorts these
    call.charge(points)
    return page


async def load_group_page_and_charge(
    call: ScimCall, search: ScimSearch, *, with_members: bool
) -> GroupPage:
    """Load a page of groups.

    Raises RateLimited, TooManyException after the time limit, or the errors of `load_group_page`.
    """
    page = await _result_within_time_limit(
        load_group_page(call.ctx, search, SCIM_IDS, with_members=with_members)
    )
    call.charge(len(page.groups) * ACCOUNT_POINTS)
    call.charge_members(sum(len(group.member_ids) for group in page.groups))
    return page


async def _result_within_time_limit(page: Awaitable[Page]) -> Page:
    try:
        async with asyncio.timeout(QUERY_SECONDS) as clock:
            return await page
    except TimeoutError:
        if not clock.expired():
            raise
        text = "The query takes too long: filter by id, userName, externalId or emails.value."
        raise TooManyException(detail=text) from None
