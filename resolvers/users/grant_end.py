"""End what administrators gave for others when they lose the right to it.

These are shares of mailboxes, `bcc` and `replyTo` of identities, BCC rules and webhooks.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence

from models.store.columns import ColumnRow
from models.users.roles import Role
from resolvers.addresses import rule_end
from resolvers.context import Context
from resolvers.mailboxes import share_end
from resolvers.notifications import webhook_end
from resolvers.submission.identities import administrator_diversions
from resolvers.users.remaining_rights import RemainingRights


async def end_grants_without_right(
    ctx: Context, rights_by_maker: Mapping[int, RemainingRights]
) -> None:
    """End what these users gave and may no longer give with the rights that remain.

    It joins the transaction of the change. Makers with equal rights share the statements.
    """
    maker_ids_by_rights: defaultdict[RemainingRights, list[int]] = defaultdict(list)
    for maker_id, rights in rights_by_maker.items():
        maker_ids_by_rights[rights].append(maker_id)
    for rights, maker_ids in maker_ids_by_rights.items():
        await share_end.end_shares_without_right(ctx, maker_ids, rights)
        await administrator_diversions.end_diversions_without_right(ctx, maker_ids, rights)
        await rule_end.delete_bcc_rules_without_right(ctx, maker_ids, rights)
        await webhook_end.delete_webhooks_without_right(ctx, maker_ids, rights)


async def end_all_grants_of_users(ctx: Context, users: Sequence[ColumnRow]) -> None:
    """End everything that these users gave for others, since they lose their access."""
    maker_ids = [row.id for row in users if row.role is not Role.USER]
    await end_grants_without_right(ctx, dict.fromkeys(maker_ids, RemainingRights()))
