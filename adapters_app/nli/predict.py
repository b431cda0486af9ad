"""Answering: an immutable predictor made of a base, an adapter and a calibrator."""

from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import torch

from adapters_app.nli.artifact import Artifact
from adapters_app.nli.base_model import WINDOW, Base, folded_weights, put_parameters
from adapters_app.nli.calibration import Calibrator, Identity
from adapters_app.nli.data import collate
from adapters_app.nli.encoding import Encoded, Item, Pair, batches_by_length, batches_of_tokens
from adapters_app.nli.engines import Predictor as AnyPredictor
from adapters_app.nli.engines import Row
from adapters_app.nli.reference import Reference, golden_pairs, pairs_sha256, probe

BATCH = 32  # pairs per forward pass; larger gains nothing on a CPU
# A GPU waits for the launch of a pass rather than for its padding: it gets as many short pairs at
# once as take no more room than BATCH of the longest.
GPU_TOKENS = BATCH * WINDOW


class Predictor:
    """Answers pairs. Shares every frozen tensor with the base; owns only what the adapter changes.

    Safe to use from several threads: nothing in it is written after construction.
    """

    def __init__(
        self, base: Base, artifact: Artifact | None = None, calibrator: Calibrator | None = None
    ) -> None:
        self.base = base
        self.calibrator: Calibrator = calibrator or Identity()
        self._changed: dict[str, torch.Tensor] = {}
        self._model = base.model
        if artifact is not None:
            tensors = {name: torch.tensor(array) for name, array in artifact.tensors.items()}
            self._changed = folded_weights(base.model, tensors, artifact.scaling)
            self._model = base.structure_copy()
            put_parameters(self._model, self._changed)
        self._columns = list(base.label_columns)

    def with_calibrator(self, calibrator: Calibrator) -> "Predictor":
        """The same model with another calibrator, sharing all tensors."""
        twin = object.__new__(Predictor)
        twin.__dict__.update(self.__dict__, calibrator=calibrator)
        return twin

    @property
    def resident_bytes(self) -> int:
        """Memory this predictor holds beyond the base's."""
        return sum(value.numel() * value.element_size() for value in self._changed.values())

    def logits(
        self,
        items: Sequence[Item],
        *,
        batch_size: int | None = None,
        tokens: int = GPU_TOKENS,
        on_batch: Callable[[int], None] | None = None,
    ) -> np.ndarray:
        """Raw scores, (n, 3) float32, columns in the order of LABELS, rows in the order given.

        A pass has `batch_size` pairs at most; where none is given, BATCH on a CPU and elsewhere as
        many as fit into `tokens`, padding counted.

        `on_batch` is called with the number of pairs done; it may raise to stop.
        """
        encoded = self.base.encoder.encode(items)
        out = np.empty((len(encoded), len(self._columns)), dtype=np.float32)
        done = 0
        for rows in self._passes([len(row) for row in encoded], batch_size, tokens):
            batch = collate(
                [encoded[i] for i in rows],
                pad_id=self.base.pad_id,
                type_ids=self.base.uses_type_ids,
            )
            out[rows] = self._forward(batch)[:, self._columns]
            done += len(rows)
            if on_batch is not None:
                on_batch(done)
        return out

    def probabilities(self, pairs: Sequence[Pair], *, batch_size: int | None = None) -> np.ndarray:
        """Calibrated probabilities, (n, 3) float64, rows summing to 1."""
        return self.calibrator.predict_proba(self.logits(pairs, batch_size=batch_size))

    def _passes(
        self, lengths: Sequence[int], batch_size: int | None, tokens: int
    ) -> list[list[int]]:
        if batch_size is None and self.base.device.type != "cpu":
            return batches_of_tokens(lengths, tokens)
        return batches_by_length(lengths, batch_size or BATCH)

    @torch.inference_mode()
    def _forward(self, batch: dict[str, torch.Tensor]) -> np.ndarray:
        on_device = {key: value.to(self.base.device) for key, value in batch.items()}
        return self._model(**on_device).logits.float().cpu().numpy()


class TorchEngine:
    """The reference engine: any architecture, any device, fp32; one pass for each adapter."""

    name = "torch"
    at_once = 1  # each call takes all that torch may use

    def __init__(self, base: Base) -> None:
        self.base = base
        self._bare = Predictor(base)

    def predictor(self, artifact: Artifact | None = None) -> Predictor:
        """The base, always the same object; or an adapter that was read for this base."""
        return self._bare if artifact is None else Predictor(self.base, artifact)

    def encode(self, pairs: Sequence[Pair]) -> list[Encoded]:
        """Pairs as token ids, which rows may have in their place."""
        return self.base.encoder.encode(pairs)

    def logits(
        self, rows: Sequence[Row], *, on_batch: Callable[[int], None] | None = None
    ) -> np.ndarray:
        """Raw scores, (n, 3) float32, columns in the order of LABELS, rows in the order given."""
        members: defaultdict[AnyPredictor, list[int]] = defaultdict(list)
        for i, (predictor, _) in enumerate(rows):
            members[predictor].append(i)
        out = np.empty((len(rows), len(self.base.label_columns)), dtype=np.float32)
        done = 0
        for predictor, chosen in members.items():

            def heard(count: int, before: int = done) -> None:
                if on_batch is not None:
                    on_batch(before + count)

            out[chosen] = predictor.logits([rows[i][1] for i in chosen], on_batch=heard)
            done += len(chosen)
        return out

    def begin(self, rows: Sequence[Row], /, *, abreast: bool = False) -> Callable[[], np.ndarray]:
        """What computes `logits` of the rows; torch computes in the thread that asks."""
        return partial(self.logits, rows)

    def reference(self, files_digest: str) -> tuple[Reference, str]:
        """What other engines are held to, and the tokenizer as JSON: see `reference`."""
        base, pairs = self.base, golden_pairs()
        tokenizer = base.tokenizer.backend_tokenizer.to_str()
        probed = self.predictor(probe(base, base.target_modules))
        stored = Reference(
            files_digest=files_digest,
            fingerprint=base.fingerprint,
            label_columns=base.label_columns,
            max_length=base.max_length,
            pad_id=base.pad_id,
            head=base.head,
            target_modules=base.target_modules,
            pairs_sha256=pairs_sha256(),
            bare=_rows(self._bare.logits(pairs)),
            probed=_rows(probed.logits(pairs)),
        )
        return stored, tokenizer


def _rows(logits: np.ndarray) -> tuple[tuple[float, ...], ...]:
    return tuple(tuple(round(float(value), 6) for value in row) for row in logits)
