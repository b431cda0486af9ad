"""OpenVINO, which is imported from here only: it would tell Google Analytics of every import.

It forks the process to do so, and asks nobody. Where its telemetry is not installed it is content.
"""

import sys

sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # cannot be imported

from openvino import CompiledModel, Core, InferRequest, Model, Node  # noqa: E402
from openvino import opset15 as ops  # noqa: E402

__all__ = ["CompiledModel", "Core", "InferRequest", "Model", "Node", "ops"]
