"""Exported files and engines against the model that they came from."""
