"""Export: from an architecture and its weights to ONNX and deployable engines, with proof of parity and precision."""
