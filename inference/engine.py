"""Who answers: this process's engine, and the Serving row that says which predictor it asks.

The row is read for every request, so a promote is seen by the next request of every process. A
predictor is immutable and swapped by reference: a request holds the one it started with to its
end. What cannot be loaded is refused by name; nothing else ever answers in its place.
"""

import functools
import logging
import threading
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from django.conf import settings
from safetensors import SafetensorError

from adapters_app import registry, storage
from adapters_app.models import AdapterVersion, CalibrationEvaluation
from adapters_app.nli.probabilities import softmax
from corrections import full_disk
from corrections.labels import LABELS, Label
from inference import monitoring
from inference.batching import PASS_ERRORS, WHOLE, AtOnce, Batcher, ForwardFailed

if TYPE_CHECKING:
    from adapters_app.nli.calibration import Calibrator
    from adapters_app.nli.checkpoint import Files
    from adapters_app.nli.embedding import SentenceEncoder
    from adapters_app.nli.encoding import Pair
    from adapters_app.nli.engines import Engine, Predictor
    from adapters_app.nli.predict import TorchEngine
    from adapters_app.nli.reference import Reference

logger = logging.getLogger(__name__)

ACTIVE, BASE = "active", "base"
DEVICES = Path("/dev")
AUTO, OPENVINO, TORCH = "auto", "openvino", "torch"  # LYRA_ENGINE
# Files that are not there, unreadable or damaged; a device that is not there or full. The errors
# of our own loaders are ValueErrors.
LOAD_ERRORS = (
    OSError,
    RuntimeError,
    ValueError,
    MemoryError,
    SafetensorError,
    storage.ArtifactMissing,
)
# The fast engine is not installed, does not know this base, fails its check or falls over.
FAST_ERRORS = (ImportError, OSError, RuntimeError, ValueError, MemoryError)


class EngineUnavailable(RuntimeError):
    """What should answer cannot; the message names it and says why."""


class AdapterUnknown(ValueError):
    """The request names an adapter that is not registered."""


@dataclass(frozen=True)
class Answering:
    """One version as it answers: a predictor and the calibrator that goes with it."""

    predictor: "Predictor"  # raw: its logits are calibrated by `calibrator`
    calibrator: "Calibrator"
    version: int | None  # None = the base model
    version_id: int | None
    digest: str  # of the adapter's tensor file; the base's fingerprint where the base answers
    calibration: str  # e.g. "v3/c1 (temperature)"; "none"
    revision: int  # of the Serving row that was read

    @property
    def name(self) -> str:
        return BASE if self.version is None else f"v{self.version}"


@dataclass(frozen=True)
class Result:
    """The answer to one pair."""

    label: Label  # of the highest calibrated probability
    probabilities: tuple[float, ...]  # calibrated, in the order of LABELS
    raw_label: Label  # of the highest logit
    raw_confidence: float  # its softmax

    @property
    def confidence(self) -> float:
        return self.probabilities[self.label.column]


@dataclass(frozen=True)
class Answer:
    """The answer to one request, by exactly one version."""

    results: list[Result]
    adapter: str
    version: int | None
    version_id: int | None
    digest: str
    calibrator: str
    revision: int


def predict_with(
    adapter: str,
    pairs: Sequence["Pair"],
    *,
    on_batch: Callable[[int], None] | None = None,
) -> Answer:
    """Answer any number of pairs outside of a request (commands, imports): no queue, no tally.

    `adapter` is "active", "base" or a version ("v7", "7"); `on_batch` hears how many are done.

    Raises:
        AdapterUnknown, EngineUnavailable
    """
    answering = serving_predictor(adapter)
    if not pairs:
        return _answer(answering, np.empty((0, len(LABELS)), dtype=np.float32))
    try:
        logits = answering.predictor.logits(pairs, on_batch=on_batch)
    except PASS_ERRORS as error:
        raise EngineUnavailable(f"{answering.name} failed on these pairs: {error}") from error
    return _answer(answering, logits)


def answer(adapter: str, pairs: Sequence["Pair"]) -> Answer:
    """Answer one request; concurrent ones share a forward pass.

    Raises:
        AdapterUnknown, EngineUnavailable
        batching.Overloaded, batching.ForwardFailed
    """
    answering = serving_predictor(adapter)
    if not pairs:
        return _answer(answering, np.empty((0, len(LABELS)), dtype=np.float32))
    loaded = _models.engine()
    with monitoring.SECONDS.time():
        try:
            # A large request may yet be refused, and goes in slices: its passes encode it.
            items = loaded.encode(pairs) if len(pairs) <= WHOLE else pairs
            rows = [(answering.predictor, item) for item in items]
        except PASS_ERRORS as error:
            raise ForwardFailed(f"The model failed on this request: {error}") from error
        # Whoever answers, rows share a pass: the engine takes any mix of its predictors.
        logits = _batcher(loaded.at_once).run(loaded.begin, rows)
    return _answer(answering, logits)


def serving_predictor(adapter: str = ACTIVE) -> Answering:
    """Whoever answers for `adapter` now, loaded.

    A version that does not serve, and the base while an adapter serves, answer with their newest
    calibrator.

    Raises:
        AdapterUnknown: no such version.
        EngineUnavailable: it is registered but cannot be loaded here.
    """
    serving = registry.answering()
    if adapter == ACTIVE:
        version, calibration = serving.version, serving.calibration
    else:
        version = None if adapter == BASE else _version(adapter)
        same = version == serving.version
        calibration = serving.calibration if same else _newest_calibration(version)
    engine = _models.engine()
    base = engine.base
    if version is None:
        predictor, digest = engine.predictor(), base.fingerprint
        if calibration is not None and calibration.base_fingerprint != base.fingerprint:
            calibration = None  # it was fitted for another base model
    else:
        predictor, digest = _models.adapted(version), version.artifact_digest
    return Answering(
        predictor=predictor,
        calibrator=_calibrator(calibration),
        version=version.number if version else None,
        version_id=version.pk if version else None,
        digest=digest,
        calibration=str(calibration) if calibration else "none",
        revision=serving.revision,
    )


def embed(texts: Sequence[str], batch_size: int) -> np.ndarray:
    """Sentence embeddings of all-MiniLM-L6-v2, (n, 384) float32, L2-normalised.

    Concurrent requests share passes as those of `answer` do, and as many may wait.

    Raises:
        EngineUnavailable: the encoder is not installed, cannot be loaded, or failed on these texts.
        batching.Overloaded
    """
    forward = _Embedding(_models.encoder(), batch_size)
    try:
        return _embedding_batcher().run(AtOnce(forward), texts)
    except ForwardFailed as error:
        raise EngineUnavailable(f"The sentence encoder: {error}") from error


@dataclass(frozen=True)
class _Embedding:
    """The encoder at one batch size; equal ones may share a pass."""

    encoder: "SentenceEncoder"
    batch_size: int

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        return self.encoder.embed(texts, batch_size=self.batch_size)


def score(probabilities: Sequence[Sequence[float]], labels: Sequence[int]) -> dict[str, Any]:
    """Figures of n labelled answers, see `nli.metrics.summary`; labels are indices of LABELS."""
    from adapters_app.nli import metrics  # noqa: PLC0415  scikit-learn: no server needs it

    figures: dict[str, Any] = metrics.summary(np.array(probabilities), np.array(labels))
    return figures


def warm(*, embedding: bool = False) -> None:
    """Load what serves (and the sentence encoder) now rather than in somebody's request.

    Raises:
        EngineUnavailable
    """
    serving_predictor(ACTIVE)
    if embedding:
        _models.encoder()


def warm_in_background() -> None:
    """Start loading the base in a thread, once per process; the server answers meanwhile.

    Only the base: the thread touches no database, so it holds no connection.
    """
    global _warming
    with _warming_lock:
        if _warming is None or not (_warming.is_alive() or _models.loaded_engine):
            _warming = threading.Thread(target=_load_engine_quietly, name="warm", daemon=True)
            _warming.start()


class Loaded(NamedTuple):
    """What this process holds in memory."""

    nli: bool
    base_fingerprint: str  # empty until the base is loaded
    embedding: bool
    digests: tuple[str, ...]
    engine: str  # "openvino bf16", "torch"; empty until it is loaded
    engine_fault: str  # why the engine that was wanted does not answer


def loaded() -> Loaded:
    """Say what is loaded, loading nothing."""
    engine = _models.loaded_engine
    return Loaded(
        engine is not None,
        engine.base.fingerprint if engine else "",
        _models.encoder_loaded,
        _models.resident(),
        engine.name if engine else "",
        _models.engine_fault,
    )


def _answer(answering: Answering, logits: np.ndarray) -> Answer:
    calibrated = answering.calibrator.predict_proba(logits)
    raw = softmax(logits)
    return Answer(
        results=[_result(*rows) for rows in zip(calibrated, raw, strict=True)],
        adapter=answering.name,
        version=answering.version,
        version_id=answering.version_id,
        digest=answering.digest,
        calibrator=answering.calibration,
        revision=answering.revision,
    )


def _result(calibrated: np.ndarray, raw: np.ndarray) -> Result:
    top = int(raw.argmax())
    return Result(
        label=LABELS[int(calibrated.argmax())],
        probabilities=tuple(calibrated.tolist()),
        raw_label=LABELS[top],
        raw_confidence=float(raw[top]),
    )


def _version(text: str) -> AdapterVersion:
    try:
        return registry.find_version(text)
    except registry.VersionUnknown as error:
        raise AdapterUnknown(str(error)) from error


def _newest_calibration(version: AdapterVersion | None) -> CalibrationEvaluation | None:
    calibrations = CalibrationEvaluation.objects.filter(version=version)
    if version is None:
        calibrations = calibrations.filter(base_fingerprint=_models.engine().base.fingerprint)
    return calibrations.select_related("version").order_by("-number").first()


def _calibrator(calibration: CalibrationEvaluation | None) -> "Calibrator":
    calibrators = _nli().calibration
    if calibration is None:
        return calibrators.Identity()
    return calibrators.from_dict(calibration.method, calibration.parameters)


class _Models:
    """The engine, the adapters it holds (least recently used go first) and the sentence encoder.

    Each is loaded once, under a lock of its own: a slow or failing adapter holds up nobody else.
    """

    def __init__(self) -> None:
        self._engine: Engine | None = None
        self._engine_fault = ""
        self._encoder: SentenceEncoder | None = None
        self._adapted: OrderedDict[str, Predictor] = OrderedDict()
        self._guard = threading.Lock()  # of the two dictionaries; held for no longer than a look-up
        self._locks: defaultdict[str, threading.Lock] = defaultdict(threading.Lock)

    @property
    def loaded_engine(self) -> "Engine | None":
        return self._engine

    @property
    def engine_fault(self) -> str:
        return self._engine_fault

    @property
    def encoder_loaded(self) -> bool:
        return self._encoder is not None

    def resident(self) -> tuple[str, ...]:
        with self._guard:
            return tuple(self._adapted)

    def engine(self) -> "Engine":
        with self._lock("engine"):
            if self._engine is None:
                self._engine, self._engine_fault = _load_engine()
            return self._engine

    def adapted(self, version: AdapterVersion) -> "Predictor":
        digest = version.artifact_digest
        with self._lock(digest):
            with self._guard:
                if digest in self._adapted:
                    self._adapted.move_to_end(digest)
                    return self._adapted[digest]
            predictor = _load_adapter(self.engine(), version)
            with self._guard:
                self._adapted[digest] = predictor
                # One serves; LYRA_RESIDENT_ADAPTERS more are kept beside it.
                while len(self._adapted) > settings.LYRA_RESIDENT_ADAPTERS + 1:
                    evicted, _ = self._adapted.popitem(last=False)
                    self._locks.pop(evicted, None)
            logger.info("%s is loaded (%s)", version.name, digest[:12])
            return predictor

    def encoder(self) -> "SentenceEncoder":
        with self._lock("encoder"):
            if self._encoder is None:
                nli = _torch_side()
                with _loading("The sentence encoder"):
                    self._encoder = nli.embedding.SentenceEncoder(device=nli.device)
            return self._encoder

    def _lock(self, name: str) -> threading.Lock:
        with self._guard:
            return self._locks[name]


_models = _Models()
_warming: threading.Thread | None = None
_warming_lock = threading.Lock()


@contextmanager
def _loading(what: str) -> Iterator[None]:
    """What goes wrong in this block is EngineUnavailable, naming `what`."""
    try:
        yield
    except LOAD_ERRORS as error:
        why = "the server's disk is full" if full_disk.is_behind(error) else error
        raise EngineUnavailable(f"{what} cannot be loaded: {why}") from error


def _load_engine() -> tuple["Engine", str]:
    """The engine that LYRA_ENGINE asks for; or torch, and why the other does not answer."""
    if settings.LYRA_ENGINE == TORCH or (settings.LYRA_ENGINE == AUTO and _has_gpu()):
        return _load_torch(), ""
    fault = ""
    try:
        engine = _load_openvino()
    except FAST_ERRORS as error:
        # Torch says what is wrong with a base that it cannot load either.
        reference = _load_torch()
        expected = settings.LYRA_ENGINE == AUTO and isinstance(error, _nli().engines.Unsupported)
        if expected:
            logger.info("torch answers: %s", error)
        else:
            fault = f"the fast engine was not used: {error}"
            logger.error("torch answers: %s", fault)
        return reference, fault
    logger.info("%s answers (base %s)", engine.name, engine.base.fingerprint[:12])
    return engine, fault


def _load_openvino() -> "Engine":
    """Without torch, unless this base's reference logits are not stored yet.

    Raises:
        FAST_ERRORS
    """
    from adapters_app.nli import openvino_engine  # noqa: PLC0415  may not be installed

    engine: Engine = openvino_engine.start(
        settings.LYRA_BASE_MODEL,
        revision=settings.LYRA_BASE_REVISION,
        references=settings.LYRA_REFERENCES,
        ask=_ask_torch,
        threads=settings.LYRA_TORCH_THREADS,
    )
    return engine


def _ask_torch(files: "Files") -> tuple["Reference", str]:
    logger.info("asking torch, once, what other engines must answer for %s", files.name)
    return _load_torch().reference(files.digest)


def _load_torch() -> "TorchEngine":
    nli = _torch_side()
    name = settings.LYRA_BASE_MODEL
    with _loading(f"The base model {name}"):
        base = nli.base_model.load_base(
            name,
            revision=settings.LYRA_BASE_REVISION,
            allow_download=settings.LYRA_BASE_ALLOW_DOWNLOAD,
            device=nli.device,
        )
    logger.info("base model %s is loaded (%s) on %s", name, base.fingerprint[:12], nli.device)
    engine: TorchEngine = nli.predict.TorchEngine(base)
    return engine


def _load_adapter(engine: "Engine", version: AdapterVersion) -> "Predictor":
    artifact = _nli().artifact
    with _loading(version.name):
        directory = storage.fetch(version.artifact_digest)
        read = artifact.read(directory, base=engine.base, digest=version.artifact_digest)
        return engine.predictor(read)


def _load_engine_quietly() -> None:
    try:
        _models.engine()
    except EngineUnavailable as error:
        logger.error("%s", error)  # every request and /readyz will say it again


def _has_gpu() -> bool:
    """Whether torch would answer on a GPU.

    It is asked where one may be, and only there: a GPU that is hidden from this process, or a torch
    built without CUDA, leaves the CPU, on which another engine is faster.
    """
    if settings.LYRA_DEVICE == AUTO and not any(DEVICES.glob("nvidia[0-9]*")):
        return False
    return settings.LYRA_DEVICE != "cpu" and _torch_side().device != "cpu"


class _Nli(NamedTuple):
    artifact: ModuleType
    calibration: ModuleType
    engines: ModuleType


@functools.cache
def _nli() -> _Nli:
    """The parts of the model code that need no torch, loaded with the first answer."""
    from adapters_app.nli import artifact, calibration, engines  # noqa: PLC0415

    return _Nli(artifact, calibration, engines)


class _TorchSide(NamedTuple):
    base_model: ModuleType
    embedding: ModuleType
    predict: ModuleType
    device: str


@functools.cache
def _torch_side() -> _TorchSide:
    """The one sanctioned lazy import of torch: at module level it would end up in processes that
    fork, and in every admin page and command."""
    import torch  # noqa: PLC0415

    from adapters_app.nli import base_model, embedding, predict  # noqa: PLC0415

    if settings.LYRA_TORCH_THREADS:
        torch.set_num_threads(settings.LYRA_TORCH_THREADS)
    device = settings.LYRA_DEVICE
    if device == AUTO:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    return _TorchSide(base_model, embedding, predict, device)


@functools.cache
def _batcher(at_once: int) -> Batcher:
    return Batcher(
        at_once=at_once,
        max_pairs=settings.LYRA_MAX_PAIRS,
        max_waiting=settings.LYRA_MAX_WAITING_PAIRS,
        on_pass=monitoring.PASS_PAIRS.observe,
    )


@functools.cache
def _embedding_batcher() -> Batcher:
    """A queue of its own: texts are not behind pairs. The same bounds."""
    return Batcher(
        max_pairs=settings.LYRA_MAX_PAIRS,
        max_waiting=settings.LYRA_MAX_WAITING_PAIRS,
        unit="texts",
    )
