"""The slider's arithmetic: blend, the pair of ends, and what may be moved along it (endpoints, maps, ghosting)."""

from .endpoints import Endpoints, ManyEndpoints, adain, blend, check_gamma, check_same_scene, strategies

__all__ = ["Endpoints", "ManyEndpoints", "adain", "blend", "check_gamma", "check_same_scene", "strategies"]
