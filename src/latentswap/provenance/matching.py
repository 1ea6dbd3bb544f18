"""How far apart two faces are: the measure of the do-not-swap list.

Cosines of identity embeddings alone will not do: some people have many look-alikes, others none, and a bound that keeps
strangers of the former apart misses the latter with their head turned. So

1. embeddings go through a linear map, in which what changes between pictures of one person counts less (within-class
   whitening, as of Hatch et al., Interspeech 2006; fitted to generated people by scripts/protect_thresholds.py);
2. the distance of two faces, 1 − cosine, is divided by what is usual among strangers there: the mean distance of
   each of the two to its 10 nearest in a cohort of 493 people who do not exist (adaptive score normalisation, Matějka
   et al., Interspeech 2017, as a ratio).
"""

from functools import lru_cache

import torch
import torch.nn.functional as F

from latentswap.identity.dlib_resnet import centred
from latentswap.weights.assets import asset_path
from latentswap.weights.load import load_tensors

NEAREST = 10  # of the cohort; 5 to 20 do about as well


@lru_cache(maxsize=1)
def _map() -> torch.Tensor:
    """[128, 128]: embeddings as rows times this lie where faces are compared. Raises WeightsError."""
    tensors, _ = load_tensors(asset_path("matching"), kind="matching", expected={"map": ((128, 128), "float16")})
    return tensors["map"].float()


@lru_cache(maxsize=1)
def _cohort() -> torch.Tensor:
    """The people of the gallery [M, 128], mapped."""
    population, _ = load_tensors(asset_path("population"), kind="population")
    gallery, _ = load_tensors(asset_path("gallery"), kind="gallery")
    return mapped(centred(gallery["embedding"].float(), population["identity.mean_E"]))


def mapped(embedding_BE: torch.Tensor) -> torch.Tensor:
    """Embeddings [B, 128], centred, of any length → [B, 128] of unit length where faces are compared."""
    return F.normalize(F.normalize(embedding_BE.float(), dim=-1) @ _map(), dim=-1)


def to_strangers(mapped_BE: torch.Tensor, cohort_ME: torch.Tensor) -> torch.Tensor:
    """Mean distance 1 − cosine of each to its `NEAREST` nearest of the cohort, [B]."""
    return 1 - (mapped_BE @ cohort_ME.T).topk(NEAREST, dim=-1).values.mean(-1)


def ratio(a_BE: torch.Tensor, b_NE: torch.Tensor, cohort_ME: torch.Tensor) -> torch.Tensor:
    """Distances [B, N] of mapped embeddings in units of those to strangers.

    (1 − a·b) / ½ (s(a) + s(b)) with s = `to_strangers`: 0 for the same embedding, 1 for two people who are no nearer to
    one another than strangers who resemble them.
    """
    usual_BN = (to_strangers(a_BE, cohort_ME)[:, None] + to_strangers(b_NE, cohort_ME)) / 2
    return (1 - a_BE @ b_NE.T).clamp_min(0) / usual_BN.clamp_min(1e-3)


def distances(a_BE: torch.Tensor, b_NE: torch.Tensor) -> torch.Tensor:
    """`ratio` of embeddings as `inversion.optimise.embed` gives them, [B, 128] and [N, 128] → [B, N]."""
    return ratio(mapped(a_BE), mapped(b_NE), _cohort())
