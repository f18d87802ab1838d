"""What each head does to a metric: exact interventions, estimates and gates, all by name.

:func:`interp.attribute` is the door; :data:`METHODS` lists the names and loads nothing heavy.
"""

from __future__ import annotations

from interp.attribution.methods import METHODS as METHODS
from interp.attribution.methods import Method as Method
