"""Named experiments on circuits of attention heads; the public names are listed in ``__init__.pyi``."""

from pathlib import Path

import lazy_loader

DISTRIBUTION = "headscope"

# Another distribution on PyPI, called `circuits`, has this import name too. Installed into one folder the two
# overwrite each other's files, so the presence of its core module beside this file is the clash.
if (Path(__file__).parent / "core" / "manager.py").exists():
    raise ImportError(
        "Two distributions share the import name 'circuits' and lie in one folder "
        f"({Path(__file__).parent.name}/): 'headscope' (this one) and 'circuits' from PyPI. "
        "Run `pip uninstall circuits headscope`, then `pip install headscope`, or use one environment for each."
    )

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
