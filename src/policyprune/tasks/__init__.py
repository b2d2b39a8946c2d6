"""Calibration batches, a loss and a test protocol."""
