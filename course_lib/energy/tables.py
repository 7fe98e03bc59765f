"""The cited constants: what an operation and a byte cost, and what a core may draw.

How far each number was checked is part of it. Nothing here was measured by this course, and no number is
that of the reader's machine. Book: "Where a joule goes".
"""
import dataclasses
import math

__all__ = ["HOROWITZ_45NM", "JOUPPI_7NM", "SERVER_WATTS", "Constants", "Picojoules", "Power"]

# How a number was checked: what the sources around it say, or not at all.
CROSS_CHECKED = "cross-checked in several public documents that cite the source"
QUOTED = "quoted in public code that cites the source"
UNVERIFIED = "not verified at the source"


@dataclasses.dataclass(frozen=True)
class Picojoules:
    """One constant in picojoules, from `low` to `high` where the source gives a range, and how it was checked."""
    low: float
    high: float
    checked: str

    def __post_init__(self):
        if not 0 <= self.low <= self.high < math.inf:
            raise ValueError(f"need 0 <= low <= high picojoules; got {self.low!r} and {self.high!r}")

    @property
    def middle(self) -> float:
        """Half-way between the two ends."""
        return (self.low + self.high) / 2


@dataclasses.dataclass(frozen=True)
class Constants:
    """A published table of energies for one process.

    add, multiply: pJ an operation by data type; sram, dram: pJ per byte read or written.
    """
    name: str
    process: str
    add: dict[str, Picojoules]
    multiply: dict[str, Picojoules]
    sram: Picojoules
    dram: Picojoules
    citation: str

    @property
    def unverified(self) -> list[str]:
        """The constants that could not be verified at their source, such as "int8 add"."""
        every = {**{f"{dtype} add": c for dtype, c in self.add.items()},
                 **{f"{dtype} multiply": c for dtype, c in self.multiply.items()},
                 "on-chip memory": self.sram, "DRAM": self.dram}
        return [name for name, constant in every.items() if constant.checked != CROSS_CHECKED]

    @property
    def label(self) -> str:
        """The name for people; it says so if some constants are unverified."""
        return f"{self.name}, {self.process}" + (", constants partly unverified" if self.unverified else "")

    def __repr__(self) -> str:
        return self.label


def _table(checked: str, **picojoules: float) -> dict[str, Picojoules]:
    return {dtype: Picojoules(value, value, checked) for dtype, value in picojoules.items()}


def _per_byte(low: float, high: float, checked: str) -> Picojoules:
    return Picojoules(low / 8, high / 8, checked)       # the tables give the access to 64 bits


HOROWITZ_45NM = Constants(
    name="Horowitz 2014", process="45 nm",
    add=_table(CROSS_CHECKED, int8=0.03, int32=0.1, float16=0.4, float32=0.9),
    multiply=_table(CROSS_CHECKED, int8=0.2, int32=3.1, float16=1.1, float32=3.7),
    sram=_per_byte(100, 100, CROSS_CHECKED),            # 1 MB
    dram=_per_byte(1300, 2600, CROSS_CHECKED),
    citation="Horowitz 2014, figure 1.1.9")

JOUPPI_7NM = Constants(
    name="Jouppi 2021", process="7 nm",
    add=_table(UNVERIFIED, int8=0.007, int32=0.03, bfloat16=0.11, float16=0.16, float32=0.38),
    multiply={**_table(UNVERIFIED, int8=0.07, int32=1.48, bfloat16=0.21, float16=0.34), **_table(QUOTED, float32=1.31)},
    sram=_per_byte(14, 14, UNVERIFIED),                 # 1 MB
    dram=_per_byte(350, 480, QUOTED),                   # GDDR6
    citation="Jouppi 2021, table 2")


@dataclasses.dataclass(frozen=True)
class Power:
    """What the processor draws for one busy thread, in watts: an interval that somebody declares.

    Raises: ValueError for a point, an interval upside down, watts that are not above 0, or no source.
    """
    low: float
    high: float
    source: str

    def __post_init__(self):
        numbers = [isinstance(x, (int, float)) and not isinstance(x, bool) for x in (self.low, self.high)]
        if not all(numbers) or not 0 < self.low < math.inf or not self.high < math.inf:
            raise ValueError(f"watts must be finite numbers above 0, such as 0.7 to 2.3; got {self.low!r} to {self.high!r}")
        if self.low == self.high:
            raise ValueError(f"declare an interval of watts, such as 0.7 to 2.3: a point claims to know too much; "
                             f"got {self.low!r} twice")
        if self.low > self.high:
            raise ValueError(f"the interval of watts is upside down: {self.low!r} to {self.high!r}; the smaller end comes first")
        if not self.source.strip():
            raise ValueError("name the source of the watts: a table, a data sheet, or whose guess it is")

    @property
    def name(self) -> str:
        """The interval and its source for people."""
        return f"{self.low:.2g} to {self.high:.2g} W for one busy thread, {self.source}"

    def __repr__(self) -> str:
        return self.name


_CCF = "Cloud Carbon Footprint coefficients, {}, idle to full load, per vCPU"
# Source: cloud-carbon-footprint/ccf-coefficients, output/coefficients-aws-use.csv, commit b0032d92, columns "Min Watts"
# and "Max Watts", read there. A vCPU is half a core on most of these chips. From the fourth to the fifth generation of one chip
# the figures rise four- to fivefold: hence intervals.
SERVER_WATTS = {chip: Power(low, high, _CCF.format(chip)) for chip, low, high in (
    ("AMD EPYC, 2nd generation", 0.4743, 1.6930), ("AMD EPYC, 3rd generation", 0.4556, 1.9573),
    ("AMD EPYC, 4th generation", 0.7391, 2.2822), ("AMD EPYC, 5th generation", 3.6824, 8.9614),
    ("Intel Skylake", 0.6130, 4.1042), ("Intel Cascade Lake", 0.6903, 4.0632), ("Intel Ice Lake", 0.7668, 3.7582),
    ("Intel Sapphire Rapids", 1.0363, 4.1605), ("any of these chips", 0.4556, 8.9614))}
