"""Models made for measuring."""
