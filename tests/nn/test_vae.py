"""The auto-encoder of deep generative replay."""

from __future__ import annotations

import pytest
import torch

from raycl.nn.vae import VAE, divergence, reconstruction


def test_parameters():
    with torch.device("meta"):
        vae = VAE((3, 32, 32))
    assert sum(p.numel() for p in vae.parameters()) == 28_722_179
    assert vae.map == (512, 4, 4)


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 16, 24)])
def test_shapes_and_gradients(shape):
    vae = VAE(shape, latent=5, width=0.05)
    images = torch.rand(3, *shape)
    logits, mean, log_variance = vae(images, torch.randn(3, 5))
    assert logits.shape == images.shape
    assert mean.shape == log_variance.shape == (3, 5)
    (reconstruction(logits, images).mean() + divergence(mean, log_variance).mean()).backward()
    assert all(p.grad.abs().sum() > 0 for p in vae.parameters())
    drawn = vae.sample(torch.randn(2, 5))
    assert drawn.shape == (2, *shape)
    assert ((drawn > 0) & (drawn < 1)).all()


def test_layers_by_hand():
    vae = VAE((1, 8, 8), latent=2, width=0.02)
    x, noise = torch.rand(2, 1, 8, 8), torch.randn(2, 2)
    first, _, second, _, third, _, _ = vae.encoder
    hidden = third(second(first(x).relu()).relu()).relu().flatten(1)
    mean, log_variance = vae.mean(hidden), vae.log_variance(hidden)
    latents = mean + noise * log_variance.exp().sqrt()
    one, _, two, _, three = vae.decoder
    image = three(two(one(vae.start(latents).view(2, 10, 1, 1)).relu()).relu()).sigmoid()
    logits, *gaussian = vae(x, noise)
    torch.testing.assert_close(logits.sigmoid(), image)
    torch.testing.assert_close(gaussian, [mean, log_variance])
    torch.testing.assert_close(vae.sample(latents), image)


def test_losses_by_hand():
    images = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    grey = reconstruction(torch.zeros_like(images), images)  # sigmoid(0) = 0.5
    assert grey.tolist() == pytest.approx([0.693147] * 4, abs=1e-6)
    mean, log_variance = torch.tensor([[1.0], [0.0]]), torch.tensor([[0.0], [0.0]])
    assert (divergence(mean, log_variance) / 3072).tolist() == pytest.approx(
        [1.62760e-4, 0], abs=1e-9
    )
    wide = divergence(torch.zeros(1, 2), torch.ones(1, 2)).item()
    assert wide == pytest.approx(2 * 0.5 * (torch.e - 2))


def test_other_sizes_are_refused():
    with pytest.raises(ValueError, match="divisible by 8, not 28 x 32"):
        VAE((1, 28, 32))
