"""Sizes: integers, or small symbolic expressions over named symbols such as `batch` and `time`.

A symbolic size is a polynomial with integer coefficients whose atoms are symbols and floor divisions,
kept in one canonical form, so that equality of sizes is equality of objects' fields.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property


@dataclass(frozen=True, order=True)
class Symbol:
    name: str

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True)
class FloorDiv:
    numerator: Polynomial
    denominator: Size

    def __str__(self) -> str:
        return f"({self.numerator})//{_wrap(self.denominator)}"


Atom = Symbol | FloorDiv


@dataclass(frozen=True)
class Polynomial:
    """A sum of `coefficient * atom * atom ...`; the empty product is the constant term."""

    terms: tuple[tuple[tuple[Atom, ...], int], ...]

    @staticmethod
    def of(terms: Mapping[tuple[Atom, ...], int]) -> Size:
        kept = {k: c for k, c in terms.items() if c}
        if not kept:
            return 0
        if set(kept) == {()}:
            return kept[()]
        return Polynomial(tuple(sorted(kept.items(), key=lambda t: (-len(t[0]), [str(a) for a in t[0]]))))

    @cached_property
    def symbols(self) -> frozenset[str]:
        found: set[str] = set()
        for atoms, _ in self.terms:
            for atom in atoms:
                if isinstance(atom, Symbol):
                    found.add(atom.name)
                else:
                    found |= symbols(atom.numerator) | symbols(atom.denominator)
        return frozenset(found)

    def __str__(self) -> str:
        out = ""
        for atoms, c in self.terms:
            factors = [str(abs(c))] * (abs(c) != 1 or not atoms) + [str(a) for a in atoms]
            if len(factors) > 1:  # 2*(n//2) is not 2*n//2
                factors = [f"({f})" if "//" in f else f for f in factors]
            body = "*".join(factors)
            out += ("-" if not out else " - ") + body if c < 0 else (" + " if out else "") + body
        return out

    def __add__(self, other: Size) -> Size:
        return _combine(self, other, 1)

    __radd__ = __add__

    def __sub__(self, other: Size) -> Size:
        return _combine(self, other, -1)

    def __rsub__(self, other: Size) -> Size:
        return _combine(other, self, -1)

    def __neg__(self) -> Size:
        return self * -1

    def __mul__(self, other: Size) -> Size:
        out: dict[tuple[Atom, ...], int] = {}
        for a, ca in self.terms:
            for b, cb in _terms(other):
                key = tuple(sorted(a + b, key=str))
                out[key] = out.get(key, 0) + ca * cb
        return Polynomial.of(out)

    __rmul__ = __mul__

    def __floordiv__(self, other: Size) -> Size:
        exact = divide(self, other)
        if exact is not None:
            return exact
        return Polynomial.of({(FloorDiv(self, other),): 1})

    def __rfloordiv__(self, other: Size) -> Size:
        if other == 0:
            return 0
        numerator = other if isinstance(other, Polynomial) else Polynomial((((), other),))
        return Polynomial.of({(FloorDiv(numerator, self),): 1})


Size = int | Polynomial


def symbol(name: str) -> Polynomial:
    return Polynomial((((Symbol(name),), 1),))


def symbols(size: Size) -> frozenset[str]:
    return size.symbols if isinstance(size, Polynomial) else frozenset()


def divide(a: Size, b: Size) -> Size | None:
    """a / b where that is exact for every value of the symbols, else None."""
    if isinstance(b, int):
        if b == 0 or any(c % b for _, c in _terms(a)):
            return None
        return Polynomial.of({k: c // b for k, c in _terms(a)})
    if len(b.terms) != 1:
        return 1 if a == b else None
    (atoms, cb), out = b.terms[0], {}
    for key, c in _terms(a):
        rest = list(key)
        for atom in atoms:
            if atom not in rest:
                return None
            rest.remove(atom)
        if c % cb:
            return None
        out[tuple(rest)] = c // cb
    return Polynomial.of(out)


def evaluate(size: Size, env: Mapping[str, int]) -> int:
    """The number a size has when its symbols have values. Raises: KeyError for a symbol without one."""
    if isinstance(size, int):
        return size
    total = 0
    for atoms, c in size.terms:
        for atom in atoms:
            c *= (
                env[atom.name]
                if isinstance(atom, Symbol)
                else evaluate(atom.numerator, env) // evaluate(atom.denominator, env)
            )
        total += c
    return total


def substitute(size: Size, env: Mapping[str, Size]) -> Size:
    """The size with some symbols replaced by sizes."""
    if isinstance(size, int):
        return size
    total: Size = 0
    for atoms, c in size.terms:
        term: Size = c
        for atom in atoms:
            if isinstance(atom, Symbol):
                term = term * env.get(atom.name, symbol(atom.name))
            else:
                term = term * (substitute(atom.numerator, env) // substitute(atom.denominator, env))
        total = total + term
    return total


def _terms(size: Size) -> tuple[tuple[tuple[Atom, ...], int], ...]:
    return size.terms if isinstance(size, Polynomial) else ((((), size),) if size else ())


def _combine(a: Size, b: Size, sign: int) -> Size:
    out = dict(_terms(a))
    for key, c in _terms(b):
        out[key] = out.get(key, 0) + sign * c
    return Polynomial.of(out)


def _wrap(size: Size) -> str:
    text = str(size)
    return text if re.fullmatch(r"\w+", text) else f"({text})"


_TOKEN = re.compile(r"\s*(\d+|[A-Za-z_]\w*|//|[-+*()])")


def parse_size(text: str) -> Size:
    """Reads what `str(size)` prints. Raises: ValueError."""
    tokens, at = [], 0
    while at < len(text.rstrip()):
        m = _TOKEN.match(text, at)
        if not m:
            raise ValueError(f"not a size: {text!r}")
        tokens.append(m[1])
        at = m.end()
    tokens.append("")

    def total() -> Size:
        negative = tokens[0] == "-" and tokens.pop(0)
        out = -product() if negative else product()
        while tokens[0] in ("+", "-"):
            out = out + product() if tokens.pop(0) == "+" else out - product()
        return out

    def product() -> Size:
        out = atom()
        while tokens[0] in ("*", "//"):
            out = out * atom() if tokens.pop(0) == "*" else out // atom()
        return out

    def atom() -> Size:
        t = tokens.pop(0)
        if t == "(":
            inner = total()
            if tokens.pop(0) != ")":
                raise ValueError(f"not a size: {text!r}")
            return inner
        if t.isdigit():
            return int(t)
        if not t or not (t[0].isalpha() or t[0] == "_"):
            raise ValueError(f"not a size: {text!r}")
        return symbol(t)

    out = total()
    if tokens != [""]:
        raise ValueError(f"not a size: {text!r}")
    return out
