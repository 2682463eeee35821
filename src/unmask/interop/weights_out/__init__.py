"""Our encoders as others load them: timm, transformers, ONNX, torch.export; each is loaded again and compared."""
