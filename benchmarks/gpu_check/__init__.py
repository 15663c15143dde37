"""Checks of the CUDA code on a real NVIDIA GPU, without TensorRT and with it: `make gpu-check`.

A part of the repository, not of what is installed: it runs the tests' double of TensorRT with kernels of its own.
"""
