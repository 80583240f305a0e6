"""The networks beneath the method: backbones from disk or hub, Stable Diffusion's shapes, the pocket ones."""
