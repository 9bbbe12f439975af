"""Folders that Orbax writes: trees of arrays, one array in memory at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from ..checkpoint import quiet
from ..errors import UserError

CHUNK = 64 << 20
"""Bytes of a piece of an array: what is held beside it while it is read and written."""


def is_orbax(folder: Path) -> bool:
    return (folder / "_METADATA").is_file()


class OrbaxFolder(Mapping[str, np.ndarray]):
    """The arrays of an Orbax checkpoint by their path in its tree, `a/b/c`; each access reads one from disk.

    root  what the names begin with in the tree, where they do: it is left off, and what lies beside it left out
    Raises: UserError for a folder that Orbax can't read.
    """

    def __init__(self, folder: Path, root: str = "") -> None:
        self.folder = folder
        quiet()
        try:
            with self._checkpointer() as reader:
                tree = reader.metadata(folder.absolute()).item_metadata.tree
        except Exception as e:  # whatever the storage library raises
            raise self._damaged(e) from e
        found = {"/".join(at): (at, kind) for at, kind in ocp.tree.to_flat_dict(tree).items() if hasattr(kind, "shape")}
        inside = {name.removeprefix(root): place for name, place in found.items() if name.startswith(root)}
        self._place: dict[str, tuple[tuple[str, ...], Any]] = inside or found

    def _checkpointer(self) -> ocp.Checkpointer:
        return ocp.Checkpointer(ocp.PyTreeCheckpointHandler())

    def _damaged(self, error: Exception) -> UserError:
        line = next(iter(str(error).splitlines()), "") or type(error).__name__
        return UserError(f"{self.folder} is damaged: {line}", help="copy it again")

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._place[name][1].shape)

    def __getitem__(self, name: str) -> np.ndarray:
        at, _ = self._place[name]
        item, how = (ocp.tree.from_flat_dict({at: leaf}) for leaf in (0, ocp.RestoreArgs(restore_type=np.ndarray)))
        try:
            with self._checkpointer() as reader:
                arguments = ocp.args.PyTreeRestore(item, restore_args=how, partial_restore=True)
                array: np.ndarray = ocp.tree.to_flat_dict(reader.restore(self.folder.absolute(), args=arguments))[at]
        except Exception as e:
            raise self._damaged(e) from e
        return array

    def __contains__(self, name: object) -> bool:
        return name in self._place  # a mapping's own would read the array

    def __iter__(self) -> Iterator[str]:
        return iter(self._place)

    def __len__(self) -> int:
        return len(self._place)


@dataclass(frozen=True)
class _Lazy:
    """An array that is made when its turn comes."""

    make: Callable[[], np.ndarray]


class _LazyHandler(ocp.type_handlers.NumpyHandler):
    """Writes them as NumPy's arrays are written, one after the other."""

    def __init__(self) -> None:
        super().__init__(deepcopy_host_arrays=False)

    async def serialize(self, values: Any, infos: Any, args: Any = None) -> list[Any]:
        for value, info, arg in zip(values, infos, args, strict=True):
            for written in await super().serialize([value.make()], [info], [arg]):
                written.result()
        return []


def write_orbax(folder: Path, arrays: Mapping[str, Callable[[], np.ndarray]]) -> None:
    """Fills an empty folder with an Orbax checkpoint of arrays by path, `a/b/c`; each is made when its turn comes.

    Raises: UserError where it can't be written.
    """
    quiet()
    tree = ocp.tree.from_flat_dict({name: _Lazy(make) for name, make in arrays.items()}, sep="/")
    how = jax.tree.map(lambda _: ocp.SaveArgs(chunk_byte_size=CHUNK), tree)
    kinds = ocp.type_handlers.create_type_handler_registry((_Lazy, _LazyHandler()))
    inner = folder.absolute() / "new"  # what Orbax leaves beside it where it fails goes with the folder
    try:
        with ocp.Checkpointer(ocp.PyTreeCheckpointHandler(type_handler_registry=kinds)) as writer:
            writer.save(inner, args=ocp.args.PyTreeSave(tree, save_args=how))
    except UserError:
        raise
    except Exception as e:  # whatever the storage library raises
        line = next(iter(str(e).splitlines()), "") or type(e).__name__
        raise UserError(f"can't write {folder}: {line}") from e
    for file in inner.iterdir():
        file.rename(folder / file.name)
    inner.rmdir()
