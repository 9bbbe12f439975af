"""Checkpoints of other libraries: in, and out again, tensor by tensor."""

from .transfer import FORMATS, export_folder, import_folder

__all__ = ["FORMATS", "export_folder", "import_folder"]
