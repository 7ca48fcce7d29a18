"""Clips to arrays: what every backend, the server and training decode with."""

from merkit.media.clip import AudioInfo, Decoded, MediaInfo, VideoInfo, decode_clip, no_clip
from merkit.media.limits import Limits

__all__ = [
    "AudioInfo",
    "Decoded",
    "Limits",
    "MediaInfo",
    "VideoInfo",
    "decode_clip",
    "no_clip",
]
