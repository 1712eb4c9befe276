"""Checkpoint to bundle: writes and verifies the ONNX graphs."""
