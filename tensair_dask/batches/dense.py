"""Tensors whose values lie in one dense array, as all that travels here does."""

from __future__ import annotations

from typing import Any

__all__ = ["why_not_dense"]

# What tensors may be else, how people call it, and what to make of it.
_OTHERS = {
    "is_nested": ("nested", "torch.nested.to_padded_tensor(NAME, 0.0)"),
    "is_sparse": ("sparse", "NAME.to_dense()"),
    "is_quantized": ("quantized", "NAME.dequantize()"),
    "is_meta": ("without values, on the device 'meta'", "one with values"),
}


def why_not_dense(tensor: Any, name: str) -> str:
    """Say what a tensor is that is not dense, and what to give; nothing if it is.

    Parameters
    ----------
    tensor
        Told without importing torch.
    name
        Of the tensor where it is given.
    """
    for attribute, (kind, instead) in _OTHERS.items():
        if getattr(tensor, attribute, False) is True:
            given = instead.replace("NAME", name)
            return f"a tensor that is {kind}; dense ones are allowed: give {given}."
    layout = str(getattr(tensor, "layout", "torch.strided"))
    if layout == "torch.strided":
        return ""
    return (
        f"a tensor of layout {layout}; dense ones are allowed: give {name}.to_dense()."
    )
