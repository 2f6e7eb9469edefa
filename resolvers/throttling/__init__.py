"""Operations on bans of networks and on delays after failures."""
