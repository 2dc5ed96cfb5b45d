"""A server in which each tenant has a history of its own, for the clients of existing APIs (docs/serving.md)."""
