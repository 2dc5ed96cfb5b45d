"""Export: models as folders of ONNX graphs that run without torch."""
