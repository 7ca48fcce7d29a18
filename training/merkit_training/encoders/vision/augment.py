"""Distortions of face crops that real clips have and drawn faces lack.

Test clips went through a video codec, a jittering detector and, in the noisy split, a blur. An
encoder that never met these reads them as expressions. All randomness comes from torch's global
generator, which `fit` seeds for each step.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from merkit.contract import Preprocessing

SHIFT, SCALE, TURN = 0.02, 0.03, math.radians(3)  # half ranges of a detector's jitter
LIGHT, CONTRAST = 0.05, 0.10
BLUR_CHANCE, NOISE = 0.10, 0.02


def augment(faces: Tensor, p: Preprocessing) -> Tensor:
    """Distorts clips of crops; light and mirror are a clip's, geometry and blur a frame's.

    Args:
        faces: float32 [b, f, 3, side, side], normalised by the mean and deviation of `p`.
        p: which say where black and white lie; the amounts above are of that range.
    """
    batch = len(faces)
    mean, std = (torch.tensor(values)[:, None, None] for values in (p.face_mean, p.face_std))
    centre, half = (0.5 - mean) / std, 0.5 / std
    faces = (faces - centre) / half  # -1..1
    mirrored = torch.rand(batch, 1, 1, 1, 1) < 0.5
    faces = torch.where(mirrored, faces.flip(-1), faces)
    contrast = 1 + CONTRAST * _uniform(batch, 1, 1, 1, 1)
    faces = faces * contrast + 2 * LIGHT * _uniform(batch, 1, 3, 1, 1)
    flat = _jitter(faces.flatten(0, 1))
    small = F.avg_pool2d(flat, 2)
    soft = F.interpolate(small, scale_factor=2, mode="bilinear", align_corners=False)
    flat = torch.where(torch.rand(len(flat), 1, 1, 1) < BLUR_CHANCE, soft, flat)
    flat = flat + NOISE * torch.rand(len(flat), 1, 1, 1) * torch.randn_like(flat)
    return flat.clamp(-1, 1).view(faces.shape) * half + centre


def _jitter(images: Tensor) -> Tensor:
    """Small turns, zooms and shifts, each image its own, the border repeated."""
    count = len(images)
    angle = TURN * _uniform(count)
    zoom = 1 + SCALE * _uniform(count)
    shift = 2 * SHIFT * _uniform(count, 2)
    rows = (zoom * angle.cos(), -zoom * angle.sin(), zoom * angle.sin(), zoom * angle.cos())
    turn = torch.stack(rows, dim=1).view(count, 2, 2)
    grid = F.affine_grid(torch.cat((turn, shift[:, :, None]), 2), list(images.shape), False)
    return F.grid_sample(images, grid, padding_mode="border", align_corners=False)


def _uniform(*shape: int) -> Tensor:
    return 2 * torch.rand(*shape) - 1
