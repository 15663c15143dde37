"""What is measured: RT-DETRs, YOLOs, and the NMS that these need."""
