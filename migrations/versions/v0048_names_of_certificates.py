"""several names on a certificate that ACME makes"""

import sqlalchemy as sa
from alembic import op

from models.columns import Plain

revision = "0048"
down_revision = "0046"


def upgrade() -> None:
    names = sa.Column("acme_names", Plain, nullable=False, server_default="[]")
    op.add_column("certificates", names)


def downgrade() -> None:
    with op.batch_alter_table("certificates") as table:
        table.drop_column("acme_names")
