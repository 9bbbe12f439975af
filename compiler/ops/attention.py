"""Attention: rotary positions, the attention core, and its streaming form with a cache.

Masks are predicates over positions and documents. A window counts the keys a query sees, its own included:
0 <= position(q) - position(k) < window. A softcap stands after the scale and before the mask.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar

import numpy as np

from ..ir import Builder, Value
from ..size import Size, divide, symbol
from ..types import Dim, TensorType, TypeMismatch
from .contract import At, Cost, Op, Reach, StateDecl, register
from .elementwise import Neg, Sub, number
from .linear import Embed
from .sequence import Iota
from .shape import Rearrange

HIDDEN = -1e30  # a score no softmax notices; finite, so that a row without keys stays finite


def rope_angles(position: np.ndarray, half: int, base: float) -> np.ndarray:
    """angle[.., i] = position[..] * base^(-i / half), for i < half. Source: arXiv:2104.09864."""
    return position[..., None] * base ** (-np.arange(half) / half)


@register
@dataclass(frozen=True)
class Rope(Op):
    """Rotary position embedding of x[.., time, heads, head_dim], half-split layout.

    The first fraction * head_dim entries of a head are rotated in pairs (i, i + half) by
    position * base^(-i / half), half being half of the rotated entries; the rest pass unchanged.
    Source: Su et al., arXiv:2104.09864. Constraint C1: fraction * head_dim is even.
    """

    name: ClassVar[str] = "rope"
    family: ClassVar[str] = "attention"
    base: float = 10000.0
    fraction: float = 1.0

    def half(self, x: TensorType) -> int:
        """How many pairs are rotated. Raises: TypeMismatch (C1)."""
        if x.rank < 3 or not isinstance(x.sizes[-1], int):
            raise TypeMismatch(f"`rope` needs [.., time, heads, head_dim], its input is {x}")
        rotated = x.sizes[-1] * self.fraction
        if rotated != int(rotated) or int(rotated) % 2 or not 0 < rotated <= x.sizes[-1]:
            raise TypeMismatch(
                f"`rope` can't rotate {rotated:g} of {x.sizes[-1]} entries",
                code="PF0321",
                help="fraction * head_dim must be even and at most head_dim",
            )
        return int(rotated) // 2

    def reads(self) -> tuple[str, ...]:
        return ("position",)

    def mistakes(self, *inputs: TensorType) -> Mapping[str, Op | Callable[..., Value]]:
        """Turned the other way (the sign on the wrong half); pairs of neighbours instead of halves; another base; of a
        head that is turned in part, all of it, or the other half."""
        half, rest = self.half(inputs[0]), inputs[0].rank - 1
        lead = " ".join(f"a{i}" for i in range(rest))
        found: dict[str, Op | Callable[..., Value]] = {
            "wrong half rotated": lambda b, x, position: b.emit(self, x, b.emit(Neg(), position)),
            "another base": replace(self, base=self.base * 1.01),
        }
        if 2 * half == inputs[0].sizes[-1] and half > 1:
            apart = Rearrange(f"{lead} (pair two) -> {lead} (two pair)", (Dim("two", 2),))
            together = Rearrange(f"{lead} (two pair) -> {lead} (pair two)", (Dim("two", 2),))
            found["pairs of neighbours"] = lambda b, x, position: _named(
                b, b.emit(together, b.emit(self, b.emit(apart, x), position)), x.type
            )
        if self.fraction < 1:
            found["whole head rotated"] = replace(self, fraction=1.0)
        if self.fraction == 0.5:
            found["other half of the head rotated"] = lambda b, x, position: _halves_swapped(
                b, b.emit(self, _halves_swapped(b, x), position)
            )
        return found

    def infer(self, *inputs: TensorType) -> TensorType:
        self.half(inputs[0])
        return inputs[0]

    def reference(self, at: At, *arrays: np.ndarray) -> np.ndarray:
        x, position = arrays
        half = self.half(at.inputs[0])
        angle = rope_angles(position.astype(np.float64), half, self.base)[..., None, :]
        cos, sin = np.cos(angle), np.sin(angle)
        a, b, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
        return np.concatenate([a * cos - b * sin, b * cos + a * sin, rest], -1)

    def cost(self, *inputs: TensorType) -> Cost:
        return Cost(6 * inputs[0].elements, 2 * inputs[0].elements)

    @classmethod
    def draw(cls, rng: np.random.Generator) -> tuple[Op, list[Any]]:
        from .sampling import documents, floats

        time = int(rng.integers(1, 9))
        x = TensorType("f32", (Dim("batch", 2), Dim("time", time), Dim("heads", 3), Dim("head_dim", 8)))
        p = TensorType("i32", x.dims[:2])
        op = cls(float(rng.choice([100.0, 10000.0])), float(rng.choice([0.25, 0.5, 1.0])))
        return op, [(x, floats(rng, x)), (p, documents(rng, 2, time)[0])]


def _named(b: Builder, x: Value, type: TensorType) -> Value:
    """x with the names of a type's dims, which merging has taken from it."""
    names = " ".join(d.name or f"a{i}" for i, d in enumerate(type.dims))
    y: Value = b.emit(Rearrange(f"{names} -> {names}", tuple(d for d in type.dims if d.name)), x)
    return y


def _halves_swapped(b: Builder, x: Value) -> Value:
    """x with the two halves of its last dim in each other's place."""
    lead = " ".join(f"a{i}" for i in range(x.type.rank - 1))
    two = Dim("two", 2)
    halves = b.emit(Rearrange(f"{lead} (two part) -> two {lead} part", (two,)), x)
    swapped = b.emit(Embed(), b.emit(Sub(), number(b, 1), b.emit(Iota((two,)))), halves)
    return _named(b, b.emit(Rearrange(f"two {lead} part -> {lead} (two part)", (two,)), swapped), x.type)


@dataclass(frozen=True)
class _Attention(Op):
    family: ClassVar[str] = "attention"
    tensors: ClassVar[tuple[str, ...]] = ("query", "key", "value")
    scale: float
    causal: bool = False
    window: int | None = None
    softcap: float | None = None

    def groups(self, query: TensorType, key: TensorType, value: TensorType) -> int:
        """Query heads per key/value head. Raises: TypeMismatch where the three don't fit."""
        for t, what in ((query, "query"), (key, "key"), (value, "value")):
            if t.rank < 3:
                raise TypeMismatch(f"`attend` needs {what} [.., time, heads, head_dim], it is {t}")
        if query.dims[-1] != key.dims[-1]:
            raise TypeMismatch(f"query and key have {query.dims[-1]} and {key.dims[-1]} entries a head")
        if key.dims[:-1] != value.dims[:-1]:
            raise TypeMismatch(f"key {key} and value {value} must agree in all but the last dim")
        if query.dims[:-3] != key.dims[:-3]:
            raise TypeMismatch(f"query {query} and key {key} must share their leading dims")
        if self.window is not None and self.window < 1:
            raise TypeMismatch(
                f"a window of {self.window} keys sees nothing",
                code="PF0322",
                help="windows count the query's own key too: at least 1, or none",
            )
        heads, shared = query.sizes[-2], key.sizes[-2]
        n = divide(heads, shared)
        if not isinstance(n, int):
            better = [h for h in range(1, 2 * int(heads) + 1) if heads % h == 0] if isinstance(heads, int) else []
            near = (
                sorted(sorted(better, key=lambda h: (abs(h - int(shared)), h))[:2]) if isinstance(shared, int) else []
            )
            raise TypeMismatch(
                f"{heads} query heads can't share {shared} key/value heads",
                code="PF0323",
                help="heads must be a multiple of kv_heads"
                + (f"; {' or '.join(map(str, near))} would do" if near else ""),
            )
        return n

    def result(self, query: TensorType, value: TensorType) -> TensorType:
        return query.with_dims((*query.dims[:-1], value.dims[-1]))

    def reach(self) -> Reach:
        far = self.window - 1 if self.window else None
        return Reach(far, 0 if self.causal else far)

    def scores(self, q: np.ndarray, k: np.ndarray, v: np.ndarray, visible: np.ndarray) -> np.ndarray:
        """The core in float64: q [.., T, H, D], k and v [.., S, K, D], visible [.., T, S] -> [.., T, H, Dv]."""
        n = q.shape[-2] // k.shape[-2]
        k, v = np.repeat(k, n, -2), np.repeat(v, n, -2)
        z = np.einsum("...thd,...shd->...hts", q, k) * self.scale
        if self.softcap:
            z = self.softcap * np.tanh(z / self.softcap)
        z = np.where(visible[..., None, :, :], z, HIDDEN)
        e = np.exp(z - z.max(-1, keepdims=True))
        return np.einsum("...hts,...shd->...thd", e / e.sum(-1, keepdims=True), v)

    def seen(self, pq: np.ndarray, pk: np.ndarray) -> np.ndarray:
        """visible[.., T, S] by positions alone."""
        ago = pq[..., :, None] - pk[..., None, :]
        ok = np.ones_like(ago, bool)
        if self.causal:
            ok &= ago >= 0
        if self.window:
            ok &= (ago < self.window) & (ago > -self.window)
        return ok


@register
@dataclass(frozen=True)
class Attend(_Attention):
    """softmax(softcap(scale * query . key)) value, for queries [.., time, heads, head_dim].

    key and value are [.., time, kv_heads, head_dim]; query head h reads key/value head h // (heads/kv_heads).
    causal: 0 <= position(q) - position(k); window: |position(q) - position(k)| < window; and only keys of
    the query's own document. Along an axis that is not the stream, positions count from 0 and there is one
    document. Source: Vaswani et al., arXiv:1706.03762; grouped heads arXiv:2305.13245; cap arXiv:2408.00118.
    """

    name: ClassVar[str] = "attend"

    def reads(self) -> tuple[str, ...]:
        return ("position", "document")

    def infer(self, *inputs: TensorType) -> TensorType:
        query, key, value = inputs[:3]
        self.groups(query, key, value)
        return self.result(query, value)

    def reference(self, at: At, *arrays: np.ndarray) -> np.ndarray:
        q, k, v, *where = arrays
        if where:
            position, document = where
            visible = self.seen(position, position)
            visible &= document[..., :, None] == document[..., None, :]
        else:
            visible = self.seen(np.arange(q.shape[-3]), np.arange(k.shape[-3]))
        return self.scores(q, k, v, visible)

    def mistakes(self, *inputs: TensorType) -> Mapping[str, Op | Callable[..., Value]]:
        """Of the mask, the cap and the scale; query heads dealt out to the key heads in turn."""
        found: dict[str, Op | Callable[..., Value]] = {"scale off": replace(self, scale=self.scale * 1.01)}
        if self.window:
            found["window dropped"] = replace(self, window=None)
            found["window one longer"] = replace(self, window=self.window + 1)
        if self.window and self.window > 1:
            found["window one shorter"] = replace(self, window=self.window - 1)
        if self.softcap:
            found["no cap"] = replace(self, softcap=None)
        if self.causal:
            found["looks ahead"] = replace(self, causal=False)
        query = inputs[0]
        each = self.groups(*inputs[:3])
        if 1 < each < int(query.sizes[-2]):  # type: ignore[arg-type]
            lead = " ".join(f"a{i}" for i in range(query.rank - 2))
            one = (Dim("each", each),)
            dealt = Rearrange(f"{lead} (shared each) d -> {lead} (each shared) d", one)
            back = Rearrange(f"{lead} (each shared) d -> {lead} (shared each) d", one)
            found["heads dealt in turn"] = lambda b, q, *rest: _named(
                b, b.emit(back, b.emit(self, b.emit(dealt, q), *rest)), self.result(q.type, rest[1].type)
            )
        return found

    def streaming(self, *inputs: TensorType) -> tuple[Op, tuple[StateDecl, ...]] | None:
        if len(inputs) == 3:  # not along the stream
            return None
        _, key, value = inputs[:3]
        slots = Dim("slots", self.window if self.window else symbol("capacity"))
        states = tuple(
            StateDecl(name, t.with_dims((*t.dims[:-3], t.dims[-2], slots, t.dims[-1])))
            for name, t in (("key", key), ("value", value))
        )
        mine = {f.name: getattr(self, f.name) for f in fields(self)}
        return AttendCached(**mine), states

    def cost(self, *inputs: TensorType) -> Cost:
        q, k, v = inputs[:3]
        keys: Size = k.sizes[-3]
        if self.window is not None and not (isinstance(keys, int) and keys < self.window):
            keys = self.window
        pairs: Size = 1
        for s in q.sizes[:-1]:
            pairs = pairs * s
        return Cost(2 * pairs * keys * (q.sizes[-1] + v.sizes[-1]), sum((t.elements for t in inputs), q.elements))

    @classmethod
    def draw(cls, rng: np.random.Generator) -> tuple[Op, list[Any]]:
        from .sampling import documents, floats

        time, kv = int(rng.integers(1, 14)), int(rng.integers(1, 4))
        heads = kv * int(rng.integers(1, 4))
        lead = (Dim("batch", 2), Dim("time", time))
        q = TensorType("f32", (*lead, Dim("heads", heads), Dim("head_dim", 4)))
        k = TensorType("f32", (*lead, Dim("kv_heads", kv), Dim("head_dim", 4)))
        window = int(rng.integers(1, 6)) if rng.random() < 0.6 else None
        cap = float(rng.uniform(0.5, 2)) if rng.random() < 0.5 else None
        op = cls(float(rng.uniform(0.2, 1)), bool(rng.random() < 0.7), window, cap)
        p = TensorType("i32", lead)
        position, document = documents(rng, 2, time)
        return op, [(t, floats(rng, t)) for t in (q, k, k)] + [(p, position), (p, document)]


@register
@dataclass(frozen=True)
class AttendCached(_Attention):
    """`attend` for a chunk of new entries, with the keys and values of earlier ones in a cache.

    Caches are [batch, kv_heads, slots, head_dim]; position p lives in slot p mod slots, so a window's cache
    is a ring. `length` int32[batch] counts the entries before the chunk, `count` the valid ones in it
    (rows are padded at the end). Results at padded places are arbitrary but finite.
    `scale`, `causal`, `window` and `softcap` are those of `attend`.
    """

    name: ClassVar[str] = "attend_cached"
    tensors: ClassVar[tuple[str, ...]] = (
        "query",
        "key",
        "value",
        "key_cache",
        "value_cache",
        "length",
        "count",
    )
    spelled: ClassVar[bool] = False

    def infer(self, *inputs: TensorType) -> tuple[TensorType, ...]:
        query, key, value, key_cache, value_cache = inputs[:5]
        self.groups(query, key, value)
        return self.result(query, value), key_cache, value_cache

    def reference(self, at: At, *arrays: np.ndarray) -> Any:
        q, k, v, key_cache, value_cache, length, count = arrays
        slots, new = key_cache.shape[2], q.shape[1]
        j, i = np.arange(slots), np.arange(new)
        if self.window is None and np.any(length + count > slots):
            raise ValueError(f"a cache of {slots} entries can't hold {int(np.max(length + count))}")
        held = (length[:, None] - 1) - np.mod(length[:, None] - 1 - j, slots)  # the position in each slot
        position = np.concatenate([held, length[:, None] + i], 1)
        valid = np.concatenate([held >= 0, i < count[:, None]], 1)
        visible = self.seen(length[:, None] + i, position) & valid[:, None, :]
        keys = np.concatenate([key_cache.transpose(0, 2, 1, 3), k], 1)
        values = np.concatenate([value_cache.transpose(0, 2, 1, 3), v], 1)
        out = self.scores(q, keys, values, visible)
        key_cache, value_cache = key_cache.copy(), value_cache.copy()
        for b in range(q.shape[0]):
            for n in range(max(0, int(count[b]) - slots), int(count[b])):
                slot = (int(length[b]) + n) % slots
                key_cache[b, :, slot], value_cache[b, :, slot] = k[b, n], v[b, n]
        return out, key_cache, value_cache

    @classmethod
    def draw(cls, rng: np.random.Generator) -> tuple[Op, list[Any]]:
        from .sampling import floats

        new, kv = int(rng.integers(1, 9)), int(rng.integers(1, 3))
        window = int(rng.integers(1, 6)) if rng.random() < 0.6 else None
        lead = (Dim("batch", 2), Dim("time", new))
        q = TensorType("f32", (*lead, Dim("heads", kv * 2), Dim("head_dim", 4)))
        k = TensorType("f32", (*lead, Dim("kv_heads", kv), Dim("head_dim", 4)))
        slots = window or 20
        cache = TensorType("f32", (Dim("batch", 2), Dim("kv_heads", kv), Dim("slots", slots), Dim("head_dim", 4)))
        counts = TensorType("i32", (Dim("batch", 2),))
        length, count = rng.integers(0, 12, 2), rng.integers(1, new + 1, 2)
        op = cls(float(rng.uniform(0.2, 1)), True, window, 2.0 if rng.random() < 0.5 else None)
        return op, [(t, floats(rng, t)) for t in (q, k, k, cache, cache)] + [
            (counts, length.astype(np.int32)),
            (counts, count.astype(np.int32)),
        ]


@register
@dataclass(frozen=True)
class AttendLocal(Attend):
    """`attend` with a causal window, in blocks: a block of queries meets its own keys and those of the
    ceil((window - 1) / block) blocks before it, so that time * window scores exist and not time^2.

    It means what `attend` means, given C1: causal, with a window, and C2: positions rise by at least one
    from entry to entry of a document (as those of a stream do by default), so that keys in the window stand
    at most window - 1 entries back. A backend that knows the time may take a short one at once.
    Source: the banded attention of Longformer, arXiv:2004.05150, section 3.
    """

    name: ClassVar[str] = "attend_local"
    spelled: ClassVar[bool] = False
    block: int = 512

    def infer(self, *inputs: TensorType) -> TensorType:
        if not self.causal or self.window is None or self.block < 1:
            raise TypeMismatch("`attend_local` needs a causal window and a block of at least 1")
        return super().infer(*inputs)

    def plain(self) -> Attend:
        """The same as `attend`."""
        return Attend(self.scale, self.causal, self.window, self.softcap)

    def decompose(self, b: Builder, *values: Value) -> Value:
        result: Value = b.emit(self.plain(), *values)
        return result

    def streaming(self, *inputs: TensorType) -> tuple[Op, tuple[StateDecl, ...]] | None:
        return self.plain().streaming(*inputs)

    def mistakes(self, *inputs: TensorType) -> Mapping[str, Op | Callable[..., Value]]:
        return self.plain().mistakes(*inputs)

    @classmethod
    def draw(cls, rng: np.random.Generator) -> tuple[Op, list[Any]]:
        op, inputs = Attend.draw(rng)
        window = int(rng.integers(1, 6))
        return cls(op.scale, True, window, op.softcap, int(rng.integers(1, 5))), inputs  # type: ignore[attr-defined]
