"""Identity embedders, differentiable."""
