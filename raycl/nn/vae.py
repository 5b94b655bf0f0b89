"""The variational auto-encoder of deep generative replay."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

LATENT = 1024


class VAE(nn.Module):
    """Images in [0, 1] to a Gaussian over latents and back.

    Encoder: three convolutions (kernel 4, stride 2, padding 1) of 64, 128 and 512 channels, a ReLU
    after each, no normalisation; a linear layer each for mean and log-variance. Decoder: a linear
    layer without activation, then three transposed convolutions of the same kind with 256, 64 and
    the images' channels, ReLU after the first two, a sigmoid at the end. 28,722,179 parameters for
    colour images of 32 x 32 pixels. (The code of arXiv 2106.09701; other sizes are ours.)

    Args:
        shape: Channels, height, width; height and width divisible by 8.
        latent: Size of the latent.
        width: Multiplier of the channels between the images and the latent.
    """

    def __init__(
        self, shape: tuple[int, int, int], latent: int = LATENT, width: float = 1.0
    ) -> None:
        super().__init__()
        channels, height, across = shape
        if height % 8 or across % 8:
            raise ValueError(f"image sides must be divisible by 8, not {height} x {across}")
        a, b, c, d = (max(1, round(width * n)) for n in (64, 128, 256, 512))
        self.latent = latent
        self.map = (d, height // 8, across // 8)
        size = d * (height // 8) * (across // 8)
        self.encoder = nn.Sequential(
            nn.Conv2d(channels, a, 4, 2, 1), nn.ReLU(),
            nn.Conv2d(a, b, 4, 2, 1), nn.ReLU(),
            nn.Conv2d(b, d, 4, 2, 1), nn.ReLU(),
            nn.Flatten(),
        )  # fmt: skip
        self.mean = nn.Linear(size, latent)
        self.log_variance = nn.Linear(size, latent)
        self.start = nn.Linear(latent, size)
        self.decoder = nn.Sequential(
            nn.ConvTranspose2d(d, c, 4, 2, 1), nn.ReLU(),
            nn.ConvTranspose2d(c, a, 4, 2, 1), nn.ReLU(),
            nn.ConvTranspose2d(a, channels, 4, 2, 1),
        )  # fmt: skip

    def forward(self, images: Tensor, noise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Encode, sample, decode.

        Args:
            images: (B, C, H, W) in [0, 1].
            noise: Standard normal (B, latent), which makes the sample.

        Returns:
            Logits of the reconstruction (their sigmoid is in [0, 1]); mean and log-variance
            (B, latent).
        """
        hidden = self.encoder(images)
        mean, log_variance = self.mean(hidden), self.log_variance(hidden)
        return self.decode(mean + noise * (log_variance / 2).exp()), mean, log_variance

    def decode(self, latents: Tensor) -> Tensor:
        """Decode latents (B, latent) to logits of images (B, C, H, W)."""
        start = self.start(latents).unflatten(1, self.map)
        return self.decoder(start)  # type: ignore[no-any-return]

    def sample(self, latents: Tensor) -> Tensor:
        """Decode latents (B, latent) to images (B, C, H, W) in [0, 1], float32."""
        return self.decode(latents).float().sigmoid()


def reconstruction(logits: Tensor, images: Tensor) -> Tensor:
    """Mean over pixels of the binary cross-entropy, per image (B,).

    Args:
        logits: Logits of the reconstruction (B, C, H, W).
        images: (B, C, H, W) in [0, 1].
    """
    pixels = F.binary_cross_entropy_with_logits(logits.float(), images, reduction="none")
    return pixels.flatten(1).mean(1)


def divergence(mean: Tensor, log_variance: Tensor) -> Tensor:
    """KL of N(mean, variance) from N(0, I), summed over latents, per image (B,).

    KL_i = -1/2 sum (1 + log v - m^2 - v).
    """
    mean, log_variance = mean.float(), log_variance.float()
    return -0.5 * (1 + log_variance - mean**2 - log_variance.exp()).sum(1)
