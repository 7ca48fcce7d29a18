"""From a bundle's ONNX graphs to TensorRT plans; `preflight` works without TensorRT or a GPU."""
