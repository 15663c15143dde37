"""Accuracy as COCO defines it, and published figures to compare with."""
