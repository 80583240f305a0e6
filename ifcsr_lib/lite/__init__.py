"""The photo path without torch: a shipped model for `upscale` and `explore`, on numpy and ONNX Runtime.

Nothing in here imports torch. `load` gives a model whose `endpoints` answers as models.IFCSR.endpoints does.
"""

from .model import SHIPPED, LiteModel, Pair, load, missing, stale

__all__ = ["SHIPPED", "LiteModel", "Pair", "load", "missing", "stale"]
