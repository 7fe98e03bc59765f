"""One bit a weight, or one trit: only the sign is kept, or the sign and "no weight at all".

Weights of −α and +α lose least if α is the mean magnitude; a third value, 0, for the small weights, costs 1.6 bits
a weight where five trits share a byte (3⁵ = 243 fits in 256). Book: chapter 3, "Two values, or three".
"""
import math

import torch
from torch import nn

from .blocks import blocks_of, check_finite, check_kind
from .packing import pack, packed_bytes, unpack
from .stored import FORMS, quantizable, store

__all__ = ["SignForm", "TernaryForm", "pack_trits", "quantize_binary", "quantize_ternary", "unpack_trits"]

_POWERS = torch.tensor([1, 3, 9, 27, 81])


class _ScaledForm(nn.Module):
    """What binary and ternary weights share: small packed numbers, and one magnitude α for each channel or for all.

    Args: shape: of the weight; axis: 0 for an α for each output channel, None for one α; size: packed bytes.
    """

    def __init__(self, shape: list[int], axis: int | None, size: int):
        super().__init__()
        if axis not in (None, 0):
            raise ValueError(f"axis must be 0 (a scale for each output channel) or None (one for all); got {axis!r}")
        self.options = {"shape": list(shape), "axis": axis}
        self.shape, self.count = tuple(shape), math.prod(shape)
        self.register_buffer("packed", torch.zeros(size, dtype=torch.uint8))
        self.register_buffer("scale", torch.ones(() if axis is None else shape[0]))
        self.register_load_state_dict_post_hook(_check_loaded)

    def decode(self) -> torch.Tensor:
        """The weight, float32."""
        return (self.codes.reshape(len(self.scale.reshape(-1)), -1) * self.scale.reshape(-1, 1)).reshape(self.shape)

    def stored_bytes(self) -> int:
        """Bytes of all that is needed to decode."""
        return sum(t.numel() * t.element_size() for t in self.state_dict().values())


class SignForm(_ScaledForm):
    """A weight as sign(w) · α, one bit a sign; the sign of 0 is +.

    Source: Rastegari et al. 2016 (XNOR-Net), sec. 3.1: of all α, the mean of |w| leaves the smallest squared error.
    """

    def __init__(self, shape: list[int], axis: int | None = 0):
        super().__init__(shape, axis, packed_bytes(math.prod(shape), 1))

    @classmethod
    def of(cls, weight: torch.Tensor, *, axis: int | None = 0) -> "SignForm":
        """The weight's signs, and the mean of |w| for each channel or for all."""
        form = cls(list(weight.shape), axis)
        rows = _blocks(weight, axis)
        form.packed = pack((rows >= 0).int(), 1)
        form.scale = rows.abs().mean(dim=1).reshape(form.scale.shape)
        return form

    @property
    def codes(self) -> torch.Tensor:
        """−1 or 1, int32, in the shape of the weight."""
        return (2 * unpack(self.packed, 1, self.count) - 1).reshape(self.shape)


class TernaryForm(_ScaledForm):
    """A weight as −α, 0 or α. Weights up to 0.7 · mean|w| become 0, and α is the mean of |w| over the others.

    Args:   packing: "trits", five in a byte, or "bits", two bits each.
    Source: Li et al. 2016 (ternary weight networks).
    """

    def __init__(self, shape: list[int], axis: int | None = 0, packing: str = "trits"):
        count = math.prod(shape)
        if packing not in ("trits", "bits"):
            raise ValueError(f"packing must be 'trits' or 'bits'; got {packing!r}")
        super().__init__(shape, axis, (count + 4) // 5 if packing == "trits" else packed_bytes(count, 2))
        self.options["packing"] = packing

    @classmethod
    def of(cls, weight: torch.Tensor, *, axis: int | None = 0, packing: str = "trits") -> "TernaryForm":
        """The weight, each value replaced by −α, 0 or α."""
        form = cls(list(weight.shape), axis, packing)
        rows = _blocks(weight, axis)
        size = rows.abs()
        kept = size > 0.7 * size.mean(dim=1, keepdim=True)
        digits = (rows.sign() * kept).int() + 1
        form.packed = pack_trits(digits) if packing == "trits" else pack(digits, 2)
        form.scale = ((size * kept).sum(dim=1) / kept.sum(dim=1).clamp(min=1)).reshape(form.scale.shape)
        return form

    @property
    def codes(self) -> torch.Tensor:
        """−1, 0 or 1, int32, in the shape of the weight."""
        trits = self.options["packing"] == "trits"
        digits = unpack_trits(self.packed, self.count) if trits else unpack(self.packed, 2, self.count)
        return (digits - 1).reshape(self.shape)


FORMS |= {"sign": SignForm, "ternary": TernaryForm}


def pack_trits(digits: torch.Tensor) -> torch.Tensor:
    """Numbers 0, 1 or 2, of any shape, five in a byte: d₀ + 3·d₁ + 9·d₂ + 27·d₃ + 81·d₄, uint8.

    Raises: ValueError for other numbers.
    """
    flat = digits.flatten().long()
    if flat.numel() and not (0 <= flat.min() and flat.max() <= 2):
        raise ValueError(f"a trit is 0, 1 or 2; got {int(flat.min())} to {int(flat.max())}")
    filled = nn.functional.pad(flat, (0, -len(flat) % 5))
    return (filled.reshape(-1, 5) * _POWERS).sum(dim=1).to(torch.uint8)


def unpack_trits(packed: torch.Tensor, count: int) -> torch.Tensor:
    """The `count` numbers that `pack_trits` packed, int32. It can be recorded in an ONNX file.

    Raises: ValueError if the bytes are not as many as `count` trits take.
    """
    if packed.dtype != torch.uint8 or packed.shape != ((count + 4) // 5,):
        raise ValueError(f"{count} trits take {(count + 4) // 5} bytes; got {tuple(packed.shape)} of {packed.dtype}")
    return (packed.long()[:, None] // _POWERS % 3).flatten()[:count].int()


def quantize_binary(model: nn.Module, *, axis: int | None = 0, skip: tuple[str, ...] = ()) -> nn.Module:
    """Return a copy of `model` whose linear layers and convolutions keep the signs of their weights, and a scale.

    Args:   axis: 0 for a scale for each output channel, None for one a layer; skip: layers that stay float32.
    Raises: ValueError as `quantizable`.
    """
    return store(model, {name: SignForm.of(layer.weight, axis=axis) for name, layer in quantizable(model, skip=skip).items()})


def quantize_ternary(model: nn.Module, *, axis: int | None = 0, packing: str = "trits", skip: tuple[str, ...] = ()) -> nn.Module:
    """Return a copy of `model` whose linear layers and convolutions have weights of −α, 0 and α.

    Args:   as `quantize_binary`; packing: "trits" (1.6 bits a weight) or "bits" (2).
    Raises: ValueError as `quantizable`, and for an unknown packing.
    """
    return store(model, {name: TernaryForm.of(layer.weight, axis=axis, packing=packing)
                         for name, layer in quantizable(model, skip=skip).items()})


def _blocks(weight: torch.Tensor, axis: int | None) -> torch.Tensor:
    """One row for each scale."""
    check_kind(weight)
    check_finite(*weight.detach().aminmax())
    return blocks_of(weight.detach(), axis, None)


def _check_loaded(form: _ScaledForm, incompatible_keys) -> None:
    """Raise ValueError for numbers from a file that the form cannot have made."""
    if form.scale.dtype != torch.float32 or not (torch.isfinite(form.scale).all() and (form.scale >= 0).all()):
        raise ValueError("scales must be finite float32 numbers, not below 0")
    if form.codes.abs().max() > 1 or form.options.get("packing") == "trits" and form.packed.max() > 242:
        raise ValueError("codes must be −1, 0 or 1, and five of them in a byte at most 242")
