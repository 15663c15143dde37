"""Backbones: ResNet-vd and HGNetv2."""
