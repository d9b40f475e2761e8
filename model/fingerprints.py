"""Hashes that say what a figure belongs to: which weights, which pictures."""

import hashlib

import numpy as np
import safetensors.torch

from model.parts import Images
from model.vae import VAE


def of_model(vae: VAE) -> str:
    """SHA-256 of a model's config and tensors."""
    tensors = {name: tensor.contiguous().cpu() for name, tensor in vae.state_dict().items()}
    return hashlib.sha256(repr(vae.config).encode() + safetensors.torch.save(tensors)).hexdigest()


def of_images(images: Images) -> str:
    """SHA-256 of pictures, one after another.

    Shapes:  images (n, h, w, c)
    """
    return hashlib.sha256(np.ascontiguousarray(images).data).hexdigest()
