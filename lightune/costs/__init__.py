"""What a model of some shape costs on a runtime: milliseconds, bytes and memory, told by a table that was measured there.

`lightune.probes` writes small untrained networks of the base's architecture, exported as models are; that needs torch. `measure_probes`
times them wherever the runtime is, on a phone or a board too, since it needs the core install alone. The `CostTable` that comes out holds a
formula through what was measured, so that thousands of shapes cost nothing.
"""

from lightune.costs.measuring import measure_probes, open_probe
from lightune.costs.shapes import Shape
from lightune.costs.tables import CostTable, Probe

__all__ = ["CostTable", "Probe", "Shape", "measure_probes", "open_probe"]
