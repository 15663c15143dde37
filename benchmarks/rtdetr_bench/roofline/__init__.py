"""What an ONNX model costs on a GPU, computed from the file alone: a lower bound, and an estimate."""
