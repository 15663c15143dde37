"""Pixels of anything that is called an image, found, read and prepared."""
