"""Rendered by merkit: Triton's entry into a model, whose code lies in the package."""

from merkit.serving.lazy_model import LazyModel as TritonPythonModel

__all__ = ["TritonPythonModel"]
