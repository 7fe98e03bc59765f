"""Energy in three tiers that never mix: measured, declared, modelled.

Measured: a counter in the machine was read before and after. Declared: CPU time times the watts that a
reader or a table declares. Modelled: operations and bytes times the constants of a published table. Every
amount knows its tier, its method and its boundary, and arithmetic between amounts that do not belong
together raises. This package sits on `timing` and `cost`, and knows no technique. Book: "Three ways to a joule".
"""
from . import adapters, available, declared_power, measured, modelling, nvml, paired, payback, quantity, rapl, tables
from .adapters import *
from .available import *
from .declared_power import *
from .measured import *
from .modelling import *
from .nvml import *
from .paired import *
from .payback import *
from .quantity import *
from .rapl import *
from .tables import *

__all__ = [*adapters.__all__, *available.__all__, *declared_power.__all__, *measured.__all__, *modelling.__all__,
           *nvml.__all__, *paired.__all__, *payback.__all__, *quantity.__all__, *rapl.__all__, *tables.__all__]
