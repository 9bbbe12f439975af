"""A graph as the tree of its blocks: what `planform show` prints."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from planform.compiler.ir import Graph, Node, Parameter
from planform.compiler.ops.contract import Op
from planform.compiler.ops.control import Repeat
from planform.compiler.parameters import stack_shape
from planform.compiler.types import TensorType


@dataclass
class Block:
    """One element of a path, e.g. `attend` in `lm.layer[0:26:2].attend`.

    name        as in the path, its slice included
    op          of a leaf: the op that stands at exactly this path
    result      type of what the block gives, one layer's where it is repeated
    parameters  numbers held by it and everything inside, of all its layers
    layers      how many equal layers it stands for, those of blocks around it aside
    own         parameters that the op at this path holds: name and type of one layer's
    """

    name: str
    path: str = ""
    op: Op | None = None
    result: TensorType | None = None
    parameters: int = 0
    layers: int = 1
    own: dict[str, TensorType] = field(default_factory=dict)
    children: dict[str, Block] = field(default_factory=dict)
    place: str | None = None

    def walk(self) -> Iterator[Block]:
        yield self
        for child in self.children.values():
            yield from child.walk()


def outline(graph: Graph) -> Block:
    """The tree of a graph. Blocks stand in the order in which they run; one that holds nothing but one op is one with
    it."""
    root = Block(graph.name, graph.name)
    for node in graph.walk():
        _place(root, node)
    for p in graph.parameters:
        _count(root, p)
    _join(root)
    return root


def _join(block: Block) -> None:
    for name, child in list(block.children.items()):
        _join(child)
        if len(child.children) == 1 and child.op is None:
            (only,) = child.children.values()
            if only.op is not None and only.layers == 1:
                block.children[name] = replace(only, name=name, path=child.path, layers=child.layers)


def same(a: Block, b: Block) -> dict[str, str] | None:
    """None where two blocks differ in more than the attributes of ops; else those that differ in b, by path
    under the block: {"attend": "window=none"}."""
    if a.result != b.result or a.own != b.own or list(a.children) != list(b.children):
        return None
    found = {}
    if a.op != b.op:
        if a.op is None or b.op is None or type(a.op) is not type(b.op):
            return None
        theirs = a.op.attributes()
        other = [f"{k}={_text(v)}" for k, v in b.op.attributes().items() if theirs[k] != v]
        found[""] = ", ".join(other)
    for name, child in a.children.items():
        inner = same(child, b.children[name])
        if inner is None:
            return None
        found.update({f"{name}.{path}".rstrip("."): text for path, text in inner.items()})
    return found


def _text(value: object) -> str:
    return (
        {None: "none", True: "true", False: "false"}[value] if value is None or value in (True, False) else str(value)
    )  # type: ignore[index]


def _place(root: Block, node: Node) -> None:
    path = node.origin.path
    if isinstance(node.op, Repeat) or not path or node.op.name == "constant":
        return
    block = _at(root, path)
    block.result = node.output.type
    if not block.children and block.path != root.path and node.op.family not in ("elementwise",):
        block.op = node.op
    block.place = node.origin.place
    # What a block gives is what its last op gives.
    elements = _elements(root, path)
    for depth in range(1, len(elements)):
        _at(root, ".".join(elements[:depth])).result = node.output.type


def _elements(root: Block, path: str) -> list[str]:
    """The path's elements from the root on: shared tensors and values of no block stand under it."""
    return path.split(".") if path.split(".")[0] == root.name else [root.name, *path.split(".")]


def _at(root: Block, path: str) -> Block:
    block = root
    for name in _elements(root, path)[1:]:
        if name not in block.children:
            shape = stack_shape(name)
            block.children[name] = Block(name, f"{block.path}.{name}", layers=shape[0] if shape else 1)
        block = block.children[name]
    return block


def entries(t: TensorType) -> int:
    """Numbers in a tensor of known sizes."""
    assert isinstance(t.elements, int)
    return t.elements


def _count(root: Block, p: Parameter) -> None:
    n = entries(p.type)
    *path, key = _elements(root, p.path)
    one = p.type.with_dims(p.type.dims[p.stacked :])
    if len(path) == 1:  # declared under `params`: it belongs to no block
        shared = Block(key, p.path, result=one, own={"": one}, parameters=n, place=p.origin.place)
        root.children = {key: shared, **root.children}
        root.parameters += n
        return
    for depth in range(1, len(path) + 1):
        _at(root, ".".join(path[:depth])).parameters += n
    _at(root, ".".join(path)).own[key] = one
