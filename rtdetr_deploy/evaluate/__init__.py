"""Accuracy as COCO defines it."""
