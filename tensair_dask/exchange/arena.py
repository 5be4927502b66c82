"""The arena: a model's dense parameters in one contiguous buffer, its tables beside."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from tensair_dask.errors import ModelError
from tensair_dask.exchange.homes import Homes
from tensair_dask.exchange.ties import Block, Ties

__all__ = ["Arena", "Layout", "sparse_tables"]

# Parameters start at multiples of this many bytes, as torch's own allocations do:
# vector kernels are slower on unaligned data.
ALIGNMENT = 64


class Layout:
    """Where each parameter lies in the flat buffers; one buffer a dtype.

    Knows offsets only: from a set of buffers of this layout it makes the views.

    Parameters
    ----------
    parameters
        In their order.
    tied
        By the ids of those that share memory with something: with what they stay
        together.

    Attributes
    ----------
    dtypes
        Dtype of each buffer.
    sizes
        Elements of each buffer, padding included.
    starts
        Number of the buffer, and first element there, of what stays together.
    repeated
        Positions of the parameters of which each element is one of another, too.
    """

    def __init__(
        self,
        parameters: Sequence[torch.Tensor],
        tied: Mapping[int, Block] | None = None,
    ) -> None:
        tied = tied or {}
        self.dtypes: list[torch.dtype] = []
        self.sizes: list[int] = []
        self.starts: dict[Block, tuple[int, int]] = {}
        self.repeated: set[int] = set()
        self._slots: list[tuple[int, int, torch.Size, tuple[int, ...]]] = []
        for position, parameter in enumerate(parameters):
            if parameter.dtype not in self.dtypes:
                self.dtypes.append(parameter.dtype)
                self.sizes.append(0)
            number = self.dtypes.index(parameter.dtype)
            block = tied.get(id(parameter))
            if block is None:
                start = self._allot(number, parameter.numel())
                strides = _dense_strides(parameter)
            else:
                if block not in self.starts:
                    self.starts[block] = number, self._allot(number, block.size)
                offset, strides = block.slot(parameter)
                start = self.starts[block][1] + offset
                if id(parameter) in block.repeated:
                    self.repeated.add(position)
            self._slots.append((number, start, parameter.shape, strides))

    def _allot(self, number: int, elements: int) -> int:
        start = self.sizes[number]
        step = ALIGNMENT // self.dtypes[number].itemsize
        self.sizes[number] += -(-elements // step) * step
        return start

    def __len__(self) -> int:
        return len(self._slots)

    def zeros(self, device: torch.device) -> list[torch.Tensor]:
        """Allocate buffers of this layout, filled with zeros."""
        return [
            torch.zeros(size, dtype=dtype, device=device)
            for size, dtype in zip(self.sizes, self.dtypes, strict=True)
        ]

    def views(self, buffers: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """One view for each parameter, in the parameters' order and shapes."""
        return [
            torch.as_strided(buffers[number], shape, strides, offset)
            for number, offset, shape, strides in self._slots
        ]

    @property
    def nbytes(self) -> int:
        """Bytes of one set of buffers: of one dense gradient message."""
        return sum(
            size * dtype.itemsize
            for size, dtype in zip(self.sizes, self.dtypes, strict=True)
        )


class Arena:
    """Trainable parameters of a model: dense ones in contiguous buffers, and tables.

    A merge of dense gradients or of updates is then one operation on each buffer,
    whatever the number of layers. A *table* is the weight of an embedding that was
    made with ``sparse=True``: it stays where it is, because its gradients come, and
    travel, as rows. A parameter that is shared by several modules is held once;
    frozen parameters stay where they are.

    Parameters
    ----------
    model
        A module on its final device. The ``data`` of its dense parameters become
        views.
    ties
        Found before the module was moved there; None if it was not.

    Attributes
    ----------
    parameters
        All trainable ones.
    dense, tables
        Their two kinds, each in the order of ``parameters``.
    layout, buffers
        Of the dense ones.
    homes
        Sees that the parameters stay there.
    ties
        What shares memory with parameters, and has followed them.

    Raises
    ------
    ModelError
        If a parameter has no shape yet (lazy modules), the trainable parameters lie on
        several devices, or share memory in a way that cannot be kept.
    """

    def __init__(self, model: torch.nn.Module, ties: Ties | None = None) -> None:
        for name, parameter in model.named_parameters():
            if torch.nn.parameter.is_lazy(parameter):
                raise ModelError(
                    f"Parameter {name!r} has no shape yet: the model has a lazy "
                    "module. Run one mini-batch through the model in the factory "
                    "before returning it."
                )
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        devices = {parameter.device for parameter in self.parameters}
        if len(devices) > 1:
            raise ModelError(
                "The trainable parameters lie on several devices "
                f"({', '.join(sorted(map(str, devices)))}); all must be on one."
            )
        self.device = devices.pop() if devices else torch.device("cpu")
        sparse = sparse_tables(model)
        self.dense = [p for p in self.parameters if id(p) not in sparse]
        self.tables = [p for p in self.parameters if id(p) in sparse]
        self.ties = Ties(model) if ties is None else ties
        self.layout = Layout(self.dense, self.ties.blocks(self.dense, self.tables))
        self.buffers = self.layout.zeros(self.device)
        with torch.no_grad():
            for parameter, view in zip(
                self.dense, self.layout.views(self.buffers), strict=True
            ):
                view.copy_(parameter.data)
                parameter.data = view
        self.ties.placed(
            {
                block: (self.buffers[number], start)
                for block, (number, start) in self.layout.starts.items()
            }
        )
        self.homes = Homes(model, self.parameters, self.ties)


def sparse_tables(model: torch.nn.Module) -> set[int]:
    """Ids of the weights whose gradients are rows."""
    return {
        id(module.weight)
        for module in model.modules()
        if isinstance(module, (torch.nn.Embedding, torch.nn.EmbeddingBag))
        and module.sparse
    }


def _dense_strides(parameter: torch.Tensor) -> tuple[int, ...]:
    """Keep a memory format such as channels_last; else the contiguous strides."""
    if parameter.is_contiguous():
        return parameter.stride()
    dense = torch.empty_like(parameter, memory_format=torch.preserve_format)
    return dense.stride()
