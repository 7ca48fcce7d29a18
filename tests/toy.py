"""A toy bundle: every step of the standard contract as a graph of a few nodes, made in a blink.

Tests of the SDK, the server and the exporter's checks need a whole bundle, not a good one. This
one has random weights of width 8, honours every tensor of the contract, and needs no torch.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers

from merkit.bundle import Bundle, sha256_file, write_manifest
from merkit.contract import MODALITIES, Contract, Hearing, Preprocessing, TensorSpec
from merkit.pipeline import GROUP_MODALITIES, GROUPS, Chain, standard_contract
from merkit.ragged import graph_inputs

LABELS = ("neutral", "angry", "happy", "sad", "worried", "surprise")
WIDTH = 8
SILENCE_DBFS = Preprocessing().silence_dbfs
TOKENS = ("<blank>", "<s>", "oh", "no", "so@@", "on", "我", "们", "<unk>", "</s>")
MARKS = ("<unk>", "_", "，", "。", "？", "、")
WORDS = ("<unk>", "oh", "no", "soon", "on", "我", "们")
BLOCK = 4000
"""Samples of which the toy recogniser makes a token: the louder, the later in `TOKENS`."""
HEARS = Chain(
    Hearing(beam=3, language_weight=0.1, joint_hears="cleaned"), len(TOKENS), True, len(MARKS)
)
ONNX_TYPES = {
    "uint8": TensorProto.UINT8,
    "int32": TensorProto.INT32,
    "int64": TensorProto.INT64,
    "float32": TensorProto.FLOAT,
    "bool": TensorProto.BOOL,
}


def write_toy_bundle(
    root: Path,
    labels: tuple[str, ...] = LABELS,
    seed: int = 0,
    preprocessing: Preprocessing | None = None,
    chain: Chain | None = None,
) -> Bundle:
    """Writes a bundle below `root` and opens it; with a `chain` it hears."""
    contract = standard_contract(labels, dict.fromkeys(GROUPS, WIDTH), preprocessing, chain=chain)
    rng = np.random.default_rng(seed)
    makers = {
        "preprocess": lambda g: _preprocess(g, contract),
        "face_encoder": lambda g: _encoder(g, "face_grid", (1, 2, 3), rng, GROUPS["v"]),
        "face_encoder_large": lambda g: _encoder(g, "face_grid", (1, 2, 3), rng, GROUPS["V"]),
        "audio_encoder": lambda g: _ragged_encoder(g, "audio", "values", rng, GROUPS["a"]),
        "text_encoder": lambda g: _ragged_encoder(g, "text", "ids", rng, GROUPS["t"]),
        "joint_encoder": lambda g: _ragged_encoder(g, "joint", "ids", rng, GROUPS["j"]),
        "fusion": lambda g: _fusion(g, contract, rng),
        "voting": lambda g: _voting(g, contract),
    }
    if chain:
        makers["recognize"] = lambda g: _recognize(g, chain.separated)
        makers |= {"separate": _separate} if chain.separated else {}
        makers |= {"punctuate": _punctuate} if chain.marks else {}
    digests = {}
    for name, make in makers.items():
        path = root / name / "1" / "model.onnx"
        path.parent.mkdir(parents=True, exist_ok=True)
        onnx.save(_model(name, contract, make), path)
        digests[name] = sha256_file(path)
    tokenizer = root / "tokenize" / "1" / "tokenizer.json"
    tokenizer.parent.mkdir(parents=True, exist_ok=True)
    _tokenizer(tokenizer)
    digests["tokenize"] = sha256_file(tokenizer)
    if chain:
        digests["transcribe"] = sha256_file(_chain_resources(root, chain))
    voters = [{"name": v.name, "waf": 0.5, "temperature": 1.0} for v in contract.voters]
    return write_manifest(root, contract, digests, {"name": "toy", "voters": voters})


class _Graph:
    """Nodes with automatic names, for graphs short enough to write by hand."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []

    def __call__(self, op: str, *inputs: str, name: str | None = None, **attributes: object) -> str:
        output = name or f"{op.lower()}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, list(inputs), [output], **attributes))
        return output

    def constant(self, value: object, dtype: str = "float32", name: str | None = None) -> str:
        name = name or f"constant_{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.array(value, dtype), name))
        return name


def _model(step: str, contract: Contract, make: object) -> onnx.ModelProto:
    graph = _Graph()
    make(graph)  # type: ignore[operator]
    spec = contract.step(step)
    read = {name for node in graph.nodes for name in node.input}
    inputs = graph_inputs(spec, contract.tensors)
    for name in inputs:  # ORT drops what nothing reads: read it
        if name not in read:
            graph("Identity", name)
    made = helper.make_graph(
        graph.nodes,
        step,
        [_value(name, tensor) for name, tensor in inputs.items()],
        [_value(name, contract.tensors[name]) for name in spec.outputs],
        graph.constants,
    )
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    helper.set_model_props(model, {"contract_id": contract.contract_id})
    onnx.checker.check_model(model)
    return model


def _value(name: str, spec: TensorSpec) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, ONNX_TYPES[spec.dtype], list(spec.shape))


def _preprocess(g: _Graph, contract: Contract) -> None:
    hearing = contract.hearing or Hearing()
    sound = "cleaned" if hearing.audio_hears == "cleaned" else "waveform"
    joint = "cleaned" if hearing.joint_hears == "cleaned" else "waveform"
    total = g(
        "ReduceSum",
        g("Cast", "face_crops", to=TensorProto.FLOAT),
        g.constant([1], "int64"),
        keepdims=0,
    )
    image = g("Transpose", g("Div", total, g.constant(2040.0)), perm=[0, 3, 1, 2])
    g("Tile", image, g.constant([1, 1, 2, 2], "int64"), name="face_grid")
    g("Pad", sound, g.constant([0, 0, 0, 1600], "int64"), name="audio_values")
    g("Identity", "waveform_length", name="audio_length")
    padded = g("Pad", joint, g.constant([0, 0, 0, 1600], "int64"))
    total = g("ReduceSum", padded, g.constant([1], "int64"))
    samples = g("Max", g("Cast", "audio_length", to=TensorProto.FLOAT), g.constant(1.0))
    mean = g("Unsqueeze", g("Div", total, samples), g.constant([2], "int64"))
    g("Mul", mean, g.constant(np.ones((1, 80, 400))), name="log_mel")
    zero, short = g.constant(0, "int64"), g.constant(1600, "int64")
    energy = g("ReduceSum", g("Mul", "waveform", "waveform"), g.constant([1], "int64"))
    power = g("Div", energy, g("Cast", g("Max", "waveform_length", short), to=1))
    loud = g("Greater", power, g.constant(10 ** (SILENCE_DBFS / 10)))
    presence = [
        g("Greater", "face_count", zero),
        g("And", g("Greater", "waveform_length", short), loud),
        g("Greater", "text_length", zero),
    ]
    g("Concat", *presence, axis=1, name="presence")


def _separate(g: _Graph) -> None:
    """A voice of three quarters of the sound and one of a quarter, each within the mixture."""
    zero, one = g.constant(0, "int64"), g.constant(1, "int64")
    samples = g("Gather", g("Shape", "speech"), one)
    inside = g("Less", g("Range", zero, samples, one), "mixture_length")
    mixed = g("Where", inside, "speech", g.constant(0.0))
    row = g("Unsqueeze", mixed, g.constant([1], "int64"))
    g("Mul", row, g.constant([[[0.75], [0.25]]]), name="sources")


def _recognize(g: _Graph, separated: bool) -> None:
    """A token for each begun `BLOCK`, by its mean amplitude."""
    one, block = (g.constant([n], "int64") for n in (1, BLOCK))
    sounds, lengths = g("Unsqueeze", "speech", one), ["speech_length"]
    if separated:
        sounds = g("Concat", sounds, "sources", axis=1)
        lengths += 2 * ["mixture_length"]
    rows = g("Shape", sounds, end=2)
    samples = g("Shape", sounds, start=2)
    whole = g("Sub", g("Add", samples, block), g("Mod", samples, block))  # of nothing one, too
    missing = g("Concat", g.constant([0] * 5, "int64"), g("Sub", whole, samples), axis=0)
    shape = g("Concat", rows, g("Div", whole, block), block, axis=0)
    blocks = g("Reshape", g("Pad", sounds, missing), shape)
    level = g("ReduceMean", g("Abs", blocks), g.constant([3], "int64"))
    place = g("Add", g("Mul", level, g.constant(40.0)), g.constant(0.2))
    far = g("Sub", place, g.constant(np.arange(len(TOKENS))))
    g("LogSoftmax", g("Neg", g("Mul", far, far)), axis=3, name="token_logs")
    begun = g("Add", g("Concat", *lengths, axis=1), g.constant(BLOCK - 1, "int64"))
    g("Div", begun, block, name="token_count")


def _punctuate(g: _Graph) -> None:
    """The mark that the word's id says."""
    kind = g("Cast", g("Mod", "word_ids", g.constant(len(MARKS), "int64")), to=TensorProto.FLOAT)
    far = g(
        "Sub", g("Unsqueeze", kind, g.constant([2], "int64")), g.constant(np.arange(len(MARKS)))
    )
    g("Mul", g("Mul", far, far), g.constant(-1.0), name="mark_scores")


def _chain_resources(root: Path, chain: Chain) -> Path:
    folder = root / "transcribe" / "1"
    folder.mkdir(parents=True)
    (folder / "tokens.json").write_text(json.dumps(TOKENS), "utf-8")
    if chain.marks:
        words = json.dumps({"tokens": WORDS, "marks": MARKS}, ensure_ascii=False)
        for step in ("transcribe", "tokenize"):
            (root / step / "1" / "words.json").write_text(words, "utf-8")
    known = [token for token in TOKENS if token not in ("<blank>", "<s>")]
    grams = "".join(f"-1.0 {token}\n" for token in known)
    arpa = f"\\data\\\nngram 1={len(known)}\n\n\\1-grams:\n{grams}\n\\end\\\n"
    (folder / "language.arpa").write_text(arpa, "utf-8")
    return folder / "tokens.json"


def _encoder(
    g: _Graph, source: str, axes: tuple[int, ...], rng: np.random.Generator, output_name: str
) -> None:
    mean = g("ReduceMean", source, g.constant(axes, "int64"), keepdims=0)
    _head(g, g("Unsqueeze", mean, g.constant([1], "int64")), rng, output_name)


def _ragged_encoder(
    g: _Graph, modality: str, kind: str, rng: np.random.Generator, output_name: str
) -> None:
    """The mean of each clip's values, told apart as `merkit.ragged` says."""
    source, length = f"{modality}_{kind}", f"{modality}_length"
    widths = g("Cast", f"{source}_widths", to=TensorProto.INT64)
    ends = g("CumSum", widths, g.constant(0, "int64"))
    column = g(
        "Range",
        g.constant(0, "int64"),
        g("Squeeze", g("Shape", f"{source}_span")),
        g.constant(1, "int64"),
    )
    real = g("Less", column, g("Min", widths, length))
    at = g("Where", real, g("Add", g("Sub", ends, widths), column), g("Shape", source))
    values = g("Cast", source, to=TensorProto.FLOAT)
    if kind == "ids":  # else they saturate, and no word makes a difference
        values = g("Div", values, g.constant(100.0))
    padded = g("Gather", g("Concat", values, g.constant([0.0]), axis=0), at)
    total = g("ReduceSum", padded, g.constant([1], "int64"))
    _head(g, g("Div", total, g("Max", g("Cast", length, to=1), g.constant(1.0))), rng, output_name)


def _head(g: _Graph, column: str, rng: np.random.Generator, output_name: str) -> None:
    output = g("MatMul", column, g.constant(rng.normal(size=(1, WIDTH))))
    g("Tanh", output, name=output_name)


def _fusion(g: _Graph, contract: Contract, rng: np.random.Generator) -> None:
    present = {}
    for group, modalities in GROUP_MODALITIES.items():
        mask = np.isin(MODALITIES, modalities).astype("float32")[:, None]
        hits = g("MatMul", g("Cast", "presence", to=TensorProto.FLOAT), g.constant(mask))
        present[group] = g("Min", hits, g.constant(1.0))
    rows, spoke, shares = [], [], []
    for voter in contract.voters:
        masked = [g("Mul", GROUPS[group], present[group]) for group in voter.groups]
        width = WIDTH * len(voter.groups)
        weights = g.constant(rng.normal(size=(width, len(contract.labels))))
        logits = g("MatMul", g("Concat", *masked, axis=1), weights)
        anyone = g("Min", g("Sum", *(present[group] for group in voter.groups)), g.constant(1.0))
        rows.append(g("Unsqueeze", logits, g.constant([2], "int64")))
        spoke.append(g("Unsqueeze", anyone, g.constant([1], "int64")))
        mine = [
            present[p] if p in voter.groups else g("Mul", present[p], g.constant(0.0))
            for p in GROUPS
        ]
        share = g("Concat", *mine, axis=1)
        total = g("Max", g("ReduceSum", share, g.constant([1], "int64")), g.constant(1.0))
        shares.append(g("Unsqueeze", g("Div", share, total), g.constant([1], "int64")))
    temperatures = g.constant(np.ones(len(contract.voters)), name="temperatures")
    log_prior = g.constant(np.zeros(len(contract.labels)), name="log_prior")
    cooled = g("Transpose", g("Div", g("Concat", *rows, axis=2), temperatures), perm=[0, 2, 1])
    scores = g("Softmax", g("Add", cooled, log_prior), axis=2)
    g("Mul", scores, g("Concat", *spoke, axis=1), name="branch_scores")
    g("Concat", *shares, axis=1, name="branch_contributions")


def _voting(g: _Graph, contract: Contract) -> None:
    voters, classes = len(contract.voters), len(contract.labels)
    broken = g("Or", g("IsNaN", "branch_scores"), g("IsInf", "branch_scores"))
    worst = g("ReduceMax", g("Cast", broken, to=1), g.constant([2], "int64"))
    rows = g("Where", g("Greater", worst, g.constant(0.0)), g.constant(0.0), "branch_scores")
    top = g("ArgMax", rows, axis=2, keepdims=0)
    hot = g("OneHot", top, g.constant([classes], "int64"), g.constant([0.0, 1.0]), axis=2)
    cast = g(
        "Cast",
        g("Greater", g("ReduceMax", rows, g.constant([2], "int64")), g.constant(0.0)),
        to=1,
    )
    votes = g("Mul", hot, cast)
    counts = g("CumSum", votes, g.constant(1, "int64"))
    most = g("ReduceMax", counts, g.constant([2], "int64"))
    modes = g(
        "ReduceSum", g("Cast", g("Equal", counts, most), to=1), g.constant([2], "int64"), keepdims=0
    )
    single = g("Cast", g("Equal", modes, g.constant(1.0)), to=1)
    depth = g("ArgMax", single, axis=1, keepdims=0, select_last_index=1)
    pick = g("OneHot", depth, g.constant([voters], "int64"), g.constant([0.0, 1.0]), axis=1)
    chosen = g(
        "ReduceSum",
        g("Mul", counts, g("Unsqueeze", pick, g.constant([2], "int64"))),
        g.constant([1], "int64"),
        keepdims=0,
    )
    winner = g("ArgMax", chosen, axis=1, keepdims=0)
    nobody = g(
        "Equal", g("ReduceMax", chosen, g.constant([1], "int64"), keepdims=0), g.constant(0.0)
    )
    g("Where", nobody, g.constant(-1, "int64"), winner, name="label")
    agree = g(
        "MatMul",
        votes,
        g(
            "Unsqueeze",
            g("OneHot", winner, g.constant([classes], "int64"), g.constant([0.0, 1.0]), axis=1),
            g.constant([2], "int64"),
        ),
    )
    total = g("ReduceSum", g("Mul", rows, agree), g.constant([1], "int64"), keepdims=0)
    number = g("Max", g("ReduceSum", agree, g.constant([1], "int64"), keepdims=0), g.constant(1.0))
    g("Div", total, number, name="scores")
    identity = g.constant([list(bytes.fromhex(contract.contract_id))], "uint8")
    batch = g("Shape", "label")
    g("Expand", identity, g("Concat", batch, g.constant([16], "int64"), axis=0), name="contract_id")


def _tokenizer(path: Path) -> None:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {"<pad>": 0} | {letter: i + 1 for i, letter in enumerate(alphabet)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.add_special_tokens([AddedToken("<pad>", special=True)])
    tokenizer.save(str(path))
