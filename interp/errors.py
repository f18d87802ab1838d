"""The exceptions of the toolkit, all in one tree.

    HeadscopeError
    ├── BadInput            (also ValueError)  the caller asked for something that cannot be; nothing was run
    │   ├── UnknownName     (also KeyError)    a name that is not in a registry; carries near matches
    │   ├── BadAddress                         a layer, head, position or site that is not there
    │   └── Unsupported                        a site or edit that this model cannot offer, with the reason
    ├── LoadFailed                             a model could not be read, or is not understood
    └── RunFailed           (also RuntimeError) found during a run and stopped there
        ├── EditDidNotFire                     an edit whose site was never reached
        └── NotFinite                          NaN or infinity, named with its first layer and site

Every message says what came, what was expected and what to do.
"""

from __future__ import annotations


class HeadscopeError(Exception):
    """Root of every exception raised on purpose by this toolkit."""


class BadInput(HeadscopeError, ValueError):
    """The request cannot be met; it was refused before any forward pass."""


class UnknownName(BadInput, KeyError):
    """A name that no registry knows; the message lists near matches and every known name."""

    def __str__(self) -> str:  # KeyError would print the repr of the message
        return str(self.args[0]) if self.args else ""


class BadAddress(BadInput):
    """A layer, head, position or site that this model or prompt does not have."""


class Unsupported(BadInput):
    """This model cannot offer what was asked; the message gives the reason."""


class LoadFailed(HeadscopeError):
    """A model could not be read, or its structure is not understood."""


class RunFailed(HeadscopeError, RuntimeError):
    """Something found during a forward pass, which was stopped there."""


class EditDidNotFire(RunFailed):
    """An edit was declared but the forward pass never reached its site."""


class NotFinite(RunFailed):
    """NaN or infinity appeared; the message names the first layer and site."""
