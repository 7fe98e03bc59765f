"""Companion package of the course *Smaller Models, Fewer Joules*.

Small modules, one per idea. The ground: `data`, `models`, `language`, `training`, `watch`, `files`, `intervals`,
`declared`.
The ruler: `cost`, `timing`, `energy`, `deploy`, `mobile`, `memory`. Techniques: `pruning`, `quantization`, `low_rank`,
`distillation`, `early_exit`. At work: `devices`, `serving`, `edge`.
The story: `report`, `choosing`, `tables`, `joules`, `carbon`, `plots`, `predictors`, `results`, `checks`.
Modules load when they are first used, so that `import course_lib` costs nothing.
"""
import importlib

__version__ = "0.1.0"
__all__ = ["carbon", "checks", "choosing", "cost", "data", "declared", "deploy", "devices", "distillation",
           "early_exit", "edge", "energy", "files", "intervals", "joules", "language", "low_rank", "memory", "mobile",
           "models", "plots", "predictors", "pruning", "quantization", "report", "results", "serving", "syllabus",
           "tables", "timing", "training", "vision", "watch"]


def __getattr__(name: str):
    if name in __all__:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
