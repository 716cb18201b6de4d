"""farm: batch rendering of talking-head video on a queue-driven worker farm.

import farm
batch = farm.submit("lectures.csv")
for job in batch.wait(progress=True):
    print(job.film)

The names of the Python API (farm/api.py and farm/omnirt.py) are loaded when first asked for: this module is also
imported by the host's child process, which has nothing but the standard library.
"""

import importlib
from typing import Any

__version__ = "0.1.0"

_API = {
    "farm.api": ("Batch", "Farm", "Film", "Job", "jobs", "render", "render_async", "submit", "submit_async"),
    "farm.omnirt": ("audio2video", "generate", "validate"),
    "farm.omnirt_records": ("GenerateResult",),
}
__all__ = ["__version__", *(name for names in _API.values() for name in names)]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'farm' has no attribute {name!r}")
    for module_name, names in _API.items():
        module = importlib.import_module(module_name)
        # All at once: a name of the API may also be a module's, which its import has bound here.
        globals().update({each: getattr(module, each) for each in names})
    return globals()[name]
