"""Operations on domains, aliases and DKIM keys."""
