"""What an ONNX model is made of, as far as convolutions need it."""
