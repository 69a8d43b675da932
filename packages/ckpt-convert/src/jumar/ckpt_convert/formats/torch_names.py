"""The names that checkpoints pickle: torch's storages and dtypes, and what may stand in the tree as a name."""

from __future__ import annotations

STORAGE_DTYPES = {
    "DoubleStorage": "F64",
    "FloatStorage": "F32",
    "HalfStorage": "F16",
    "BFloat16Storage": "BF16",
    "LongStorage": "I64",
    "IntStorage": "I32",
    "ShortStorage": "I16",
    "CharStorage": "I8",
    "ByteStorage": "U8",
    "BoolStorage": "BOOL",
    "ComplexFloatStorage": "C64",
}
"""torch storage class -> safetensors dtype (torch/storage.py, `_dtype_to_storage_type_map`); newer dtypes have none."""

NEW_DTYPES = {
    "uint16": "U16",
    "uint32": "U32",
    "uint64": "U64",
    "float8_e4m3fn": "F8_E4M3",
    "float8_e5m2": "F8_E5M2",
}
"""torch dtype -> safetensors dtype, of those saved as untyped bytes (torch/storage.py, `_new_dtypes`)."""

TORCH_DTYPES = {
    "float64": "F64",
    "float32": "F32",
    "float16": "F16",
    "bfloat16": "BF16",
    "int64": "I64",
    "int32": "I32",
    "int16": "I16",
    "int8": "I8",
    "uint8": "U8",
    "bool": "BOOL",
    **NEW_DTYPES,
}
"""torch dtype -> safetensors dtype."""

UNTYPED_STORAGES = {("torch.storage", "UntypedStorage"), ("torch.storage", "TypedStorage"), ("torch", "UntypedStorage")}

UNREADABLE = {
    "_rebuild_sparse_tensor": "a sparse tensor",
    "_rebuild_qtensor": "a quantized tensor",
    "_rebuild_meta_tensor_no_storage": "a meta tensor, which has no data",
    "_rebuild_nested_tensor": "a nested tensor",
    "_rebuild_wrapper_subclass": "a wrapper tensor, which has no storage",
    "_rebuild_device_tensor_from_numpy": "a tensor saved through numpy",
}
"""Functions of torch._utils that make tensors which cannot be read, and what to call these."""

PACKAGES = frozenset({"megatron", "mindspeed", "mindspeed_llm", "modellink", "torch_npu"})
"""Training stacks, whose enums and small classes stand in `args`: every name in them is inert, and so is calling it."""

BYTE_HOLDERS = frozenset({"numpy", "_io"})
"""Packages of objects that are rebuilt from raw bytes: of these only the name is kept."""

_DTYPES = """
float64 float32 float16 bfloat16 int64 int32 int16 int8 uint8 bool complex32 complex64 complex128 uint16 uint32 uint64
float8_e4m3fn float8_e5m2 float8_e4m3fnuz float8_e5m2fnuz float8_e8m0fnu float4_e2m1fn_x2
qint8 qint32 quint8 quint4x2 quint2x4 bits8 bits16 bits1x8 bits2x4 bits4x2
int1 int2 int3 int4 int5 int6 int7 uint1 uint2 uint3 uint4 uint5 uint6 uint7
"""
_OTHERS = "ComplexDouble QInt8 QInt32 QUInt8 QUInt4x2 QUInt2x4"
_PATHS = "Path PosixPath WindowsPath PurePath PurePosixPath PureWindowsPath"
_NUMPY = {"_reconstruct": "multiarray", "scalar": "multiarray", "_frombuffer": "numeric"}

NAMES = (
    {("torch", name) for name in (*STORAGE_DTYPES, *_DTYPES.split(), "Tensor")}
    | {("torch", f"{name}Storage") for name in _OTHERS.split()}
    | {("torch._tensor", "Tensor")}
    | {("builtins", name) for name in ("int", "float", "bool", "str", "list", "dict", "tuple")}  # of a defaultdict
    | UNTYPED_STORAGES
)
"""Globals that may stand in the tree, and may not be called."""

CALLS = (
    {("torch", "device"), ("signal", "Signals"), ("_io", "BytesIO"), ("numpy", "ndarray"), ("numpy", "dtype")}
    | {(module, name) for module in ("pathlib", "pathlib._local") for name in _PATHS.split()}
    | {(f"numpy.{core}.{module}", name) for core in ("core", "_core") for name, module in _NUMPY.items()}
)
"""Globals that become an `Inert` with arguments when called."""


def is_inert(module: str, name: str) -> bool:
    """If a global may stand in the tree as a name."""
    signals = module == "signal" and name.startswith("SIG") and name.isalnum()  # Python 3.10 pickles these by name
    return (module, name) in NAMES or signals or is_inert_call(module, name)


def is_inert_call(module: str, name: str) -> bool:
    """If calling a global makes an `Inert`."""
    return (module, name) in CALLS or module.split(".")[0] in PACKAGES
