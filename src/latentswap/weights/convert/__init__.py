"""Foreign weight formats → named tensors. One adapter per format; nothing is ever executed."""
