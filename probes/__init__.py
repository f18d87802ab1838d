"""Read-outs from activations. What exists so far: :func:`probes.features`, the table that a probe is fitted on."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
