"""Export: models as folders of ONNX graphs that run without torch."""

from .errors import ExportError as ExportError
from .folder import export as export
