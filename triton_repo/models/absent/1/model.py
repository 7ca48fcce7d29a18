"""Rendered by merkit: Triton's entry into a model, whose code lies in the package."""

from merkit.serving.constants import ConstantsModel as TritonPythonModel

__all__ = ["TritonPythonModel"]
