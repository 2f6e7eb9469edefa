"""Operations on resources: rooms, things and groups that can be booked by mail."""
