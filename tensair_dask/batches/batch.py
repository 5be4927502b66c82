"""Mini-batches: what is allowed in one, how records become one, how they travel.

A mini-batch is a pair ``(x, y)``. Each side is an array, or a tuple or dict of
arrays whose first dimensions agree. Between client and replica, mini-batches
travel as a `Block`: neighbours of equal kind are joined into one array per leaf,
so that the cost of a message does not grow with the number of mini-batches in it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from distributed.protocol.serialize import dask_deserialize, dask_serialize
from numpy.ma import MaskedArray

from tensair_dask._wording import in_words
from tensair_dask.batches.dense import why_not_dense
from tensair_dask.batches.elsewhere import why_kind_not_here, why_not_here
from tensair_dask.batches.named import (
    as_pair_by_name,
    fields_in_order,
    in_order,
    is_frame,
    is_row,
    one_row_frames,
)
from tensair_dask.errors import (
    BatchError,
    DtypeError,
    RaisedError,
    ShapeError,
    TensairError,
)

__all__ = [
    "Block",
    "MiniBatch",
    "Structure",
    "as_pair",
    "as_refusal",
    "collate",
    "flatten",
    "made_of",
    "rebuild",
    "refusing",
]

# How the leaves of one side hang together: None is a bare array, an int a tuple of
# so many arrays, a tuple of names a dict. "absent" stands for no target at all.
Structure: TypeAlias = int | tuple[str, ...] | str | None

ABSENT = "absent"

# numpy has no bfloat16: it travels as its bits under this name.
BFLOAT16 = "bfloat16"


@dataclass(slots=True)
class MiniBatch:
    """One mini-batch as flat leaves.

    Attributes
    ----------
    leaves
        The arrays of x, then those of y; each of shape (samples, ...). Nobody writes
        to them: they are copies, read-only, and copied where torch might.
    kind
        Structure, dtypes and trailing shapes. Mini-batches of equal kind can be
        joined along the first dimension.
    samples
        Rows.
    nbytes
        Size of the leaves in bytes.
    learn
        Whether it is to be learned; otherwise it is only predicted and scored.
    """

    leaves: list[np.ndarray]
    kind: tuple[Any, ...]
    samples: int
    nbytes: int
    learn: bool = True

    @classmethod
    def of(cls, x: Any, y: Any = ABSENT, owned: bool = False) -> MiniBatch:
        """Check and flatten one pair, and take its values in.

        Parameters
        ----------
        x, y
            Arrays, or tuples or dicts of them.
        owned
            Whether arrays and tensors are no one else's any more, and need no copy.

        Raises
        ------
        ShapeError
            If there is no first dimension, the first dimensions differ, or there
            are no rows to learn. Without y, the answer has none either.
        DtypeError
            If a leaf is not numeric or boolean.
        BatchError
            If one is masked.
        """
        if type(x) is not np.ndarray or type(y) is not np.ndarray:
            return cls._looked_at(x, y, owned)
        form = x.dtype, x.shape[1:], y.dtype, y.shape[1:]
        kind = _known_kinds.get(form)
        if kind is not None and _run_on(x, y):
            leaves = [_taken(x, owned), _taken(y, owned)]
            return cls(leaves, kind, len(x), x.nbytes + y.nbytes)
        made = cls._looked_at(x, y, owned)
        _remember(form, made.kind)
        return made

    @classmethod
    def _looked_at(cls, x: Any, y: Any, owned: bool) -> MiniBatch:
        leaves, x_structure, x_bits = flatten(x, "x")
        if not leaves:
            raise ShapeError(
                f"x is an empty {type(x).__name__}: it holds no array. Give x as an "
                "array, or as a tuple or dict of arrays."
            )
        if isinstance(y, str) and y == ABSENT:
            y_structure: Structure = ABSENT
            bits = x_bits
        else:
            y_leaves, y_structure, y_bits = flatten(y, "y")
            bits = x_bits + y_bits
            leaves += y_leaves
        samples = len(leaves[0])
        nbytes = 0
        signature = []
        for leaf in leaves:
            shape = leaf.shape
            if shape[0] != samples:
                raise ShapeError(
                    "The arrays of a mini-batch differ in their number of rows: "
                    f"{[len(each) for each in leaves]} (x first, then y). All must "
                    f"have the same first dimension.{_if_rows(x)}"
                )
            nbytes += leaf.nbytes
            signature.append((leaf.dtype.str, shape[1:]))
        leaves = [_taken(leaf, owned) for leaf in leaves]
        if samples == 0 and y_structure != ABSENT:
            raise ShapeError("The mini-batch has no rows; at least 1 is needed.")
        kind = (x_structure, y_structure, bits, tuple(signature))
        return cls(leaves, kind, samples, nbytes)

    def describe(self) -> str:
        """Shapes and dtypes for error messages, such as ``x (64, 8) float32``."""
        return describe_kind(self.kind, self.samples)

    def pair(self) -> tuple[Any, Any]:
        """The mini-batch as it was given: ``(x, y)``, of numpy arrays."""
        x_structure, y_structure, *_ = self.kind
        split = width(x_structure)
        y = None
        if y_structure != ABSENT:
            y = rebuild(self.leaves[split:], y_structure)
        return rebuild(self.leaves[:split], x_structure), y


@dataclass(slots=True)
class Group:
    """Neighbouring mini-batches of equal kind, joined along the first dimension.

    All of them are to be learned, or none.
    """

    kind: tuple[Any, ...]
    lengths: list[int]
    leaves: list[np.ndarray]
    learn: bool = True


@dataclass(slots=True)
class Block:
    """Mini-batches that travel as one message.

    Attributes
    ----------
    run_id
        The run that they belong to; replicas refuse those of another.
    groups
        In order of submission.
    number
        Place among the blocks that one replica is to learn, from 0: they may overtake
        each other on the way. None where order does not matter.
    """

    run_id: str
    groups: list[Group]
    number: int | None = None

    @classmethod
    def join(
        cls, run_id: str, batches: Sequence[MiniBatch], number: int | None = None
    ) -> Block:
        """Join mini-batches; one copy of each, none if a group has a single one."""
        groups: list[Group] = []
        start = 0
        for stop in range(1, len(batches) + 1):
            if stop == len(batches) or not _alike(batches[stop], batches[start]):
                groups.append(_join(batches[start:stop]))
                start = stop
        return cls(run_id, groups, number)

    def __len__(self) -> int:
        return sum(len(group.lengths) for group in self.groups)


@dask_serialize.register(Block)
def _to_frames(block: Block) -> tuple[dict[str, Any], list[memoryview]]:
    """Describe a block plainly, with the leaves' memory as frames: no pickle."""
    groups = [
        [group.kind, group.lengths, group.learn, [leaf.shape for leaf in group.leaves]]
        for group in block.groups
    ]
    frames = [
        np.ascontiguousarray(leaf).reshape(-1).view(np.uint8).data
        for group in block.groups
        for leaf in group.leaves
    ]
    header = {"run_id": block.run_id, "groups": groups, "number": block.number}
    return header, frames


@dask_deserialize.register(Block)
def _from_frames(header: dict[str, Any], frames: Sequence[Any]) -> Block:
    remaining = iter(frames)
    groups = []
    for kind, lengths, learn, shapes in header["groups"]:
        leaves = [
            np.frombuffer(next(remaining), dtype).reshape(shape)
            for shape, (dtype, _) in zip(shapes, kind[3], strict=True)
        ]
        groups.append(Group(kind, list(lengths), leaves, learn))
    return Block(header["run_id"], groups, header["number"])


def _alike(one: MiniBatch, other: MiniBatch) -> bool:
    return one.kind == other.kind and one.learn == other.learn


def _join(batches: Sequence[MiniBatch]) -> Group:
    first = batches[0]
    if len(batches) == 1:
        return Group(first.kind, [first.samples], first.leaves, first.learn)
    leaves = [
        np.concatenate(columns)
        for columns in zip(*(batch.leaves for batch in batches), strict=True)
    ]
    lengths = [batch.samples for batch in batches]
    return Group(first.kind, lengths, leaves, first.learn)


def width(structure: Structure) -> int:
    """How many leaves a structure has."""
    if structure is None:
        return 1
    if isinstance(structure, int):
        return structure
    if structure == ABSENT:
        return 0
    return len(structure)


def rebuild(leaves: Sequence[Any], structure: Structure) -> Any:
    """Hang leaves together again as they were given (lists become tuples)."""
    if structure is None:
        return leaves[0]
    if isinstance(structure, int):
        return tuple(leaves)
    return dict(zip(structure, leaves, strict=True))


def flatten(
    side: Any, name: str
) -> tuple[list[np.ndarray], Structure, tuple[bool, ...]]:
    """Flatten one side of a mini-batch.

    Returns
    -------
    leaves, structure, bits
        ``bits`` says for each leaf whether it is bfloat16, carried as int16.
    """
    if type(side) is np.ndarray:
        return [_check(side, name)], None, (False,)
    if isinstance(side, Mapping):
        pairs = [_leaf(value, f"{name}[{key!r}]") for key, value in side.items()]
        names = tuple(_name(key, name) for key in side)
        return [leaf for leaf, _ in pairs], names, tuple(b for _, b in pairs)
    if why := why_not_here(side, name):
        raise BatchError(f"{name} {why}")
    if hasattr(side, "batch_sizes"):  # torch's PackedSequence, which is a tuple
        raise ShapeError(
            f"{name} is a {type(side).__name__}, whose arrays have no row for each "
            f"sample. Give the padded sequences and their lengths, {name} = (padded, "
            "lengths), and pack them within the model, with "
            "torch.nn.utils.rnn.pack_padded_sequence."
        )
    if isinstance(side, tuple) or _is_list_of_arrays(side):
        pairs = [
            _leaf(value, f"{name}[{position}]") for position, value in enumerate(side)
        ]
        return [leaf for leaf, _ in pairs], len(pairs), tuple(b for _, b in pairs)
    leaf, bits = _leaf(side, name)
    return [leaf], None, (bits,)


def _if_rows(x: Any) -> str:
    """Say what a list of arrays is taken for, and how bags of indices are given."""
    if _is_bags(x):
        return (
            " Offsets into one long array are no row for each sample: for an "
            "EmbeddingBag give indices of shape (samples, longest), filled up with a "
            "padding_idx= that it leaves out."
        )
    if not isinstance(x, list):
        return ""
    return (
        f" x is a list of {len(x)} arrays, each of which is an argument of the model; "
        "if they are rows, make one array of them: numpy.stack(x)."
    )


def _is_bags(x: Any) -> bool:
    """Whether it looks like indices and offsets, the arguments of an EmbeddingBag."""
    if isinstance(x, Mapping):
        return any("offset" in str(key) for key in x)
    if not isinstance(x, tuple) or len(x) < 2:
        return False
    offsets = x[1]
    return len(getattr(offsets, "shape", ())) == 1 and (
        "int" in str(getattr(offsets, "dtype", "")) and int(offsets[0]) == 0
    )


def _name(key: Any, name: str) -> str:
    if isinstance(key, str):
        return str(key)
    if type(key) is int:  # as columns of a table without names have them
        return key  # type: ignore[return-value]
    raise ShapeError(
        f"{name} is a dict with the key {key!r}; the names of its arrays must be "
        "strings or whole numbers."
    )


def _is_list_of_arrays(side: Any) -> bool:
    # A list of numpy's or torch's scalars is an array, as a list of numbers is.
    return isinstance(side, list) and bool(side) and bool(getattr(side[0], "shape", ()))


def _leaf(value: Any, name: str) -> tuple[np.ndarray, bool]:
    if why := why_not_here(value, name):
        raise BatchError(f"{name} {why}")
    if hasattr(value, "detach"):  # a torch tensor, told without importing torch
        try:
            return _of_tensor(value, name)
        except BatchError:
            raise
        except Exception as error:
            raise DtypeError(f"{name} {_why_no_array(value, name, error)}") from error
    if isinstance(value, (Mapping, tuple)):
        raise ShapeError(
            f"{name} is a {type(value).__name__}; one level of tuple or dict is "
            "allowed, with arrays below it. Flatten the structure before training."
        )
    if value is None:
        raise DtypeError(
            f"{name} is None; an array is needed. Leave out an argument of the model "
            "that is None. Where there is no target, as for an autoencoder, give x as "
            "y again, for example loss=lambda output, y: ..."
        )
    check_unmasked(value, name)
    if hasattr(value, "tocsr"):  # of scipy, whose arrays of these are objects
        raise DtypeError(
            f"{name} is a sparse {type(value).__name__}; dense arrays are allowed: "
            f"give {name}.toarray(), or the numbers of its columns to an EmbeddingBag."
        )
    try:
        array = np.asarray(_without_extensions(value, name))
        _check_frame(array, value, name)
    except BatchError:
        raise
    except ValueError as error:  # ragged lists
        raise ShapeError(
            f"{name} cannot be made an array: {in_words(error)}. Its rows must have "
            "one shape."
        ) from error
    except Exception as error:  # of __array__
        raise BatchError(
            f"{name} is a {type(value).__name__}, which cannot be made an array: "
            f"{in_words(error)}. Give an array of numbers."
        ) from error
    return _check(_narrow(array, value), name), False


def _check_frame(array: np.ndarray, value: Any, name: str) -> None:
    """Refuse what pandas has no numbers for, and say how to get some."""
    if array.dtype != object or not hasattr(value, "dtypes"):
        return
    if getattr(value, "ndim", 1) > 1:
        kinds = {str(each): None for each in value.dtypes}
        raise DtypeError(
            f"{name} is a frame whose columns have the dtypes {list(kinds)[:8]}, "
            "which have no dtype in common: give one, for example "
            f'{name}.astype("float32"), and encode text and categories as integers.'
        )
    if hasattr(value, "cat"):
        raise DtypeError(
            f"{name} holds categories, which are no numbers. Encode text and "
            f"categories as integers: {name}.cat.codes, where the categories are the "
            "same for the whole stream, pandas.Categorical(values, categories=[...]); "
            "those of each mini-batch would number them anew."
        )


def _of_tensor(tensor: Any, name: str) -> tuple[np.ndarray, bool]:
    tensor = tensor.detach().cpu().resolve_conj().resolve_neg()
    if str(tensor.dtype) == f"torch.{BFLOAT16}":
        import torch

        return _check(tensor.view(torch.int16).numpy(), name), True
    return _check(tensor.numpy(), name), False


def _why_no_array(tensor: Any, name: str, error: Exception) -> str:
    """Say what a tensor is that numpy has no array for, and what to do."""
    if why := why_not_dense(tensor, name):
        return f"is {why}"
    return (
        f"is a {type(tensor).__name__} of {getattr(tensor, 'dtype', 'no dtype')}, of "
        f"which no array can be made: {in_words(error)}. Give one of another dtype, "
        "such as float32."
    )


def _without_extensions(value: Any, name: str) -> Any:
    """Give the numbers of a table or column of pandas as dtypes of numpy.

    Those that may hold NA, and those of Arrow, would be read as objects.
    """
    dtypes = getattr(value, "dtypes", None)
    if dtypes is None or not hasattr(value, "to_numpy"):
        return value
    dtypes = list(dtypes) if getattr(value, "ndim", 1) > 1 else [dtypes]
    if all(isinstance(each, np.dtype) for each in dtypes):
        return value
    plain = [getattr(each, "numpy_dtype", each) for each in dtypes]
    if not all(isinstance(each, np.dtype) and each.kind in "biufc" for each in plain):
        return value  # words or categories: refused as such
    try:
        return value.to_numpy(dtype=np.result_type(*plain))
    except (ValueError, TypeError) as error:
        raise DtypeError(
            f"{name} holds pandas.NA: {in_words(error)}. Fill it, for example with "
            f"{name}.fillna(0), or drop these rows."
        ) from error


def _check(leaf: np.ndarray, name: str) -> np.ndarray:
    if leaf.dtype.kind not in "biufc":
        raise DtypeError(
            f"{name} has dtype {leaf.dtype}; numbers and booleans are allowed. "
            "Encode text and categories as integers, and dates as numbers."
        )
    if leaf.dtype.char in "gG":
        raise DtypeError(
            f"{name} has dtype {leaf.dtype}, which torch does not have. Cast it, for "
            f"example with {name}.astype('float64')."
        )
    if leaf.ndim == 0:
        raise ShapeError(
            f"{name} is a single value of shape (); the first dimension counts the "
            "samples. For one sample give shape (1, ...)."
        )
    # torch takes neither the other byte order nor rows that run backwards.
    if not leaf.dtype.isnative:
        return leaf.astype(leaf.dtype.newbyteorder("="))
    if min(leaf.strides) < 0:
        return leaf.copy()
    return leaf


# Kinds of pairs of plain arrays that were looked at: their dtypes and trailing shapes
# are sound. Padded sequences may have a new one each time.
MOST_KINDS = 1000
_known_kinds: dict[Any, tuple[Any, ...]] = {}


def _remember(form: tuple[Any, ...], kind: tuple[Any, ...]) -> None:
    """Look no more at pairs of this form, unless their dtypes had to be changed."""
    if kind[3] != ((form[0].str, form[1]), (form[2].str, form[3])):
        return
    if len(_known_kinds) >= MOST_KINDS:
        _known_kinds.clear()
    _known_kinds[form] = kind


def _run_on(x: np.ndarray, y: np.ndarray) -> bool:
    """Whether two arrays have as many rows, and at least one, all of them forwards."""
    rows = x.shape[:1]
    if rows != y.shape[:1] or not rows or not rows[0]:
        return False
    return min(x.strides) >= 0 <= min(y.strides)


def _taken(leaf: np.ndarray, owned: bool) -> np.ndarray:
    """Give the values of a leaf, which nobody can change any more."""
    # What a mini-batch was made of may be used again for the next one, and this one
    # waits, or is learned once more by another replica.
    taken = leaf.view() if owned else leaf.copy()
    # A replica in this process gets the array itself: where it is read-only, torch
    # is given a copy (see `to_tensors`), so that no model writes to it.
    taken.setflags(write=False)
    return taken


def check_unmasked(value: Any, name: str) -> None:
    """Refuse masked values: an array does not have them, and what lies below is none.

    Raises
    ------
    BatchError
        If there is one.
    """
    if isinstance(value, MaskedArray) and np.ma.is_masked(value):
        raise BatchError(
            f"{name} has {np.ma.count_masked(value)} masked values of {value.size}; "
            "a mini-batch has a value everywhere. Give them one with .filled(value), "
            "or leave out the rows that have some."
        )


def describe_kind(kind: tuple[Any, ...], samples: int | str = "n") -> str:
    """Shapes and dtypes of a kind, such as ``x (n, 8) float32, y (n,) int64``."""
    x_structure, y_structure, bits, signature = kind
    names = names_of("x", x_structure) + names_of("y", y_structure)
    parts = []
    for name, is_bits, (dtype, trailing) in zip(names, bits, signature, strict=True):
        shape = ", ".join(str(size) for size in (samples, *trailing))
        shape += "," if not trailing else ""
        label = BFLOAT16 if is_bits else np.dtype(dtype).name
        parts.append(f"{name} ({shape}) {label}")
    return ", ".join(parts)


def names_of(side: str, structure: Structure) -> list[str]:
    """Name the leaves of a side as its giver would, such as ``x['age']``."""
    if structure is None:
        return [side]
    if isinstance(structure, int):
        return [f"{side}[{position}]" for position in range(structure)]
    if structure == ABSENT:
        return []
    return [f"{side}[{key!r}]" for key in structure]


# How an item of a stream may be read.
READY = "ready arrays"
RECORDS = "records"


def as_pair(item: Any) -> tuple[Any, Any]:
    """Read one item of a stream as a mini-batch ``(x, y)``.

    It is either ready arrays ``(x, y)``, or a tuple of records as ``Stream.partition``
    makes them, each itself a pair ``(x, y)``. What is meant is seen from ``y``, or from
    the shapes; see `tensair_dask.streams.record_form`, which decides it for a whole
    stream. Where that is not what you mean, give ``train(..., collate=...)``.

    Raises
    ------
    BatchError
        If the item is neither, or may be either.
    """
    return only_reading(item)[1]


def only_reading(item: Any) -> tuple[str, tuple[Any, Any]]:
    """Read an item as `as_pair` does; give the name of its form as well."""
    pairs = _readings(as_pair_by_name(item))
    if len(pairs) > 1:
        raise BatchError(
            f"The {type(item).__name__} of 2 items that the stream gave fits two "
            "readings: ready arrays (x, y), its items being x and y, and 2 records, "
            "each of them (x, y). Nothing else tells which. For records, put "
            "partition(n) straight before, or give collate=tensair_dask.batches.collate"
            "; for ready arrays, give collate=lambda item: item."
        )
    for found in pairs.items():
        return found
    raise no_batch(item)


def no_batch(item: Any) -> BatchError:
    """Say of an item that it is no mini-batch."""
    return BatchError(
        f"The stream gave a {type(item).__name__}"
        + (f" of {len(item)} items" if isinstance(item, (tuple, list)) else "")
        + "; a mini-batch is a pair (x, y) of arrays, or a tuple of such records as "
        "Stream.partition(n) makes. Put .map(parse) before, or give collate=."
        + _why_no_batch(item)
    )


def _why_no_batch(item: Any) -> str:
    """Say what of an item is not as it should be, where that can be seen."""
    if why := why_not_here(item, "item"):
        return f" The item {why}"
    if not isinstance(item, (tuple, list)) or not item:
        return ""
    if _is_pair(item):
        for side, value in zip("xy", item, strict=True):
            if why := why_not_here(value, side):
                return f" {side} {why}"
    if _is_pair(item) and len(getattr(item[0], "shape", ())) > 0:
        y = item[1]
        if y is None:
            return " y is None: where there is no target, give x as y again."
        if not hasattr(y, "__len__") or isinstance(y, str):  # one label
            return (
                f" y is {_in_short(y)}, and no array: where each item is one record, "
                "gather some with .partition(n), for example .partition(64)."
            )
        return f" y is {_in_short(y)}, and no array: give numpy.asarray(y)."
    for place, record in enumerate(item):
        if why := why_not_here(record, "record"):
            return f" Record {place} {why}"
        if not _is_pair(record):
            return (
                f" Record {place} is {_in_short(record)}; a record is a pair (x, y). "
                "What else belongs to it, such as a weight, goes to x or y: "
                "((x, w), y), or (x, (y, w)) for the loss."
            )
    return ""


def _in_short(value: Any) -> str:
    kind = type(value).__name__
    if isinstance(value, (tuple, list)):
        first = f", the first a {type(value[0]).__name__}" if value else ""
        return f"a {kind} of {len(value)} items{first}"
    return "None" if value is None else f"a {kind}"


def _readings(item: Any) -> dict[str, tuple[Any, Any]]:
    """Give what an item may be read as, by the name of the form; at most two."""
    is_ready, is_records = fits_ready(item), fits_records(item)
    if is_ready and is_records:
        return _readings_that_hold(item)
    if is_ready:
        return {READY: (item[0], item[1])}
    return {RECORDS: collate(item)} if is_records else {}


def _readings_that_hold(item: Any) -> dict[str, tuple[Any, Any]]:
    """Try both: arrays of other lengths are no mini-batch, of other shapes no stack."""
    found = {}
    with contextlib.suppress(BatchError):
        MiniBatch.of(item[0], item[1])
        found[READY] = (item[0], item[1])
    with contextlib.suppress(BatchError):
        pair = collate(item)
        MiniBatch.of(*pair)
        found[RECORDS] = pair
    return found


def fits_ready(item: Any) -> bool:
    """Whether an item looks like ready arrays ``(x, y)``."""
    if not (isinstance(item, (tuple, list)) and len(item) == 2):
        return False
    y = item[1]
    if type(y) is np.ndarray:
        return y.ndim > 0
    return _is_batched(y) or (isinstance(y, tuple) and _all_batched(y))


def fits_records(item: Any) -> bool:
    """Whether an item looks like records, each of them ``(x, y)``."""
    return isinstance(item, (tuple, list)) and bool(item) and all(map(_is_pair, item))


def made_of(
    item: Any,
    collate: Callable[[Any], Any],
    owned: bool = False,
    make: Callable[[Any, Any, bool], MiniBatch] = MiniBatch.of,
) -> MiniBatch:
    """Make the mini-batch of an item of a stream.

    Parameters
    ----------
    item
        What the stream gave.
    collate
        Makes ``(x, y)`` of it, or the mini-batch itself.
    owned
        Whether the arrays of the item are no one else's, and need no copy.
    make
        Makes the mini-batch of x and y.

    Raises
    ------
    BatchError
        If it is none, or what ``collate`` raises.
    """
    made = collate(item)
    if isinstance(made, MiniBatch):
        return made
    x, y = made
    # What else it is made of may be a buffer that collate uses again.
    pair = isinstance(item, (tuple, list)) and len(item) == 2
    owned = owned and pair and item[0] is x and item[1] is y
    return make(x, y, owned)


def as_refusal(error: Exception) -> TensairError:
    """Make of what was raised for an item an error that says so, if it is not typed."""
    words = in_words(error)
    if isinstance(error, RaisedError):
        words = str(error)
    elif isinstance(error, TensairError):
        return error
    refusal = BatchError(f"The item cannot be made a mini-batch: {words}")
    refusal.__cause__ = RaisedError.unless_fit(error)
    return refusal


@contextlib.contextmanager
def refusing() -> Iterator[None]:
    """Make typed errors of what an item raises when it is looked at.

    Its own code may run: ``__array__``, ``__iter__``, ``__repr__``. What it raises is
    no error of the caller's, and in a coroutine no StopIteration may be raised.

    Raises
    ------
    BatchError
        In place of what is no error of this package.
    """
    try:
        yield
    except BaseException as failure:
        refusal = as_refusal(RaisedError.caught(failure))
        raise refusal from refusal.__cause__


def _is_pair(record: Any) -> bool:
    return isinstance(record, (tuple, list)) and len(record) == 2


def _is_batched(y: Any) -> bool:
    """Whether y is one side of a ready mini-batch, not a record."""
    if type(y) is np.ndarray:
        return y.ndim > 0
    if why_not_here(y, "y"):
        return False
    if hasattr(y, "shape"):
        return len(y.shape) > 0
    if isinstance(y, Mapping):
        return _all_batched(tuple(y.values()))
    if isinstance(y, list):
        return all(isinstance(value, (int, float, np.number)) for value in y)
    return False


def _all_batched(sides: tuple[Any, ...]) -> bool:
    return bool(sides) and all(map(_is_batched, sides))


def collate(records: Iterable[tuple[Any, Any]]) -> tuple[Any, Any]:
    """Stack records ``(x, y)`` into one mini-batch.

    Parameters
    ----------
    records
        Each an ``(x, y)`` pair of one sample: numbers, arrays of one shape, or
        tuples or dicts of them.

    Returns
    -------
    x, y
        The same structure with arrays of shape (records, ...). Records that are rows
        of pandas (a Series with names, or a frame of one row) become a frame with
        their names.

    Raises
    ------
    ShapeError
        If the records differ in structure, keys, names or shape.
    """
    records = list(records)
    if {*map(type, records)} - {tuple, list}:
        records = [as_pair_by_name(record) for record in records]
    xs, ys = zip(*records, strict=True)
    return stack(xs, "x"), stack(ys, "y")


def stack(samples: Sequence[Any], name: str = "x") -> Any:
    """Stack one side of several records; see `collate`."""
    first = samples[0]
    for kind in {*map(type, samples)}:
        if why := why_kind_not_here(kind, name):
            raise BatchError(f"{name} of a record {why}")
    try:
        if isinstance(first, Mapping):
            _check_keys(samples, name)
            return {
                key: stack([sample[key] for sample in samples], f"{name}[{key!r}]")
                for key in first
            }
        if hasattr(first, "_fields"):
            return _stack_fields(samples, name)
        if isinstance(first, tuple):
            return tuple(
                stack(column, f"{name}[{position}]")
                for position, column in enumerate(zip(*samples, strict=True))
            )
        if hasattr(first, "detach"):
            import torch

            return torch.stack(list(samples))
        if is_row(first):
            if is_frame(first):
                return one_row_frames(samples, name)
            return _stack_rows(samples, name)
        for masked in [each for each in samples if isinstance(each, MaskedArray)]:
            check_unmasked(masked, name)
        return _narrow(np.stack([np.asarray(sample) for sample in samples]), first)
    except (ValueError, KeyError, TypeError, RuntimeError) as error:
        raise ShapeError(
            f"The records of a mini-batch differ in {name}: {error}. All records of "
            "a partition must have one structure and one shape."
        ) from error


def _check_keys(samples: Sequence[Any], name: str) -> None:
    """Refuse records of which one has other keys than the first, or is no dict."""
    first = samples[0].keys()
    for place, sample in enumerate(samples):
        if not isinstance(sample, Mapping):
            raise ShapeError(
                f"The records of a mini-batch differ in {name}: record 0 is a "
                f"{type(samples[0]).__name__}, and record {place} (of "
                f"{len(samples)}) is a {type(sample).__name__}. Give all of them "
                "one structure."
            )
        if sample.keys() == first:
            continue
        lacks = [key for key in first if key not in sample]
        more = [key for key in sample if key not in first]
        parts = [f"lacks {lacks[:8]}"] * bool(lacks) + [f"has {more[:8]}"] * bool(more)
        raise ShapeError(
            f"The records of a mini-batch differ in {name}: record {place} (of "
            f"{len(samples)}) {' and '.join(parts)}, unlike record 0. All must have "
            "the same keys: fill in a value where one is missing, such as "
            "{'key': 0.0, **record}, or give records of each kind a stream of "
            "their own."
        )


def _stack_fields(samples: Sequence[Any], name: str) -> Any:
    """Stack named tuples; each in the order of the first one's fields."""
    fields = samples[0]._fields
    ordered = [
        fields_in_order(sample, fields, f"{name} of record {place}")
        if hasattr(sample, "_fields")
        else sample
        for place, sample in enumerate(samples)
    ]
    columns = zip(*ordered, strict=True)
    stacked = [
        stack(column, f"{name}[{position}]") for position, column in enumerate(columns)
    ]
    return type(samples[0])._make(stacked)


def _stack_rows(rows: Sequence[Any], name: str) -> Any:
    """Make a frame of rows; each in the order of the first one's names."""
    from pandas import DataFrame  # is there, since the rows are

    names = rows[0].index
    for place, row in enumerate(rows):
        if not is_row(row):
            raise ShapeError(
                f"The records of a mini-batch differ in {name}: record 0 is a "
                f"{type(rows[0]).__name__} with names, and record {place} (of "
                f"{len(rows)}) is a {type(row).__name__} without."
            )
    ordered = [
        in_order(row, names, f"{name} of record {place}", "index")
        for place, row in enumerate(rows)
    ]
    return DataFrame(
        np.stack([_leaf(row, name)[0] for row in ordered]), columns=names, copy=False
    )


def _narrow(stacked: np.ndarray, first: Any) -> np.ndarray:
    """Python floats become float32, the dtype of PyTorch's parameters by default."""
    if isinstance(first, (float, list)) and stacked.dtype == np.float64:
        return stacked.astype(np.float32)
    return stacked
