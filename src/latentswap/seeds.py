"""Random numbers as a function of position: (seed, step, stream) → a generator."""

import numpy as np
import torch


def generator_for(seed: int, step: int, stream: int = 0) -> torch.Generator:
    """The random numbers of one step: a function of (seed, step, stream) alone."""
    words = np.random.SeedSequence([seed, step, stream]).generate_state(2, np.uint32)
    return torch.Generator().manual_seed(int(words[0]) << 32 | int(words[1]))
