"""What ONNX Runtime shows of a file: accuracy, latency, memory, milliseconds per layer. `memory` imports no torch."""
