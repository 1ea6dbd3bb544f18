"""Face geometry from a mesh: differentiable landmarks, shape and expression."""
