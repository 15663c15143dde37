"""Train RT-DETR: the paper's objective, data and a plain loop."""
