"""Lower precision that is placed in the graph."""
