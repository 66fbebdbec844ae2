"""A Django project whose consumers write to its database, which tests start workers of."""
