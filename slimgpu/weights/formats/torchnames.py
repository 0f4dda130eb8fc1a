"""The short list: every global that the pickle of a checkpoint may name, and what it stands for here.

A name is only ever compared with these tables: nothing is imported, whatever a file asks for.

Source: https://github.com/pytorch/pytorch/blob/main/torch/_weights_only_unpickler.py and ``torch/storage.py``.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

DTYPES: Final[Mapping[str, str]] = MappingProxyType(
    {
        "torch.float64": "F64",
        "torch.float32": "F32",
        "torch.float16": "F16",
        "torch.bfloat16": "BF16",
        "torch.float8_e4m3fn": "F8_E4M3",
        "torch.float8_e5m2": "F8_E5M2",
        "torch.float8_e4m3fnuz": "F8_E4M3FNUZ",
        "torch.float8_e5m2fnuz": "F8_E5M2FNUZ",
        "torch.float8_e8m0fnu": "F8_E8M0",
        "torch.float4_e2m1fn_x2": "U8",  # two values a byte, and torch counts the bytes
        "torch.complex64": "C64",
        "torch.complex128": "C128",
        "torch.int64": "I64",
        "torch.int32": "I32",
        "torch.int16": "I16",
        "torch.int8": "I8",
        "torch.uint64": "U64",
        "torch.uint32": "U32",
        "torch.uint16": "U16",
        "torch.uint8": "U8",
        "torch.bool": "BOOL",
        "torch.qint32": "I32",
        "torch.qint8": "I8",
        "torch.quint8": "U8",
        "torch.quint4x2": "U8",
        "torch.quint2x4": "U8",
    }
)

_STORAGE_KINDS: Final = {
    "Double": "F64",
    "Float": "F32",
    "Half": "F16",
    "BFloat16": "BF16",
    "ComplexDouble": "C128",
    "ComplexFloat": "C64",
    "Long": "I64",
    "Int": "I32",
    "Short": "I16",
    "Char": "I8",
    "Byte": "U8",
    "Bool": "BOOL",
    "QInt32": "I32",
    "QInt8": "I8",
    "QUInt8": "U8",
    "QUInt4x2": "U8",
    "QUInt2x4": "U8",
}

STORAGES: Final[Mapping[str, str]] = MappingProxyType(
    {
        **{f"torch.{kind}Storage": dtype for kind, dtype in _STORAGE_KINDS.items()},
        **{f"torch.cuda.{kind}Storage": dtype for kind, dtype in _STORAGE_KINDS.items()},
        "torch.storage.UntypedStorage": "U8",
        "torch.storage._UntypedStorage": "U8",
        "torch.UntypedStorage": "U8",
    }
)
"""The type of a storage's elements; an untyped one counts bytes."""

PLAIN_REBUILD: Final = frozenset({"torch._utils._rebuild_tensor", "torch._utils._rebuild_tensor_v2"})
"""Called with a storage, an offset, a size and a stride, in elements."""
TYPED_REBUILD: Final = "torch._utils._rebuild_tensor_v3"
"""The same, and the type is the seventh argument."""
TYPE_AT: Final = 6
WRAPPERS: Final = frozenset(
    {
        "torch._utils._rebuild_parameter",
        "torch._utils._rebuild_parameter_with_state",
        "torch.nn.parameter.Parameter",
        "torch.Size",
    }
)
"""Stand for their first argument."""
FROM_TYPE: Final = "torch._tensor._rebuild_from_type_v2"
"""Called with a function, a class and the function's arguments."""
DICTIONARIES: Final = frozenset({"collections.OrderedDict"})
_OTHERS: Final = frozenset(
    {
        "_codecs.encode",
        "builtins.bytearray",
        "builtins.complex",
        "builtins.set",
        "__builtin__.bytearray",
        "__builtin__.complex",
        "__builtin__.set",
        "torch.Tensor",
        "torch.device",
        "torch.serialization._get_layout",
        "torch._utils._rebuild_qtensor",
        "torch._utils._rebuild_sparse_tensor",
        "torch.per_tensor_affine",
        "torch.per_tensor_symmetric",
        "torch.per_channel_affine",
        "torch.per_channel_symmetric",
        "torch.per_channel_affine_float_qparams",
    }
)
"""Harmless in torch's own eyes, and their results tell nothing about where tensors lie."""

ALLOWED: Final = (
    frozenset((*DTYPES, *STORAGES, TYPED_REBUILD, FROM_TYPE)) | PLAIN_REBUILD | WRAPPERS | DICTIONARIES | _OTHERS
)
