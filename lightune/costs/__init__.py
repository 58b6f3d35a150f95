"""What a model of some shape costs on a runtime: milliseconds, bytes and memory are looked up in a table that was measured there.

probes        small untrained networks of the base's architecture, exported as models are (`lightune.probes`, which needs torch)
measure_probes    times them wherever the runtime is: on a phone or a board too, since it needs the core install alone
CostTable     a formula through what was measured: thousands of shapes cost nothing
"""

from lightune.costs.measuring import measure_probes, open_probe
from lightune.costs.shapes import Shape
from lightune.costs.tables import CostTable, Probe

__all__ = ["CostTable", "Probe", "Shape", "measure_probes", "open_probe"]
