"""A CUDA device played by the CPU, for where there is none: it tells what would fail or wait on a real one.

A tensor "on" it holds its numbers here, so that results can be compared; an operation between it and a tensor that is
not on it raises, as CUDA does, and so does a generator of the other device. What makes a program wait for the device (a
number read, a copy between devices, a selection whose size depends on values) is listed in `waits`.

Kernels, their rounding and memory are those of the CPU, and autocast does nothing: only placement and waiting are
played.
"""

import contextlib
from unittest import mock

import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

GPU = (
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here; the played one stands in for it"),
)
"""Marks of what needs a real device."""
CUDA, CPU = torch.device("cuda", 0), torch.device("cpu")
_aten = torch.ops.aten
_COPIES = {_aten._to_copy.default, _aten.copy_.default, _aten._copy_from.default}
_READS = {_aten._local_scalar_dense.default, _aten.equal.default, _aten.is_nonzero.default}
_SIZED = {
    _aten.nonzero.default, _aten.masked_select.default, _aten._unique2.default, _aten.unique_dim.default,
    _aten.unique_consecutive.default, _aten.repeat_interleave.Tensor, _aten.bincount.default,
}  # fmt: skip
_CHECKED = tuple(  # factorisations: they read back whether they succeeded
    f"aten::{name}"
    for name in ("_linalg", "cholesky", "linalg_chol", "linalg_eig", "linalg_inv", "linalg_l", "linalg_q")
)
_FILLING = {_aten.masked_fill.Tensor, _aten.masked_fill_.Tensor, _aten.fill_.Tensor}
_INDEXING = {_aten.index.Tensor, _aten.index_put_.default, _aten.index_put.default, _aten._index_put_impl_.default}


class OnDevice(torch.Tensor):
    """A tensor that says it is on CUDA; `held` has its numbers."""

    device, is_cuda, is_cpu, is_meta = CUDA, True, False, False

    @staticmethod
    def __new__(cls, held: torch.Tensor):
        made = torch.Tensor._make_wrapper_subclass(
            cls, held.size(), strides=held.stride(), storage_offset=held.storage_offset(), dtype=held.dtype,
            layout=held.layout, device="meta",
        )  # fmt: skip
        made.held = held
        return made

    def __repr__(self):
        return f"OnDevice({self.held})"

    @classmethod
    def __torch_dispatch__(cls, operation, types, args=(), kwargs=None):
        return Device.active.run(operation, args, kwargs or {})

    def numpy(self, *args, **kwargs):
        raise TypeError("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() first")

    __array__ = numpy

    def tolist(self):
        return self.cpu().tolist()


class Generator(torch.Generator):
    """A generator of either device; both draw alike."""

    def __new__(cls, device="cpu"):
        made = super().__new__(cls, "cpu")
        made.of = torch.device(device).type
        return made

    def __init__(self, device="cpu"):
        super().__init__()

    @property
    def device(self):
        return CUDA if self.of == "cuda" else CPU

    def manual_seed(self, seed):
        super().manual_seed(seed)
        return self


class Device(TorchDispatchMode):
    """The device while it is there. `waits`: names of the operations that had to wait for it."""

    active: "Device"

    def __init__(self):
        super().__init__()
        self.waits = []

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        return self.run(operation, args, kwargs or {})

    def run(self, operation, args, kwargs):
        leaves = tree_leaves((args, kwargs))
        inside = [x for x in leaves if isinstance(x, OnDevice)]
        outside = [x for x in leaves if isinstance(x, torch.Tensor) and not isinstance(x, OnDevice)]
        asked = kwargs.get("device")
        to = torch.device(asked).type if asked is not None else "cuda" if inside else "cpu"
        to = "cuda" if to == "meta" else to  # what C++ takes its tensors for: `x.to(other)`, `x.new_zeros(3)`
        if operation in _COPIES:
            if operation is _aten.copy_.default:
                to = "cuda" if isinstance(args[0], OnDevice) else "cpu"
            if bool(inside) != (to == "cuda") or (inside and outside):
                self.waits.append(operation.name())
        elif inside:
            self._check(operation, args, kwargs, outside)
        if inside and (operation in _READS | _SIZED or operation.name().startswith(_CHECKED)):
            self.waits.append(operation.name())
        if to == "cpu" and not inside:
            return operation(*args, **kwargs)
        owner = {id(x.held): x for x in inside}
        bare = tree_map(lambda x: x.held if isinstance(x, OnDevice) else x, (args, kwargs))
        if asked is not None:
            bare[1]["device"] = CPU
        if operation is _aten._to_copy.default and bare[1].get("dtype") in (None, bare[0][0].dtype):
            found = bare[0][0].clone()  # else the CPU would hand back the same tensor
        else:
            found = operation(*bare[0], **bare[1])
        if to == "cpu":
            return found
        return tree_map(
            lambda x: owner[id(x)] if id(x) in owner else OnDevice(x) if isinstance(x, torch.Tensor) else x, found
        )

    def _check(self, operation, args, kwargs, outside):
        if operation in _INDEXING:
            indices = [x for x in args[1] if x is not None]
            if any(x.dtype in (torch.bool, torch.uint8) for x in indices) or not all(
                isinstance(x, OnDevice) for x in indices
            ):
                self.waits.append(f"{operation.name()} by a mask or from the CPU")
            outside = [x for x in outside if not any(x is index for index in indices)]
            if not isinstance(args[0], OnDevice):
                raise RuntimeError("indices should be either on cpu or on the same device as the indexed tensor (cpu)")
        if not outside:
            return
        written = [
            value
            for i, argument in enumerate(operation._schema.arguments)
            if argument.alias_info is not None and argument.alias_info.is_write
            for value in tree_leaves(args[i] if i < len(args) else kwargs.get(argument.name))
        ]
        scalars = torch.Tag.pointwise in operation.tags or operation in _FILLING
        scalar = len(outside) == 1 and outside[0].ndim == 0 and not any(outside[0] is x for x in written)
        if not (scalars and scalar):
            shapes = [tuple(x.shape) for x in outside]
            raise RuntimeError(
                f"Expected all tensors to be on the same device, but {shapes} are on the cpu ({operation})"
            )


Device.active = Device()  # for tensors that outlive theirs


class _Indexed(TorchFunctionMode):
    """ "cuda" means its first device."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        def named(x):
            return CUDA if x == "cuda" or x == torch.device("cuda") else x

        plain = [named(x) if isinstance(x, str | torch.device) else x for x in args]
        named_ones = {k: named(v) if isinstance(v, str | torch.device) else v for k, v in (kwargs or {}).items()}
        generator = named_ones.get("generator")
        if generator is not None:
            like = args[0].device if args and isinstance(args[0], torch.Tensor) else CPU
            to = torch.device(named_ones.get("device") or like).type
            if getattr(generator, "of", "cpu") != to:
                raise RuntimeError(f"Expected a '{to}' device type for generator ({function.__name__})")
        if function is torch.device:
            return function(*args, **(kwargs or {}))
        if function in (torch.tensor, torch.as_tensor) and named_ones.get("device") == CUDA:  # made here, then moved
            dtype = named_ones.pop("dtype", None)
            given = args[0] if isinstance(args[0], torch.Tensor) else torch.tensor(args[0], dtype=dtype)
            return given.to(CUDA, dtype or given.dtype)
        return function(*plain, **named_ones)


@contextlib.contextmanager
def cuda():
    """Within it torch finds one CUDA device, the played one; yields it."""
    device = Device()
    replaced = {
        "_lazy_init": lambda: None, "is_available": lambda: True, "is_bf16_supported": lambda *_: True,
        "current_device": lambda: 0, "device_count": lambda: 1, "get_device_name": lambda *_: "a pretended device",
        "get_rng_state": lambda *_: torch.get_rng_state(), "manual_seed_all": lambda seed: None,
        "set_rng_state": lambda state, *_: torch.set_rng_state(state),
    }  # fmt: skip
    overwrite = torch.__future__.get_overwrite_module_params_on_conversion()
    with (
        mock.patch.multiple(torch.cuda, **replaced),
        mock.patch.object(torch, "Generator", Generator),
        mock.patch.object(Device, "active", device),
    ):
        torch.__future__.set_overwrite_module_params_on_conversion(True)
        try:
            with _Indexed(), device:
                yield device
        finally:
            torch.__future__.set_overwrite_module_params_on_conversion(overwrite)
