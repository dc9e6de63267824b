"""What a model needs and how fast it can be at best on a device, before anything is loaded."""

from anthesis.plan.hardware import Hardware, find_hardware
from anthesis.plan.plan import Plan, make_plan

__all__ = ["Hardware", "Plan", "find_hardware", "make_plan"]
