"""how strong passwords of a domain must be"""

import sqlalchemy as sa
from alembic import op

from models.store.columns import BIG_INTEGER

revision = "0011"
down_revision = "0010"


def upgrade() -> None:
    with op.batch_alter_table("domains", schema=None) as batch_op:
        batch_op.add_column(sa.Column("password_min", BIG_INTEGER, nullable=True))
        batch_op.add_column(sa.Column("password_classes", BIG_INTEGER, nullable=True))


def downgrade() -> None:
    with op.batch_alter_table("domains", schema=None) as batch_op:
        batch_op.drop_column("password_classes")
        batch_op.drop_column("password_min")
