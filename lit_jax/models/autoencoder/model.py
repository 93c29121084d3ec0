"""The KL autoencoder of Stable Diffusion 1.x and SDXL, and the Gaussians it encodes to.

B batch, H x W image pixels, h x w latent pixels (h = H / `config.downsampling`), L latent channels;
NHWC. "Moments" are [B, h, w, 2 L]: the mean, then the log-variance as the network gives it. Three
forms of a latent must not be mixed up: moments; a plain latent, which `decode` takes; and a scaled
latent, plain times `config.scaling_factor`, which diffusion models see.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from lit_jax.models.autoencoder.blocks import Conv, Decoder, Encoder
from lit_jax.models.autoencoder.config import AutoencoderConfig
from lit_jax.models.autoencoder.tiling import Progress, check_tiles, in_tiles
from lit_jax.models.dit.model import dtype_name

LOG_VARIANCE_RANGE = (-30.0, 20.0)

# Of latent pixels; 64 is what the networks were trained on (images of 512 x 512).
TILE, OVERLAP = 64, 16


class AutoencoderKL(nnx.Module):
    """Images to moments (`encode`) and latents to images (`decode`).

    Computes in `config.dtype`; norm statistics, attention logits and the two 1x1 convolutions
    around the latent are float32. There is no float16: activations of the SDXL weights exceed its
    range, 65504. Calling the model reconstructs images from the mean of their Gaussian.
    """

    def __init__(self, config: AutoencoderConfig, *, rngs: nnx.Rngs) -> None:
        dtype_name(config.dtype)
        channels = config.latent_channels
        self.config = config
        self.encoder = Encoder(config, rngs=rngs)
        self.decoder = Decoder(config, rngs=rngs)
        self.quant_conv = Conv(2 * channels, 2 * channels, 1, dtype="float32", rngs=rngs)
        self.post_quant_conv = Conv(channels, channels, 1, dtype="float32", rngs=rngs)

    def __call__(self, images_BxHxWxC: jax.Array) -> jax.Array:
        """Return images in [-1, 1] -> their reconstruction, float32, same shape, not clipped."""
        return self.decode(mean_and_log_variance(self.encode(images_BxHxWxC))[0])

    def encode(self, images_BxHxWxC: jax.Array) -> jax.Array:
        """Return images in [-1, 1], float [B, H, W, C] -> moments, float32 [B, h, w, 2L].

        The log-variance is not clipped yet: the functions of this module that take moments do so.
        Raises ValueError for integers, another number of channels, and a height or width that is
        not a multiple of `config.downsampling`.
        """
        self._check_images(images_BxHxWxC)
        return self.quant_conv(self.encoder(images_BxHxWxC))

    def decode(self, latents_BxHxWxL: jax.Array) -> jax.Array:
        """Return plain latents, float [B, h, w, L] -> images, float32 [B, H, W, C], about [-1, 1]
        but not clipped. Raises ValueError for integers and another number of channels."""
        _check("latents", latents_BxHxWxL, self.config.latent_channels)
        return self.decoder(self.post_quant_conv(latents_BxHxWxL)).astype(jnp.float32)

    def unscaled(self, scaled_BxHxWxL: jax.Array) -> jax.Array:
        """Return latents as diffusion models see them -> plain latents."""
        return scaled_BxHxWxL / self.config.scaling_factor

    def decode_scaled(self, scaled_BxHxWxL: jax.Array) -> jax.Array:
        """Return latents as diffusion models see them -> images; see `decode`."""
        return self.decode(self.unscaled(scaled_BxHxWxL))

    def encode_tiled(
        self,
        images_BxHxWxC: jax.Array | np.ndarray,
        tile: int = TILE,
        overlap: int = OVERLAP,
        progress: Progress | None = None,
    ) -> jax.Array:
        """Return `encode` for large images: the levels above the latent's resolution tile by tile,
        the middle block on the whole. See `decode_tiled`; `tile` and `overlap` count latent pixels
        here, too."""
        self._check_images(images_BxHxWxC)
        features_BxHxWxC = in_tiles(
            lambda part: _descend(self, part),
            images_BxHxWxC,
            tile=tile,
            overlap=overlap,
            scale_in=self.config.downsampling,
            progress=progress,
        )
        return _finish(self, jnp.asarray(features_BxHxWxC, self.config.dtype))

    def decode_tiled(
        self,
        latents_BxHxWxL: jax.Array | np.ndarray,
        tile: int = TILE,
        overlap: int = OVERLAP,
        progress: Progress | None = None,
    ) -> np.ndarray:
        """Return `decode` for large images: plain latents -> images, float32 numpy [B, H, W, C].

        The middle block, with its attention, sees the whole latent. The levels above it, where
        nearly all memory goes, run on square tiles of `tile` latent pixels that share at least
        `overlap` of them: one after another, all with one compiled program, blended linearly where
        they overlap. `progress(done, total)` is called after every tile. Runs on the host, so not
        inside jit. Temporary device memory of the released network, in float32 and per image, as
        XLA plans it: 0.9 GB for a tile of 64, 27 KB per latent pixel for the middle block (1.7 GB
        for 2048 x 2048 image pixels); `decode` takes 230 KB per latent pixel (15 GB).

        One tile that holds the whole image gives what `decode` gives. Several do not, because group
        norm looks at the whole image and convolutions look over the border of a tile. Measured on
        the released architecture with random weights, a latent of 96 x 96 in four tiles of 64: the
        root mean square difference is 4 % of the image's standard deviation (10 % if the middle
        block ran on tiles, too). Trained weights were not measured.
        """
        _check("latents", latents_BxHxWxL, self.config.latent_channels)
        check_tiles(tile, overlap)
        return in_tiles(
            lambda part: _ascend(self, part),
            _begin(self, latents_BxHxWxL),
            tile=tile,
            overlap=overlap,
            scale_out=self.config.downsampling,
            progress=progress,
        )

    def _check_images(self, images_BxHxWxC: jax.Array | np.ndarray) -> None:
        _check("images", images_BxHxWxC, self.config.in_channels)
        step = self.config.downsampling
        if any(side % step for side in images_BxHxWxC.shape[1:3]):
            raise ValueError(
                f"images of shape {images_BxHxWxC.shape}; height and width must be multiples of"
                f" {step}: crop, resize or pad them"
            )


def _check(what: str, x: jax.Array | np.ndarray, channels: int) -> None:
    if x.ndim != 4 or x.shape[-1] != channels or 0 in x.shape:
        raise ValueError(
            f"{what} of shape {x.shape}; this model takes [batch, height, width,"
            f" {channels} channels]"
        )
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise ValueError(
            f"{what} are {x.dtype}; they must be floating point, images between -1 and 1"
        )


# Compiled once per shape, whichever model of one configuration and whichever tile it is for.


@jax.jit
def _descend(model: AutoencoderKL, images_BxHxWxC: jax.Array) -> jax.Array:
    return model.encoder.descend(images_BxHxWxC)


@jax.jit
def _finish(model: AutoencoderKL, features_BxHxWxC: jax.Array) -> jax.Array:
    return model.quant_conv(model.encoder.finish(features_BxHxWxC))


@jax.jit
def _begin(model: AutoencoderKL, latents_BxHxWxL: jax.Array) -> jax.Array:
    return model.decoder.begin(model.post_quant_conv(latents_BxHxWxL))


@jax.jit
def _ascend(model: AutoencoderKL, features_BxHxWxC: jax.Array) -> jax.Array:
    return model.decoder.ascend(features_BxHxWxC)


# --- the Gaussian of an image; needs no model, so that cached moments do not either ---


def mean_and_log_variance(moments_BxHxWxM: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return moments [..., 2L] -> mean and clipped log-variance, float32 [..., L] each.

    Raises ValueError for an odd number of channels.
    """
    if moments_BxHxWxM.shape[-1] % 2:
        raise ValueError(
            f"moments of shape {moments_BxHxWxM.shape}; the last axis holds a mean and a"
            " log-variance per latent channel, so its length must be even"
        )
    mean, log_variance = jnp.split(jnp.asarray(moments_BxHxWxM, jnp.float32), 2, axis=-1)
    return mean, jnp.clip(log_variance, *LOG_VARIANCE_RANGE)


def mean_and_std(moments_BxHxWxM: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return moments [..., 2L] -> mean and standard deviation, float32 [..., L] each."""
    mean, log_variance = mean_and_log_variance(moments_BxHxWxM)
    return mean, jnp.exp(0.5 * log_variance)


def sample_latents(
    moments_BxHxWxM: jax.Array, key_or_noise: jax.Array, scaling_factor: float
) -> jax.Array:
    """Return (mean + std eps) scaling_factor: moments [B, h, w, 2L] -> scaled latents [B, h, w, L].

    `key_or_noise`: eps itself, float [B, h, w, L]; or a key (`jax.random.key`) that draws it; or
    one key per image, [B], so that an image's latent does not depend on its batch.
    """
    return scaled_sample(*mean_and_std(moments_BxHxWxM), key_or_noise, scaling_factor)


def scaled_sample(
    mean_BxHxWxL: jax.Array,
    std_BxHxWxL: jax.Array,
    key_or_noise: jax.Array,
    scaling_factor: float,
) -> jax.Array:
    """Return `sample_latents` for means and standard deviations, which PixArt caches instead of
    moments.

    Raises ValueError for noise of another shape, which a raw uint32 key also is.
    """
    shape = mean_BxHxWxL.shape
    noise = key_or_noise
    if jnp.issubdtype(key_or_noise.dtype, jax.dtypes.prng_key):
        if key_or_noise.ndim == 0:
            noise = jax.random.normal(key_or_noise, shape)
        elif key_or_noise.shape == shape[:1]:
            noise = jax.vmap(lambda key: jax.random.normal(key, shape[1:]))(key_or_noise)
    if noise.shape != shape or not jnp.issubdtype(noise.dtype, jnp.floating):
        raise ValueError(
            f"key_or_noise is {key_or_noise.dtype} of shape {key_or_noise.shape}; it must be one"
            f" jax.random.key, {shape[0]} of them, or noise of shape {shape}"
        )
    return (mean_BxHxWxL + std_BxHxWxL * noise) * scaling_factor


def kl(moments_BxHxWxM: jax.Array) -> jax.Array:
    """Return kL(N(mean, variance) || N(0, 1)) in nats, summed over an image: [B, h, w, 2L] -> [B].

    0.5 sum(mean^2 + variance - 1 - log variance) (Kingma & Welling 2014, appendix B).
    """
    mean, log_variance = mean_and_log_variance(moments_BxHxWxM)
    terms = jnp.square(mean) + jnp.exp(log_variance) - 1 - log_variance
    return 0.5 * jnp.sum(terms, axis=tuple(range(1, terms.ndim)))
