"""Files that are there as a whole or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from planform.runtime.errors import UserError
from planform.runtime.files import whole


def test_what_broke_off_leaves_the_file_that_was_there(tmp_path: Path) -> None:
    file = tmp_path / "deep" / "a.bin"
    with whole(file, parents=True) as f:
        f.write(b"one")
    with pytest.raises(ZeroDivisionError), whole(file) as f:
        f.write(b"tw")
        f.flush()
        assert file.read_bytes() == b"one"
        raise ZeroDivisionError
    assert file.read_bytes() == b"one"
    with whole(file) as f:
        f.write(b"two")
    assert file.read_bytes() == b"two" and list(file.parent.iterdir()) == [file]


def test_where_nothing_can_be_written(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="can't write .*a.bin: No such file"), whole(tmp_path / "none" / "a.bin"):
        pass
