"""A model behind an HTTP server on this machine: predict, start, ask, stop.

`predictor` runs the model and knows no server; `messages` says what goes over the wire and which requests are refused;
`process` starts a server and leaves nothing running (its `guard` sees to that); `litserve_app` puts a predictor behind
LitServe, `careless` does so without care, and `ray_app` puts it behind Ray Serve; `anatomy` takes a request apart. `open_loop`
sends requests at a rate of its own, `load` keeps the count, and `capacity` computes replicas, prices and energy from it.
Each module opens when one of its names is first used, and no server imports PyTorch: it opens no more than it needs.
Book: chapter 6.
"""
import importlib

_MODULES = {
    "predictor": ("Prediction", "Predictor", "check_images"),
    "messages": ("BadRequest", "Reader", "json_body", "raw_body", "receive", "refusal", "reply"),
    "client": ("Client",),
    "guard": ("processes_below",),
    "process": ("Server", "running"),
    "litserve_api": ("BatchingAPI",),
    "litserve_app": ("options", "serve"),
    "careless": ("CarelessAPI",),
    "anatomy": ("Anatomy", "dissect"),
    "load": ("TIMED_OUT", "UNANSWERED", "Load", "arrival_times", "on_cores", "percentile", "separate_cores"),
    "open_loop": ("load_test",),
    "capacity": ("VCPU_PRICES", "BatchPoint", "Cost", "Price", "Replicas", "batch_trade", "break_even", "cost_per_million",
                 "energy_per_million", "gain", "images_to_show", "model_share", "replicas", "waiting"),
    "ray_app": ("application", "serve_on_ray"),
}
_HOME = {name: module for module, names in _MODULES.items() for name in names}
__all__ = [*_HOME]


def __getattr__(name: str):
    if name in _HOME:
        return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
    if name in _MODULES:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
