"""The machine that a result was measured on, as every benchmark writes it."""

import platform

from lightune.runs import processor_name
from lightune.runtime.predictor import usable_cores


def describe_machine(**more):
    """Processor, the cores that this process may use, and the system; and what a benchmark adds."""
    return {"cpu": processor_name(), "cores": usable_cores(), **more, "platform": platform.platform()}
