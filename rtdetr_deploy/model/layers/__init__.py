"""Layers that encoder and decoder share."""
