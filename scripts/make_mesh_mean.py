"""Make `src/latentswap/assets/mesh_mean.safetensors` from pictures of generated people.

The pictures are FFHQ-aligned crops of people who do not exist, a few hundred of them at truncation 0.7, as
`latentswap sample` writes them. Steps: mesh of every crop; Procrustes mean (similarity transforms, all points) in the
average pose; symmetrised about x = 0.5; statistics of the expression measures against it.

    python scripts/make_mesh_mean.py PICTURES face_landmark.safetensors src/latentswap/assets/mesh_mean.safetensors
"""

import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from latentswap.shape import measures
from latentswap.shape.mesh import MeshNet, crop_mesh
from latentswap.shape.topology import MESH_POINTS
from latentswap.weights.load import save_tensors

ALL_POINTS = tuple(range(MESH_POINTS))
ITERATIONS = 10


def meshes_of(folder: Path, net: MeshNet) -> Tensor:
    """mesh_BK3 of every PNG in a folder, in crop fractions."""
    found = []
    for path in sorted(folder.glob("*.png")):
        with Image.open(path) as picture:
            pixels = np.array(picture.convert("RGB"))
        img_BCHW = torch.from_numpy(pixels).permute(2, 0, 1)[None].float() / 127.5 - 1.0
        with torch.no_grad():
            found.append(crop_mesh(net, img_BCHW))
    return torch.cat(found)


def procrustes_mean(mesh_BK3: Tensor) -> Tensor:
    """Mean shape [K, 3] in the average position, pose and size of the meshes."""
    start_K3 = mesh_BK3.mean(0)
    mean_K3 = start_K3
    for _ in range(ITERATIONS):
        mean_K3 = measures.similarity_align(mesh_BK3, mean_K3, ALL_POINTS).mesh_BK3.mean(0)
        mean_K3 = measures.similarity_align(mean_K3[None], start_K3, ALL_POINTS).mesh_BK3[0]
    return mean_K3


def mirrored(mesh_K3: Tensor) -> Tensor:
    """Mirror about x = 0.5, points keeping their numbers."""
    return torch.stack((1.0 - mesh_K3[:, 0], mesh_K3[:, 1], mesh_K3[:, 2]), dim=-1)


def symmetrise(mean_K3: Tensor) -> tuple[Tensor, Tensor]:
    """The symmetric mean and the permutation of its mirror image."""
    mirror_K3 = mirrored(mean_K3)
    for _ in range(ITERATIONS):  # iterative closest points: match, move, match again
        mirror_K = torch.cdist(mean_K3, mirror_K3).argmin(1)
        fit = measures.similarity_align(mirrored(mean_K3)[mirror_K][None], mean_K3, ALL_POINTS)
        linear_33 = fit.scale_B[0] * fit.rotation_B33[0]
        mirror_K3 = mirrored(mean_K3) @ linear_33.mT + fit.translation_B3[0]
    if not torch.equal(mirror_K[mirror_K], torch.arange(MESH_POINTS)):
        raise SystemExit("the mean mesh is too lopsided to match with its mirror image: use more pictures")
    # The mean of a shape and its aligned mirror image is symmetric about some plane; the second puts it at x = 0.5.
    half_K3 = (mean_K3 + fit.mesh_BK3[0]) / 2
    flat_K3 = measures.similarity_align(
        half_K3[None], (half_K3 + mirrored(half_K3)[mirror_K]) / 2, ALL_POINTS
    ).mesh_BK3[0]
    return (flat_K3 + mirrored(flat_K3)[mirror_K]) / 2, mirror_K


def main(pictures: str, network: str, output: str) -> None:
    mesh_BK3 = meshes_of(Path(pictures), MeshNet.load(network)).double()
    mean_K3, mirror_K = symmetrise(procrustes_mean(mesh_BK3))
    values_BM = measures.expression_measures(mesh_BK3, mean_K3)
    tensors = {
        "mesh_K3": mean_K3.float(),
        "mirror_K": mirror_K,
        "expression_mean_M": values_BM.mean(0).float(),
        "expression_std_M": values_BM.std(0).float(),
    }
    metadata = {
        "kind": "shape/mesh-mean",
        "unit": "fractions of an FFHQ-aligned crop",
        "source": f"{len(mesh_BK3)} generated people, truncation 0.7",
        "measures": ",".join(measures.EXPRESSION_NAMES),
    }
    save_tensors(output, tensors, metadata)


if __name__ == "__main__":
    main(*sys.argv[1:4])
