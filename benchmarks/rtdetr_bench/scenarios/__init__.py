"""Throughput, and the scenarios that MLPerf inference names: what one stream, several streams or a folder get."""
