"""The paper's tables, measured: NMS, decoder, encoders; accuracy and precision."""
