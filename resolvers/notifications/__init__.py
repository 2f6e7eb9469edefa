"""Operations on webhooks and push notifications."""
