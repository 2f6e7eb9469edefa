"""Delete OAuth clients that have registered themselves and are not used."""

from sqlalchemy import delete, exists, func, select
from sqlmodel import col

from mail.maintenance.row_batches import BATCH_SIZE
from models.auth.credentials import AccessToken
from models.events.event_types import EventType
from models.events.journal import PLATFORM, JournalEntry
from models.oauth.tables import (
    DYNAMIC_REGISTRATION,
    REGISTERED_CLIENT_RETENTION,
    OauthClient,
    OauthGrant,
    OauthRefreshToken,
)
from models.runtime.environment import DatabaseTransaction, Environment


async def delete_unused_registered_clients(environment: Environment) -> int:
    """Delete at most BATCH_SIZE clients that got no token for the retention, with their grants.

    A client with a token that is still stored is kept. Returns their number.
    """
    now = environment.now()
    is_of_client = col(OauthGrant.client_id) == col(OauthClient.id)
    used_at = func.coalesce(col(OauthClient.last_used_at), col(OauthClient.created_at))
    conditions = (
        col(OauthClient.created_by) == DYNAMIC_REGISTRATION,
        used_at <= now - REGISTERED_CLIENT_RETENTION,
        *(
            ~exists().where(is_of_client, grant_column == col(OauthGrant.id))
            for grant_column in (
                col(OauthRefreshToken.grant_id),
                col(AccessToken.oauth_grant_id),
            )
        ),
    )
    unused = select(col(OauthClient.id)).where(*conditions).limit(BATCH_SIZE)
    if not await environment.database.read(unused):
        return 0

    def delete_batch(transaction: DatabaseTransaction) -> int:
        connection = transaction.connection
        client_ids = connection.execute(unused.with_for_update()).scalars().all()
        if client_ids:
            connection.execute(delete(OauthClient).where(col(OauthClient.id).in_(client_ids)))
            entry = JournalEntry(EventType.OAUTH_CLIENT_DELETED, client_ids)
            transaction.record_entry(PLATFORM, entry, at=now)
        return len(client_ids)

    return await environment.run_transaction(delete_batch, PLATFORM)
