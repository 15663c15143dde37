"""TensorRT: what its parser takes, and engines."""
