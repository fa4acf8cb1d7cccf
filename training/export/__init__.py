"""A trained model as one ONNX file for onnxruntime, in float32 or int8, and back again for training."""

from searchkit.training.export.export import DTYPES, compare, export
from searchkit.training.export.unpack import unpack

__all__ = ["DTYPES", "compare", "export", "unpack"]
