"""What TensorRT's ONNX parser takes: operators, types and the limits that bind between them.

Without a GPU there is no TensorRT to ask, and with one the answer comes after minutes, as the
first node that failed. The parser's authors publish a table; here it is as data.

Source: onnx/onnx-tensorrt, docs/operators.md, for TensorRT 11.2 (opset 9 to 24). Limits that the
table does not state (rank, shape tensors) are from TensorRT's developer guide.
"""

from __future__ import annotations

from onnx import TensorProto

SOURCE = "onnx-tensorrt docs/operators.md for TensorRT 11.2"
OPSETS = range(9, 25)
MAX_RANK = 8
MAX_ELEMENTS = 2**31 - 1

TYPE_NAMES = {
    TensorProto.FLOAT: "FP32",
    TensorProto.FLOAT16: "FP16",
    TensorProto.BFLOAT16: "BF16",
    TensorProto.FLOAT8E4M3FN: "FP8",
    TensorProto.FLOAT4E2M1: "FP4",
    TensorProto.INT4: "INT4",
    TensorProto.INT8: "INT8",
    TensorProto.INT32: "INT32",
    TensorProto.INT64: "INT64",
    TensorProto.UINT8: "UINT8",
    TensorProto.BOOL: "BOOL",
}
"""TensorRT's names of ONNX types; a type that is not here cannot be in a network."""

_SMALL = "FP32 FP16"
_FLOATS = "FP32 FP16 BF16"
_NUMBERS = "FP32 FP16 BF16 INT32 INT64"
_ANY = "FP32 FP16 BF16 INT32 INT64 BOOL"

_TABLE = {
    _SMALL: """BlackmanWindow DeformConv HammingWindow HannWindow Mish NonMaxSuppression NonZero
        RoiAlign""",
    _FLOATS: """Acos Acosh Asin Asinh Atan Atanh AveragePool BatchNormalization Ceil Celu Clip Conv
        ConvTranspose Cos Cosh CumSum DFT Dropout Einsum Elu Erf Exp Floor GRU Gemm
        GlobalAveragePool GlobalLpPool GlobalMaxPool GridSample GroupNormalization HardSigmoid
        HardSwish Hardmax ImageScaler InstanceNormalization IsInf LRN LSTM LayerNormalization
        LeakyRelu Log LogSoftmax LpNormalization LpPool MatMul MaxPool MeanVarianceNormalization
        PRelu ParametricSoftplus QuantizeLinear RMSNormalization RNN RandomNormal RandomNormalLike
        RandomUniform RandomUniformLike Reciprocal Resize RotaryEmbedding Round STFT ScaledTanh
        Scan Selu Sigmoid Sin Sinh Softmax Softplus Softsign Sqrt Swish Tan Tanh ThresholdedRelu
        Upsample""",
    _NUMBERS: """Abs Add ArgMax ArgMin DepthToSpace Div Equal Greater GreaterOrEqual IsNaN Less
        LessOrEqual Max Min Mod Mul Neg Pad Pow Range ReduceL1 ReduceL2 ReduceLogSum
        ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum ReduceSumSquare Relu
        Scatter ScatterElements ScatterND Shrink Sign SpaceToDepth Sub Sum TopK""",
    _ANY: """Concat Expand EyeLike Flatten Gather GatherElements GatherND Identity If Loop OneHot
        Reshape ReverseSequence Shape Size Slice Split Squeeze Tile Transpose Trilu Unsqueeze
        Where""",
    "BOOL": "And Not Or Xor",
    f"{_FLOATS} INT8 FP8": "Attention",
    f"{_ANY} UINT8": "Cast CastLike",
    f"{_ANY} FP8 FP4 INT4": "Constant ConstantOfShape",
    "INT8 FP8 FP4 INT4": "DequantizeLinear",
    f"{_NUMBERS} INT8": "Gelu",
    f"{_NUMBERS} FP8": "Mean",
    f"{_FLOATS} INT32": "TensorScatter",
}

SUPPORTED: dict[str, frozenset[str]] = {
    name: frozenset(types.split()) for types, names in _TABLE.items() for name in names.split()
}
"""The types that each operator takes; an operator that is not here is not supported."""

INSTEAD = {
    "DynamicQuantizeLinear": "build with --target tensorrt, which quantises statically",
    "MatMulInteger": "build with --target tensorrt, which quantises with Q/DQ pairs",
    "ConvInteger": "build with --target tensorrt, which quantises with Q/DQ pairs",
    "QLinearMatMul": "build with --target tensorrt, which quantises with Q/DQ pairs",
    "QLinearConv": "build with --target tensorrt, which quantises with Q/DQ pairs",
    "BitwiseAnd": "use And on booleans",
    "BitwiseOr": "use Or on booleans",
    "BitwiseNot": "use Not on booleans",
}
"""What to do about operators that quantisers and exporters are known to write."""

DATA_INPUT = {"Where": 1, "OneHot": 2, "Loop": 2}
"""Which input carries the data whose type counts, where it is not the first."""
UNTYPED = {"If", "Loop", "Scan"}
"""Operators whose types are those of the graphs inside."""

SHAPE_INPUTS = {
    "ConstantOfShape": (0,),
    "Expand": (1,),
    "Pad": (1,),
    "Range": (0, 1, 2),
    "Reshape": (1,),
    "Resize": (2, 3),
    "Slice": (1, 2, 4),
    "Split": (1,),
    "Tile": (1,),
    "Upsample": (1,),
}
"""Inputs whose values decide a shape: TensorRT must know them before it runs anything."""

CONSTANT_INPUTS = {
    "CumSum": (1,),
    "OneHot": (1,),
    "Squeeze": (1,),
    "Unsqueeze": (1,),
    "QuantizeLinear": (1, 2),
    "DequantizeLinear": (1, 2),
    **{name: (1,) for name in SUPPORTED if name.startswith("Reduce")},
}
"""Inputs that must be constants of the graph."""

SHAPE_ARITHMETIC = {
    *("Abs", "Add", "And", "Cast", "Ceil", "Clip", "Concat", "Constant", "ConstantOfShape", "Div"),
    *("Equal", "Expand", "Floor", "Gather", "Greater", "GreaterOrEqual", "Identity", "Less"),
    *("LessOrEqual", "Max", "Min", "Mod", "Mul", "Neg", "Not", "Or", "Range", "ReduceMax"),
    *("ReduceMin", "ReduceProd", "ReduceSum", "Reshape", "Shape", "Size", "Slice", "Squeeze"),
    *("Sub", "Sum", "Transpose", "Unsqueeze", "Where"),
}
"""What may stand between a shape and where it is used."""
