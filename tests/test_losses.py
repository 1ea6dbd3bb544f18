"""Each loss on hand-made tensors, and the fusion of shapes."""

import pytest
import torch

from latentswap.generators.base import broadcast_w
from latentswap.losses import (
    contour_loss,
    identity_loss,
    latent_penalty,
    openness_loss,
    pooled_pixel_loss,
    shape_loss,
)
from latentswap.shape import topology as T
from latentswap.shape.fusion import ShapeModel, default_shape_model, fuse
from latentswap.shape.measures import expression_measures, mean_mesh, openness, similarity_align


def test_identity_loss():
    e = torch.eye(3)
    assert identity_loss(e, e) == 0
    assert identity_loss(e, -e) == 2
    assert identity_loss(e, e[[1, 2, 0]]) == 1


def test_latent_penalty_counts_in_standard_deviations():
    target, std = torch.zeros(2, 4, 3), torch.tensor([1.0, 2.0, 4.0])
    ws = target + std  # one standard deviation everywhere
    assert latent_penalty(ws, target, std) == 1
    ws[:, 2:] = 0
    assert latent_penalty(ws, target, std) == 0.5
    assert latent_penalty(ws, target, std, rows=2) == 1


def test_shape_loss_is_in_percent_and_ignores_depth():
    a, b = torch.zeros(1, 468, 3), torch.zeros(1, 468, 3)
    b[..., 0], b[..., 2] = 0.01, 5.0
    assert shape_loss(a, b) == pytest.approx(0.5)


def test_contour_loss_ignores_where_eyes_and_mouth_sit():
    mesh = mean_mesh()[None].clone()
    moved = mesh.clone()
    for contour, shift in ((T.RIGHT_EYE, 0.02), (T.LEFT_EYE, -0.01), (T.OUTER_LIPS + T.INNER_LIPS, 0.03)):
        moved[:, list(contour), 0] += shift
    assert contour_loss(mesh, moved) < 1e-5
    moved[:, list(T.INNER_LOWER_LIP), 1] += 0.02
    assert contour_loss(mesh, moved) > 0.01


def test_openness_loss_sees_a_shut_eye():
    mesh = mean_mesh()[None].clone()
    shut = mesh.clone()
    shut[:, list(T.RIGHT_UPPER_LID)] = shut[:, list(T.RIGHT_LOWER_LID)]
    eyes, _ = openness(mesh)
    assert openness_loss(mesh, mesh) == 0
    assert openness_loss(mesh, shut) == pytest.approx(float(eyes[0, 0]) / 2, rel=0.05)


def test_pooled_pixel_loss_ignores_detail():
    flat, checks = torch.zeros(1, 3, 64, 64), torch.ones(1, 3, 64, 64)
    checks[..., ::2] = -1
    assert pooled_pixel_loss(flat, checks) == 0
    assert pooled_pixel_loss(flat, flat + 0.5) == pytest.approx(0.5)


def rotation(degrees: float) -> torch.Tensor:
    a = torch.deg2rad(torch.tensor(degrees))
    return torch.tensor([[a.cos(), 0, a.sin()], [0, 1, 0], [-a.sin(), 0, a.cos()]])


def with_jaw(mesh: torch.Tensor, width: float) -> torch.Tensor:
    """A face that differs in shape: everything below the nose is wider."""
    out = mesh.clone()
    low = out[:, 1] > out[T.NOSE_TIP, 1]
    out[low, 0] = 0.5 + (out[low, 0] - 0.5) * width
    return out


def test_fusing_a_face_with_itself_gives_it_back():
    model, mesh = default_shape_model(), with_jaw(mean_mesh(), 1.1)[None] @ rotation(15).T
    assert torch.allclose(fuse(mesh, mesh, model), mesh, atol=1e-4)


def test_fusion_takes_pose_and_openness_from_the_target():
    model, mean = default_shape_model(), mean_mesh()
    source = with_jaw(mean, 1.08)[None]
    target = mean[None].clone()
    target[:, list(T.INNER_LOWER_LIP + T.OUTER_LIPS[1:10])] += torch.tensor([0, 0.03, 0])
    target = target @ rotation(-20).T + torch.tensor([0.05, 0.0, 0.0])
    fused = fuse(source, target, model)
    turn = similarity_align(fused).rotation_B33 @ similarity_align(target).rotation_B33.mT
    assert torch.rad2deg(torch.acos(((turn[0].trace() - 1) / 2).clamp(-1, 1))) < 3
    near, far = (expression_measures(mesh)[0, 4] for mesh in (target, source))
    assert abs(expression_measures(fused)[0, 4] - near) < 0.35 * abs(far - near)


def test_shape_part_follows_the_person_and_not_pose_or_expression(networks, people):
    """Moved in W so that the head turns or the mouth opens, a face keeps its shape part: it stays closer to itself than
    people are to one another, and closer than its pose-free mesh does when the mouth opens."""
    from latentswap.shape.measures import head_pose
    from latentswap.shape.mesh import crop_mesh

    codes, pictures = people
    generator, model = networks.generator, default_shape_model()
    random = torch.Generator().manual_seed(1)
    w = generator.mapping(torch.randn(80, 512, generator=random), truncation_psi=0.7)
    with torch.no_grad():
        mesh = crop_mesh(networks.mesh, pictures)
        many = torch.cat(
            [
                crop_mesh(networks.mesh, generator.synthesis(broadcast_w(w[i : i + 8], 16), resolution=256))
                for i in range(0, 80, 8)
            ]
        )
    opening, yaw = openness(many)[1], head_pose(many)[:, 0]

    def moved(measure: torch.Tensor, rows: slice, amount: float) -> torch.Tensor:
        x = (w - generator.w_avg) / generator.w_std
        gram = x.T @ x + 30 * torch.eye(512)
        direction = torch.linalg.solve(gram, x.T @ (measure - measure.mean()))
        ws = codes.clone()
        ws[:, rows] += amount * direction / direction.norm() * generator.w_std
        with torch.no_grad():
            return crop_mesh(networks.mesh, generator.synthesis(ws, resolution=256))

    def kept(other: torch.Tensor) -> tuple[float, float]:
        ratios = []
        for describe in (lambda m: model.split(m)[1], lambda m: similarity_align(m).mesh_BK3):
            a, b = (describe(m)[..., :2].flatten(1) for m in (mesh, other))
            between = torch.cdist(a, a)[~torch.eye(6, dtype=torch.bool)].mean()
            ratios.append(float((a - b).norm(dim=1).mean() / between))
        return ratios[0], ratios[1]

    turned, opened = moved(yaw, slice(0, 4), 8.0), moved(opening, slice(2, 6), 8.0)
    assert (head_pose(turned) - head_pose(mesh))[:, 0].mean() > 4
    assert (openness(opened)[1] - openness(mesh)[1]).mean() > 0.05
    (turned_shape, _), (opened_shape, opened_mesh) = kept(turned), kept(opened)
    assert turned_shape < 0.75 and opened_shape < 0.75
    assert opened_shape < 0.9 * opened_mesh


def test_a_model_fitted_on_made_up_faces_finds_their_expression():
    """Meshes that differ only in the mouth's opening have no shape part left."""
    torch.manual_seed(0)
    mesh = mean_mesh().repeat(64, 1, 1)
    mesh += 1e-4 * torch.randn(mesh.shape)
    mesh[:, list(T.INNER_LOWER_LIP), 1] += 0.03 * torch.rand(64, 1)
    model = ShapeModel.fit(mesh)
    lips = list(T.INNER_LOWER_LIP)
    before, after = (mesh - mesh.mean(0))[:, lips].std(), model.split(mesh)[1][:, lips].std()
    assert after < 0.1 * before
