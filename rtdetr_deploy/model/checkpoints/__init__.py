"""Trained weights: a file is read (`read`), a source recognises and converts it, and `load` builds the model."""
