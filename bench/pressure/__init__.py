"""What flow control does to time to first token: four priorities of five tenants, at twice what the servers can take."""
