"""uploads in pieces"""

import sqlalchemy as sa
from alembic import op

from models.store.columns import BIG_INTEGER

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    with op.batch_alter_table("uploads", schema=None) as batch_op:
        batch_op.add_column(sa.Column("received", BIG_INTEGER, nullable=False, server_default="0"))
        batch_op.add_column(sa.Column("told", sa.String(), nullable=True))
        batch_op.alter_column("digest", existing_type=sa.String(), nullable=True)
        batch_op.alter_column("blob_name", existing_type=sa.String(), nullable=True)
    with op.batch_alter_table("uploads", schema=None) as batch_op:
        batch_op.alter_column("received", existing_type=BIG_INTEGER, server_default=None)


def downgrade() -> None:
    op.execute("DELETE FROM uploads WHERE blob_name IS NULL")
    with op.batch_alter_table("uploads", schema=None) as batch_op:
        batch_op.alter_column("blob_name", existing_type=sa.String(), nullable=False)
        batch_op.alter_column("digest", existing_type=sa.String(), nullable=False)
        batch_op.drop_column("told")
        batch_op.drop_column("received")
