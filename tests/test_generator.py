"""The generator: the port against the published network, the cheap path, and what every generator promises."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from latentswap.errors import UsageError
from latentswap.generators.base import Generator, broadcast_w
from latentswap.generators.mobile import Head256, MobileStyleGAN, SeparableConv, Synthesis, inverse_haar
from latentswap.runtime.generator import OpenVINOSynthesis
from latentswap.weights.assets import asset_path


@pytest.fixture(scope="module")
def generator(default_weights) -> MobileStyleGAN:
    return MobileStyleGAN.load(default_weights("mobilestylegan-ffhq-1024"), asset_path("head256"))


@pytest.fixture(scope="module")
def codes(generator) -> torch.Tensor:
    z = torch.randn(3, 512, generator=torch.Generator().manual_seed(5))
    ws = broadcast_w(generator.mapping(z, truncation_psi=0.7), 16).clone()
    ws[1, 6:] = ws[0, 6:]  # rows of two people
    return ws


def haar_by_the_book(x: np.ndarray) -> np.ndarray:
    """Pixel by pixel, from the definition, in float64."""
    c, h, w = x.shape[0] // 4, x.shape[1], x.shape[2]
    out = np.zeros((c, 2 * h, 2 * w))
    for k in range(c):
        ll, (lh, hl, hh) = x[k], (x[c + 3 * k + i] for i in range(3))
        out[k, 0::2, 0::2] = (ll + lh + hl + hh) / 2
        out[k, 1::2, 0::2] = (ll - lh + hl - hh) / 2
        out[k, 0::2, 1::2] = (ll + lh - hl - hh) / 2
        out[k, 1::2, 1::2] = (ll - lh - hl + hh) / 2
    return out


def test_inverse_haar_is_the_definition():
    x = np.random.default_rng(0).standard_normal((8, 3, 5))
    assert np.allclose(inverse_haar(torch.from_numpy(x)[None])[0].numpy(), haar_by_the_book(x), atol=1e-12)


def test_scaling_weights_and_scaling_activations_agree():
    torch.manual_seed(0)
    layer = SeparableConv(16, 6, 10, 8).double()
    x, w = torch.randn(3, 6, 8, 8).double(), torch.randn(3, 16).double()
    by_weights = layer(x, w, "const")
    layer.scale_weights = False
    assert torch.allclose(by_weights, layer(x, w, "const"), atol=1e-12)


def test_a_tiny_synthesis_network_is_differentiable_in_every_row_it_reads():
    torch.manual_seed(0)
    network = Synthesis(channels=(8, 8), w_dim=4, base=16)
    ws = torch.randn(2, 6, 4, requires_grad=True)
    out = network(ws)
    assert out.shape == (2, 3, 32, 32)
    out.square().sum().backward()
    assert ws.grad is not None and (ws.grad.abs().sum((0, 2)) > 0).all()


def test_matches_the_published_network(generator, published_generator):
    """Mapping to 1e-5 and synthesis to 2e-4 of OpenVINO's float32 run of the published files, at 1024²."""
    z = np.random.default_rng(1).standard_normal((1, 512), dtype=np.float32)
    mapping, synthesis = published_generator
    w = mapping(z)[0]
    assert np.abs(generator.mapping(torch.from_numpy(z)).numpy() - w).max() < 1e-5
    w = (generator.w_avg.numpy() + 0.7 * (w - generator.w_avg.numpy())).astype(np.float32)
    with torch.no_grad():
        ours = generator.synthesis(broadcast_w(torch.from_numpy(w), 16)).numpy()
    assert np.abs(ours - synthesis(w)[0]).max() < 2e-4


def test_openvino_agrees_with_torch_on_w_plus_and_batches(generator, codes, tmp_path):
    runtime = OpenVINOSynthesis(generator, cache_dir=tmp_path)
    with torch.no_grad():
        expected = generator.synthesis(codes[:2]).numpy()
    assert np.abs(runtime(codes[:2].numpy()) - expected).max() < 2e-4
    again = OpenVINOSynthesis(generator, cache_dir=tmp_path)  # from the cache
    assert np.array_equal(again(codes[:1].numpy()), runtime(codes[:1].numpy()))
    assert len(list(tmp_path.glob("generator-*"))) == 1


def test_a_batch_is_its_singles(generator, codes):
    with torch.no_grad():
        batch = generator.synthesis(codes, resolution=256)
        singles = torch.cat([generator.synthesis(code[None], resolution=256) for code in codes])
    assert torch.allclose(batch, singles, atol=1e-4)


def test_the_256_path_shows_the_same_picture(generator, codes):
    with torch.no_grad():
        full = F.interpolate(generator.synthesis(codes), size=256, mode="area")
        cheap = generator.synthesis(codes, resolution=256)
    psnr = 10 * torch.log10(4 / (full - cheap).square().mean((1, 2, 3)))
    assert psnr.mean() > 27, psnr


def test_truncation(generator):
    z = torch.randn(4, 512, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(generator.mapping(z, truncation_psi=0.0), generator.w_avg.expand(4, -1))
    half, full = generator.mapping(z, truncation_psi=0.5), generator.mapping(z)
    assert torch.allclose(half - generator.w_avg, 0.5 * (full - generator.w_avg), atol=1e-6)


def test_w_statistics_are_those_of_fresh_codes(generator):
    w = generator.mapping(torch.randn(4000, 512, generator=torch.Generator().manual_seed(9)))
    assert ((w.mean(0) - generator.w_avg) / generator.w_std).abs().max() < 0.1
    assert (w.std(0) / generator.w_std - 1).abs().max() < 0.1


def test_noise_modes(generator, codes):
    with torch.no_grad():
        const, again = (generator.synthesis(codes[:1], resolution=256) for _ in range(2))
        none = generator.synthesis(codes[:1], resolution=256, noise="none")
        torch.manual_seed(0)
        drawn = generator.synthesis(codes[:1], resolution=256, noise="random")
    assert torch.equal(const, again)
    for other in (none, drawn):
        assert 0.001 < (const - other).abs().mean() < 0.2  # the same face, other noise


def test_refusals(generator):
    assert isinstance(generator, Generator)
    with pytest.raises(UsageError, match=r"takes \[B, 512\]"):
        generator.mapping(torch.zeros(2, 100))
    with pytest.raises(UsageError, match=r"takes \[B, 16, 512\]"):
        generator.synthesis(torch.zeros(1, 18, 512))
    with pytest.raises(UsageError, match="1024 or 256 pixels, not 300"):
        generator.synthesis(torch.zeros(1, 16, 512), resolution=300)


def test_without_its_head_there_is_no_256(default_weights):
    generator = MobileStyleGAN.load(default_weights("mobilestylegan-ffhq-1024"))
    with pytest.raises(UsageError, match="256² head"):
        generator.synthesis(torch.zeros(1, 16, 512), resolution=256)


def test_head_reads_rows_11_to_15():
    torch.manual_seed(0)
    head, ws = Head256(channels=4, width=4, w_dim=6), torch.randn(1, 16, 6, requires_grad=True)
    out = head(torch.randn(1, 4, 8, 8), ws)
    assert out.shape == (1, 3, 16, 16)
    out.sum().backward()
    assert ws.grad is not None
    assert [i for i in range(16) if ws.grad[0, i].abs().sum() > 0] == [11, 12, 13, 14, 15]
