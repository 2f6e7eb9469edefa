"""DNS records and MTA-STS policies of hosted domains."""
