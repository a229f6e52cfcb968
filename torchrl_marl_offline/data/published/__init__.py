"""The published sets: cards, fetching, the cache folder."""
