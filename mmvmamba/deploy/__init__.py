"""Models out of PyTorch: ONNX, `torch.export`, AOTInductor, and the check of what came out."""
