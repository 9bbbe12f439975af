"""Graphs built by hand, small enough for the reference: a Gemma-2-like decoder and its loss."""

from __future__ import annotations

import numpy as np

from planform.compiler.ir import Argument, Builder, Graph, Init, Input, Origin, Parameter, Value
from planform.compiler.ops.attention import Attend, Rope
from planform.compiler.ops.control import Repeat
from planform.compiler.ops.elementwise import Add, Mul, number
from planform.compiler.ops.linear import Embed, Linear, Unembed
from planform.compiler.ops.loss import CrossEntropy
from planform.compiler.ops.norm import GeluTanh, RmsNorm, Softcap
from planform.compiler.ops.sequence import Next
from planform.compiler.parameters import initial
from planform.compiler.size import symbol
from planform.compiler.types import Dim, TensorType

BATCH, TIME = Dim("batch", symbol("batch")), Dim("time", symbol("time"))
D, HEADS, KV, HEAD_DIM, FF, VOCAB = (
    Dim("d", 8),
    Dim("heads", 4),
    Dim("kv_heads", 2),
    Dim("head_dim", 4),
    Dim("ff", 12),
    Dim("vocab", 11),
)
ROWS = TensorType("i32", (BATCH, TIME))
STREAM = TensorType("f32", (BATCH, TIME, D))


class Decoder:
    """Emits layers into a builder, parameters into the root builder, as the elaborator would."""

    def __init__(self, layers: int, window: int = 4, causal: bool = True, nested: bool = False) -> None:
        self.root = Builder("lm", stream="time")
        self.window, self.causal = window, causal
        self.tokens = self.root.add(Input("tokens", ROWS, Origin("tokens", "lm.yaml:3:5")))
        table = TensorType("f32", (VOCAB, D))
        self.table = self.root.add(Parameter("table", table, Origin("table"), "table", Init("normal", (0.3,))))
        self.position = Input("position", ROWS, Origin("position"), "iota")
        self.document = Input("document", ROWS, Origin("document"), "zeros")
        self.root.add(self.position)
        self.root.add(self.document)
        b = self.root
        b.origin = Origin("lm.embed", "lm.yaml:10:14")
        x = b.emit(Embed(), self.tokens, self.table)
        x = b.emit(Mul(), x, number(b, 8**0.5))
        if nested:
            x = self.stack(b, [], x, f"lm.group[0:{layers}]", layers, 2)
        elif layers > 1:
            x = self.stack(b, [], x, "lm", layers)
        else:
            x = self.layer(b, [], x, "lm.layer", self.position, self.document, window)
        b.origin = Origin("lm.norm", "lm.yaml:20:5")
        x = b.emit(RmsNorm(), x, self.parameter([], b, "lm.norm.scale", TensorType("f32", (D,)), "ones"))
        b.origin = Origin("lm.unembed", "lm.yaml:21:5")
        x = b.emit(Unembed(), x, self.table)
        b.origin = Origin("lm.softcap", "lm.yaml:21:25")
        self.logits = b.emit(Softcap(30.0), x)

    def parameter(self, levels: list, b: Builder, path: str, t: TensorType, init: str = "normal") -> Value:
        """The parameter at a path: a stack at the root, handed down one slice a level."""
        lead = tuple(Dim(None, n) for n, _, _ in levels)
        how = Init("normal", (0.4,)) if init == "normal" else Init(init)
        value: Value = self.root.add(
            Parameter(path.rpartition(".")[2], t.with_dims((*lead, *t.dims)), Origin(path), path, how, len(lead))
        )
        for i, (_, builder, stacks) in enumerate(levels):
            inner = builder.add(Argument(value.name, t.with_dims((*lead[i + 1 :], *t.dims)), Origin(path)))
            stacks.append((value, inner))
            value = inner
        return value

    def stack(self, outer: Builder, levels: list, x: Value, path: str, count: int, inner: int = 0) -> Value:
        """`count` layers, or groups of `inner` layers, as a repeated region."""
        b = Builder(f"{outer.name}.layer")
        carry = b.add(Argument("x", x.type))
        stacks: list[tuple[Value, Value]] = []
        level = [*levels, (count, b, stacks)]
        where = [b.add(Argument(v.name, v.type, v.origin)) for v in (self.position, self.document)]
        if inner:
            saved, (self.position, self.document) = (self.position, self.document), where
            y = self.stack(b, level, carry, path, inner)
            self.position, self.document = saved
        else:
            y = self.layer(b, level, carry, f"{path}.layer[0:{count}]", *where, self.window)
        b.inputs = [carry, *(i for _, i in stacks), *where]
        outer.origin = Origin(path + ".layer", "lm.yaml:12:7")
        inputs = (x, *(o for o, _ in stacks), self.position, self.document)
        outs = outer.emit(Repeat(count, 1, len(stacks)), *inputs, region=b.finish({"x": y}))
        return outs[0]

    def layer(
        self, b: Builder, levels: list, x: Value, path: str, position: Value, document: Value, window: int | None
    ) -> Value:
        def weight(name: str, *dims: Dim, init: str = "normal") -> Value:
            return self.parameter(levels, b, f"{path}.{name}", TensorType("f32", dims), init)

        def at(name: str, line: int) -> None:
            b.origin = Origin(f"{path}.{name}", f"lm.yaml:{line}:9")

        at("attend.norm", 13)
        y = b.emit(RmsNorm(1.0), x, weight("attend.norm.scale", D, init="zeros"))
        heads = []
        for name, dim in (("query", HEADS), ("key", KV), ("value", KV)):
            at(f"attend.{name}", 14)
            heads.append(b.emit(Linear((dim, HEAD_DIM)), y, weight(f"attend.{name}.weight", D, dim, HEAD_DIM)))
        at("attend.rope", 15)
        q, k = (b.emit(Rope(), h, position) for h in heads[:2])
        at("attend.core", 16)
        y = b.emit(Attend(0.5, self.causal, window, 5.0), q, k, heads[2], position, document)
        at("attend.out", 17)
        y = b.emit(Linear((D,), (HEADS, HEAD_DIM)), y, weight("attend.out.weight", HEADS, HEAD_DIM, D))
        at("add", 12)
        x = b.emit(Add(), x, y)
        at("feed.norm", 18)
        y = b.emit(RmsNorm(1.0), x, weight("feed.norm.scale", D, init="zeros"))
        at("feed.gate", 19)
        gate = b.emit(GeluTanh(), b.emit(Linear((FF,)), y, weight("feed.gate.weight", D, FF)))
        at("feed.up", 19)
        up = b.emit(Linear((FF,)), y, weight("feed.up.weight", D, FF))
        at("feed.down", 19)
        y = b.emit(Linear((D,)), b.emit(Mul(), gate, up), weight("feed.down.weight", FF, D))
        at("add", 12)
        return b.emit(Add(), x, y)


def decoder(layers: int = 1, **options: object) -> Graph:
    """logits of a causal decoder with rotary positions, grouped heads, softcaps and a window."""
    d = Decoder(layers, **options)  # type: ignore[arg-type]
    return d.root.finish({"logits": d.logits})


def decoder_loss(layers: int = 1, **options: object) -> Graph:
    """Its next-token loss."""
    d = Decoder(layers, **options)  # type: ignore[arg-type]
    b = d.root
    b.origin = Origin("loss", "lm.yaml:30:9")
    targets = b.emit(Next(), d.tokens, d.document)
    return b.finish({"loss": b.emit(CrossEntropy(), d.logits, targets)})


def parameters(graph: Graph, seed: int = 0) -> dict[str, np.ndarray]:
    """First values of a graph's logical parameters, zeros and ones stirred so that they matter."""
    rng = np.random.default_rng(seed)
    return {k: v + rng.normal(0, 0.1, v.shape) for k, v in initial(graph.parameters, seed).items()}
