"""Trained weights: read, recognised and loaded."""
