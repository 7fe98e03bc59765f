"""NVML: the energy counter of an NVIDIA graphics card (Volta and later), in millijoules since its driver was loaded.

It is updated about every tenth of a second, so windows last seconds, and work on the card must be waited for
(`torch.cuda.synchronize`) before the counter is read. It needs the package nvidia-ml-py. Book: "The measured joule".
"""
from .measured import CounterError

__all__ = ["Nvml"]


class Nvml:
    """Joules of one card since `start`: the whole board, its memory included, the host excluded.

    Args: index: which card; nvml: stands in for the module pynvml, for tests.
    """

    def __init__(self, index: int = 0, *, nvml=None):
        self._nvml = nvml or _pynvml()
        try:
            self._nvml.nvmlInit()
            count = self._nvml.nvmlDeviceGetCount()
        except self._nvml.NVMLError as error:
            raise CounterError(f"NVML does not start ({error}): there is no NVIDIA driver") from error
        if type(index) is not int or not 0 <= index < count:
            raise CounterError(f"there is no card {index!r}: NVML sees {count}, counted from 0")
        self._handle = self._nvml.nvmlDeviceGetHandleByIndex(index)
        name = self._nvml.nvmlDeviceGetName(self._handle)
        self.method = "NVML energy counter"
        self.boundary = f"graphics card {index} ({name.decode() if isinstance(name, bytes) else name}), whole board"
        self.start()

    def start(self) -> None:
        """Forget the past and count from zero."""
        self._begin = self._last = self._millijoules()

    def joules(self) -> float:
        """Joules since `start`. Raises CounterError if the counter went backwards or cannot be read."""
        now = self._millijoules()
        if now < self._last:
            raise CounterError(f"the card's counter went backwards, from {self._last} to {now} mJ: its driver was loaded anew. "
                               "Repeat the measurement")
        self._last = now
        return (now - self._begin) / 1000

    def _millijoules(self) -> int:
        try:
            return self._nvml.nvmlDeviceGetTotalEnergyConsumption(self._handle)
        except self._nvml.NVMLError as error:
            raise CounterError(f"the card's energy cannot be read ({error}): cards before Volta have no counter") from error


def _pynvml():
    try:
        import pynvml
    except ImportError as error:
        raise CounterError("NVML needs the package nvidia-ml-py: pip install nvidia-ml-py") from error
    return pynvml
