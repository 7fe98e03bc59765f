"""Carbon: joules times a number from a table, and kept apart from the joules.

    grams of CO2e = joules / 3,600,000 · grams per kilowatt-hour

The table says how the electricity of a country and year was made. Nothing about the model or the machine is in it, and it
differs more than twentyfold between grids. So a result names the grid beside the tier of its energy.
Book: "Carbon".
"""
import dataclasses
import math

from . import energy

__all__ = ["GRIDS", "JOULES_PER_KWH", "Carbon", "Grid", "carbon"]

JOULES_PER_KWH = 3_600_000


@dataclasses.dataclass(frozen=True)
class Grid:
    """How many grams of CO2e a kilowatt-hour stands for: the mean of a place and a year, over the life of the plants.

    Raises: ValueError for grams that are not finite and above 0, or no name or source.
    """
    name: str
    grams_per_kwh: float
    source: str

    def __post_init__(self):
        if not 0 < self.grams_per_kwh < math.inf:
            raise ValueError(f"grams of CO2e per kilowatt-hour must be above 0, such as 481; got {self.grams_per_kwh!r}")
        if not self.name.strip() or not self.source.strip():
            raise ValueError("name the grid and the source of its figure, such as 'World 2023' and 'Ember 2024'")


# Read in stored copies: the table of Our World in Data (France, Germany, India), Statista's quotation of Ember (Norway, world).
_EMBER = "Ember 2024, mean of 2023"
GRIDS = {place: Grid(f"{place} 2023", grams, _EMBER) for place, grams in (
    ("Norway", 30), ("France", 56), ("Germany", 381), ("World", 481), ("India", 713))}


@dataclasses.dataclass(frozen=True)
class Carbon:
    """Grams of CO2e, from `low` to `high`, with the energy and the grid that they were computed from."""
    low: float
    high: float
    energy: energy.Energy
    grid: Grid

    def __str__(self) -> str:
        grams = f"{self.low:.3g}" if self.low == self.high else f"{self.low:.3g} to {self.high:.3g}"
        return (f"{grams} g CO2e per {self.energy.per} ({self.grid.name}, {self.grid.grams_per_kwh:g} g/kWh, "
                f"{self.grid.source}; energy {self.energy.tier}: {self.energy.method}; {self.energy.boundary})")

    __repr__ = __str__


def carbon(amount: energy.Energy, grid: Grid) -> Carbon:
    """Grams of CO2e of an amount of energy on a grid. The interval is that of the energy; the grid's own is not known.

    Raises: TypeError for a bare number of joules or of grams: neither says what it is;
            ValueError for a modelled energy: it compares models, and no meter or bill ever saw it.
    """
    if not isinstance(amount, energy.Energy) or not isinstance(grid, Grid):
        raise TypeError(f"need an Energy and a Grid, such as carbon.GRIDS['World']; got {amount!r} and {grid!r}")
    if amount.tier == energy.MODELLED:
        raise ValueError("a modelled energy compares models and is no electricity that a grid delivered: "
                         "use a measured or a declared one")
    low, high = (end / JOULES_PER_KWH * grid.grams_per_kwh for end in (amount.low, amount.high))
    return Carbon(low, high, amount, grid)
