"""A stand-in for TensorRT whose engines run a kernel of ours on the real GPU."""
