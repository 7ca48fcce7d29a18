"""Rendered by merkit: Triton's entry into a model, whose code lies in the package."""

from merkit.serving.runner import StepModel as TritonPythonModel

__all__ = ["TritonPythonModel"]
