"""Adapters without training: as large as trained ones, of any rank, no two alike. No torch."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from adapters_app.nli import artifact, checkpoint, openvino_engine, reference
from adapters_app.nli.artifact import Artifact
from adapters_app.nli.checkpoint import PREFIX

# Standard deviations, about those that a short training makes of B and adds to the bundled base's
# head (20 steps on guard pairs: 0.008); A hardly moves from where PEFT starts it.
B_SPREAD, HEAD_SPREAD = 0.01, 0.01


def known_base(name: str, references: Path) -> openvino_engine.Base:
    """A base without torch; its reference must be stored."""
    files = checkpoint.find(name)
    return openvino_engine.load_base(files, *reference.stored(files, references))


def real_sized(base: openvino_engine.Base, ranks: Sequence[int]) -> list[Artifact]:
    """Adapters of these ranks, all different, that change a base as much as a training does."""
    head = {name: array for name, array in base.weights().items() if name in base.head_shapes}
    made = []
    for seed, rank in enumerate(ranks):
        draw = np.random.default_rng(seed)
        plan = Artifact({}, rank, 2.0 * rank, base.reference.target_modules, base.head, "")
        plan = replace(plan, base_fingerprint=base.fingerprint)
        for name, shape in artifact.expected_shapes(plan, base).items():
            if ".lora_A." in name:  # PEFT's, after He et al. 2015 with a gain of 1/√3
                drawn = draw.uniform(-1, 1, shape) / np.sqrt(shape[1])
            elif ".lora_B." in name:
                drawn = draw.normal(0, B_SPREAD, shape)
            else:
                drawn = head[name.removeprefix(PREFIX)] + draw.normal(0, HEAD_SPREAD, shape)
            plan.tensors[name] = drawn.astype(np.float32)
        made.append(plan)
    return made
