"""The fast engine on x86 processors: one compiled graph for the base and every adapter of it.

No torch: weights, tokenizer and what the reference engine knows of the base come from files.
"""

import os
import threading
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from adapters_app.nli import graph
from adapters_app.nli.artifact import Artifact
from adapters_app.nli.checkpoint import PREFIX, Files, find
from adapters_app.nli.encoding import Encoded, Item, Pair, PairEncoder, batches_by_length
from adapters_app.nli.engines import Row, Unsupported
from adapters_app.nli.openvino_runtime import CompiledModel, Core, InferRequest, Model
from adapters_app.nli.reference import NoReference, Reference, check, stored, write

BATCH = 32  # pairs per forward pass, twice that where they are few tokens
# Tokens of padding in a pass. Attention alone computes them: from 256 to 1,024 does equally well on
# a processor without AMX, 128 costs a tenth more for 8 pairs.
MOST_PADDING = 384
# Tokens in a pass for each of its threads, padding included: fewer long rows share one. More are
# computed no faster, and attention takes memory by rows and by squares of lengths: by 256 pairs of
# all lengths at once MiniLM's process came to 760 MB without a limit, with twice this one to 530.
MOST_TOKENS = 1024
# Kernels that OpenVINO keeps, for each kind of operation, for shapes that it has met. Its own 5,000
# grow for thousands of pairs: by 1,500 short ones to 571 MB, with these to 513. Processor time per
# pair is the same, in batches of 1, 32 and 256.
KERNELS = 32
# Two passes at once, each on half of the processors, wait for one another nowhere. With the engine
# alone that takes a few per cent less processor time than one after the other on all; next to a
# server's Python, which wants a processor too, a tenth. Fewer tokens than these go in one pass: its
# answers come sooner.
ABREAST, FEW_TOKENS = 2, 768
# Rows' lengths and the number of tokens are rounded up, so that there are few different shapes:
# to 8, and from MANY_TOKENS on, where more cost next to nothing, to 32.
STEP, LARGE_STEP, MANY_TOKENS = 8, 32, 256


@dataclass(frozen=True, eq=False)
class Base:
    """A base without torch: its files, and what the reference says of it.

    `weights` reads them anew: once they are in a graph nothing else needs them in memory.
    """

    name: str
    reference: Reference
    config: Mapping[str, Any]
    shapes: Mapping[str, tuple[int, ...]]
    weights: Callable[[], dict[str, np.ndarray]]
    encoder: PairEncoder

    @property
    def fingerprint(self) -> str:
        return self.reference.fingerprint

    @property
    def head(self) -> str:
        return self.reference.head

    @property
    def linear_shapes(self) -> dict[str, tuple[int, int]]:
        """Linear module outside the head → (outputs, inputs)."""
        return {
            name.removesuffix(".weight"): (shape[0], shape[1])
            for name, shape in self.shapes.items()
            if name.endswith(".weight") and len(shape) == 2
            if not self._in_head(name) and "embeddings" not in name
        }

    @property
    def head_shapes(self) -> dict[str, tuple[int, ...]]:
        """Parameter of the head → its shape."""
        return {name: shape for name, shape in self.shapes.items() if self._in_head(name)}

    def _in_head(self, name: str) -> bool:
        return name.split(".")[0] == self.head


def load_base(files: Files, reference: Reference, tokenizer: str) -> Base:
    """Read a base that `reference` describes; `tokenizer` is its JSON.

    Raises:
        BaseModelError: the weights cannot be read.
    """
    return Base(
        name=files.name,
        reference=reference,
        config=files.config(),
        shapes=files.shapes(),
        weights=files.weights,
        encoder=PairEncoder(Tokenizer.from_str(tokenizer), reference.max_length),
    )


@dataclass(frozen=True, eq=False)
class _Head:
    """The last linear layer, in fp32, its outputs in the order of LABELS."""

    weight: np.ndarray  # (3, hidden)
    bias: np.ndarray

    def __call__(self, pooled: np.ndarray) -> np.ndarray:
        logits: np.ndarray = pooled @ self.weight.T + self.bias
        return logits


@dataclass(frozen=True, eq=False)
class _Ready:
    """A graph compiled for so many passes at once, and the requests that nothing runs in."""

    model: CompiledModel
    idle: deque[InferRequest] = field(default_factory=deque)

    def start(self, inputs: Mapping[str, np.ndarray]) -> InferRequest:
        """Start a pass; `inputs` must be kept until it has ended."""
        try:
            request = self.idle.pop()
        except IndexError:
            request = self.model.create_infer_request()
        request.start_async(inputs, share_inputs=True)
        return request


@dataclass(frozen=True, eq=False)
class _Compiled:
    """A graph for one choice of target modules, ready to run."""

    alone: _Ready  # a pass on all processors
    abreast: _Ready  # ABREAST passes at once; `alone` where processors cannot be shared out so
    stacks: tuple[graph.Stack, ...]
    nothing: Mapping[str, np.ndarray]  # LoRA inputs where no row has an adapter


@dataclass(frozen=True, eq=False)
class _Pass:
    """Rows that go through one graph together."""

    compiled: _Compiled
    ready: _Ready
    chosen: Sequence[int]  # their places among all rows
    encoded: Sequence[Encoded]
    predictors: Sequence["Predictor"]


@dataclass(frozen=True, eq=False)
class _Running:
    """A pass under way."""

    of: _Pass
    request: InferRequest
    inputs: Mapping[str, np.ndarray]  # read by the request until it has ended


@dataclass(frozen=True, eq=False)
class Predictor:
    """The base or one adapter: its LoRA matrices, and a head of its own.

    `matrices`: of the layers that are adapted only, at the adapter's own rank; `places`: where
    those layers are in the graph's inputs. A pass brings them into the graph's shape.
    """

    engine: "OpenVinoEngine"
    compiled: _Compiled
    head: _Head
    matrices: Mapping[str, np.ndarray] = field(default_factory=dict)
    places: Mapping[str, list[int]] = field(default_factory=dict)
    rank: int = 0  # 0 = the base

    @property
    def resident_bytes(self) -> int:
        """Memory this predictor holds beyond the base's."""
        arrays = [*self.matrices.values(), self.head.weight, self.head.bias]
        return sum(array.nbytes for array in arrays) if self.rank else 0

    def logits(
        self, items: Sequence[Item], *, on_batch: Callable[[int], None] | None = None
    ) -> np.ndarray:
        """Raw scores, (n, 3) float32, columns in the order of LABELS, rows in the order given."""
        return self.engine.logits([(self, item) for item in items], on_batch=on_batch)


class OpenVinoEngine:
    """Answers any mix of the base and its adapters in one forward pass.

    Raises:
        Unsupported: an architecture or a head that the graph does not know.
    """

    def __init__(self, base: Base, *, precision: str = "", threads: int = 0) -> None:
        """`precision`: f32 or bf16; empty = bf16 where the processor multiplies it natively.
        `threads`: 0 = all the processors this process may use."""
        self.base = base
        self._core = Core()
        self.precision = precision or native_precision(self._core)
        self._threads = threads or _processors()
        self._graphs: dict[tuple[str, ...], _Compiled] = {}
        self._compiling = threading.Lock()
        if set(base.head_shapes) != {f"{base.head}.weight", f"{base.head}.bias"}:
            raise Unsupported(f"a head of {', '.join(sorted(base.head_shapes))}")
        weights = base.weights()
        usual = tuple(sorted(base.reference.target_modules))
        self._graphs[usual] = self._compile(usual, weights)
        self._bare = Predictor(self, self._graphs[usual], self._head(weights, ""))

    @property
    def name(self) -> str:
        return f"openvino {self.precision}"

    def predictor(self, artifact: Artifact | None = None) -> Predictor:
        """The base, always the same object; or an adapter that was read for this base.

        Adapters of other modules than usual get a graph of their own, compiled once.
        """
        if artifact is None:
            return self._bare
        compiled = self._compiled(artifact.target_modules)
        tensors = artifact.tensors
        matrices: dict[str, np.ndarray] = {}
        places: dict[str, list[int]] = {}
        for stack in compiled.stacks:
            loras = [f"{PREFIX}{module}.lora_" for module in stack.modules]
            adapted = [number for number, lora in enumerate(loras) if f"{lora}A.weight" in tensors]
            a = np.empty((len(adapted), artifact.rank, stack.inputs), dtype=np.float32)
            b = np.empty((len(adapted), artifact.rank, stack.outputs), dtype=np.float32)
            for at, number in enumerate(adapted):
                a[at] = tensors[f"{loras[number]}A.weight"]
                b[at] = tensors[f"{loras[number]}B.weight"].T
            b *= np.float32(artifact.scaling)
            for name, array in ((f"{stack.role}.A", a), (f"{stack.role}.B", b)):
                matrices[name], places[name] = array, adapted
        head = self._head(tensors, PREFIX)
        return Predictor(self, compiled, head, matrices, places, artifact.rank)

    def encode(self, pairs: Sequence[Pair]) -> list[Encoded]:
        """Pairs as token ids, which rows may have in their place."""
        return self.base.encoder.encode(pairs)

    def logits(
        self, rows: Sequence[Row], *, on_batch: Callable[[int], None] | None = None
    ) -> np.ndarray:
        """Raw scores, (n, 3) float32, columns in the order of LABELS, rows in the order given.

        `on_batch` is called with the number of rows done; it may raise to stop.
        """
        passes, running = self._begin(rows)
        return self._finish(len(rows), passes, running, on_batch)

    @property
    def at_once(self) -> int:
        """How many calls of `begin` it computes abreast."""
        return 1 if self._threads % ABREAST else ABREAST

    def begin(self, rows: Sequence[Row], /, *, abreast: bool = False) -> Callable[[], np.ndarray]:
        """Start on rows; what is returned waits for their `logits`, and is called once.

        `abreast`: on a share of the processors, for `at_once` such calls at a time.
        """
        passes, running = self._begin(rows, abreast=abreast)
        return lambda: self._finish(len(rows), passes, running, None)

    def _begin(
        self, rows: Sequence[Row], *, abreast: bool = False
    ) -> tuple[Iterator[_Pass], deque[_Running]]:
        """The passes that the rows take, of which the first are under way."""
        predictors = [_own(predictor) for predictor, _ in rows]
        encoded = self.base.encoder.encode([item for _, item in rows])
        by_graph: defaultdict[_Compiled, list[int]] = defaultdict(list)
        for i, predictor in enumerate(predictors):
            by_graph[predictor.compiled].append(i)
        passes = (
            _Pass(
                compiled,
                ready,
                chosen,
                [encoded[i] for i in chosen],
                [predictors[i] for i in chosen],
            )
            for compiled, members in by_graph.items()
            for ready, chosen in self._shared_out(compiled, members, encoded, abreast=abreast)
        )
        running: deque[_Running] = deque()
        with _waited_for(running):
            running.extend(self._start(each) for each in islice(passes, 1 if abreast else ABREAST))
        return passes, running

    def _shared_out(
        self,
        compiled: _Compiled,
        members: Sequence[int],
        encoded: Sequence[Encoded],
        *,
        abreast: bool,
    ) -> Iterator[tuple[_Ready, list[int]]]:
        """The rows of each pass through a graph, and in which form of it they go.

        Rows of similar length go together; passes that go abreast have as many tokens each.
        """
        lengths = [len(encoded[i]) for i in members]
        at_once = 1 if abreast else self.at_once
        most_tokens = MOST_TOKENS * self._threads // self.at_once
        limits = (at_once * limit for limit in (BATCH, MOST_PADDING, most_tokens))
        for batch in batches_by_length(lengths, *limits):
            chosen = [members[i] for i in batch]
            if abreast:
                yield compiled.abreast, chosen
            elif at_once == 1 or sum(lengths[i] for i in batch) < FEW_TOKENS:
                yield compiled.alone, chosen
            else:
                yield from ((compiled.abreast, chosen[i::at_once]) for i in range(at_once))

    def _finish(
        self,
        size: int,
        passes: Iterator[_Pass],
        running: deque[_Running],
        on_batch: Callable[[int], None] | None,
    ) -> np.ndarray:
        """The rows of all passes; the next is started before the oldest that runs has ended."""
        out = np.empty((size, len(self.base.reference.label_columns)), dtype=np.float32)
        done = 0
        with _waited_for(running):
            while running:
                running.extend(self._start(each) for each in islice(passes, 1))
                oldest = running.popleft()
                out[oldest.of.chosen] = self._end(oldest)
                done += len(oldest.of.chosen)
                if on_batch is not None:
                    on_batch(done)
        return out

    def _start(self, of: _Pass) -> _Running:
        reference = self.base.reference
        packed = _packed(of.encoded, pad_id=reference.pad_id, longest=reference.max_length)
        if not self.base.config.get("type_vocab_size", 0):
            del packed[graph.TYPES]
        inputs = {**packed, **_mixed(of.compiled, of.predictors)}
        return _Running(of, of.ready.start(inputs), inputs)

    def _end(self, running: _Running) -> np.ndarray:
        """Wait for a pass; its logits."""
        running.request.wait()
        pooled = running.request.get_output_tensor(0).data.copy()
        running.of.ready.idle.append(running.request)
        predictors = running.of.predictors
        shape = len(predictors), len(self.base.reference.label_columns)
        logits = np.empty(shape, dtype=np.float32)
        for head in {predictor.head for predictor in predictors}:
            own = [i for i, predictor in enumerate(predictors) if predictor.head is head]
            logits[own] = head(pooled[own])
        return logits

    def _compiled(self, targets: Sequence[str]) -> _Compiled:
        key = tuple(sorted(targets))
        with self._compiling:
            if key not in self._graphs:
                self._graphs[key] = self._compile(key, self.base.weights())
            return self._graphs[key]

    def _compile(self, targets: tuple[str, ...], weights: Mapping[str, np.ndarray]) -> _Compiled:
        base = self.base
        adapted = graph.stacks(base.linear_shapes, targets)
        model = graph.build(base.config, weights, adapted, base.reference.max_length)
        alone = self._ready(model, at_once=1)
        abreast = self._ready(model, at_once=self.at_once) if self.at_once > 1 else alone
        nothing = {}
        for stack in adapted:
            shape = len(stack.modules), graph.RANK_STEP
            nothing[f"{stack.role}.A"] = np.zeros((*shape, stack.inputs), dtype=np.float32)
            nothing[f"{stack.role}.B"] = np.zeros((*shape, stack.outputs), dtype=np.float32)
        return _Compiled(alone, abreast, adapted, nothing)

    def _ready(self, model: Model, *, at_once: int) -> _Ready:
        compiled = self._core.compile_model(
            model,
            "CPU",
            {
                "INFERENCE_PRECISION_HINT": self.precision,
                "INFERENCE_NUM_THREADS": self._threads,
                "NUM_STREAMS": at_once,  # passes that share the threads
                "CPU_RUNTIME_CACHE_CAPACITY": KERNELS,
                # Several processes serve, and one trains: a thread tied to a core would wait there.
                "ENABLE_CPU_PINNING": False,
            },
        )
        return _Ready(compiled)

    def _head(self, tensors: Mapping[str, np.ndarray], prefix: str) -> _Head:
        name, columns = f"{prefix}{self.base.head}", list(self.base.reference.label_columns)
        return _Head(tensors[f"{name}.weight"][columns], tensors[f"{name}.bias"][columns])


def start(
    name: str,
    *,
    revision: str,
    references: Path,
    ask: Callable[[Files], tuple[Reference, str]],
    threads: int = 0,
) -> OpenVinoEngine:
    """Load a base by name and prove the engine on the golden pairs.

    `references`: where references are kept; `ask` makes one that is not there yet, which takes the
    reference engine.

    Raises:
        BaseModelError: the files are not here, or cannot be read without torch.
        Unsupported: the graph does not know this architecture.
        Disagreement: its answers are not the reference's.
    """
    files = find(name, revision=revision)
    graph.refuse_variants(files.config())
    try:
        reference, tokenizer = stored(files, references)
    except NoReference:
        reference, tokenizer = ask(files)
        write(reference, tokenizer, references)
    engine = OpenVinoEngine(load_base(files, reference, tokenizer), threads=threads)
    check(engine, reference, engine.precision)
    return engine


@contextmanager
def _waited_for(running: Iterable[_Running]) -> Iterator[None]:
    """Whatever cuts this block short, the passes end: they read their inputs until then."""
    try:
        yield
    except BaseException:
        for each in running:
            with suppress(RuntimeError):  # what went wrong is raised already
                each.request.wait()
        raise


def native_precision(core: Core) -> str:
    """bf16 where the processor multiplies it natively, else f32."""
    able = core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    return "bf16" if "BF16" in able else "f32"


def _packed(rows: Sequence[Encoded], *, pad_id: int, longest: int) -> dict[str, np.ndarray]:
    """The graph's inputs for the tokens of `rows`, one row after the other."""
    lengths = [len(row) for row in rows]
    tokens, length = sum(lengths), max(lengths)
    length = max(length, min(_rounded(length, STEP), longest))
    size = _rounded(tokens, STEP if tokens < MANY_TOKENS else LARGE_STEP)
    of_tokens = np.zeros((4, size), dtype=np.int32)
    ids, types, row_of, places = of_tokens
    ids[tokens:] = pad_id
    grid = np.zeros((len(rows), length), dtype=np.int32)
    mask = np.zeros((len(rows), length), dtype=np.float32)
    start = 0
    for i, row in enumerate(rows):
        stop = start + len(row)
        ids[start:stop], types[start:stop], row_of[start:stop] = row.ids, row.type_ids, i
        places[start:stop] = np.arange(len(row))
        grid[i, : len(row)] = np.arange(start, stop)
        mask[i, : len(row)] = 1
        start = stop
    return {
        graph.IDS: ids,
        graph.TYPES: types,
        graph.ROWS: row_of,
        graph.PLACES: places,
        graph.GRID: grid,
        graph.MASK: mask,
    }


def _mixed(compiled: _Compiled, predictors: Sequence[Predictor]) -> dict[str, np.ndarray]:
    """LoRA inputs of a pass: the matrices of all its adapters side by side, and each row's gate."""
    distinct = [each for each in dict.fromkeys(predictors) if each.rank]
    columns: dict[Predictor, slice] = {}
    end = 0
    for predictor in distinct:
        columns[predictor] = slice(end, end + predictor.rank)
        end += predictor.rank
    ranks = _rounded(max(1, end), graph.RANK_STEP)
    gate = np.zeros((len(predictors), ranks), dtype=np.float32)
    for i, predictor in enumerate(predictors):
        if predictor in columns:
            gate[i, columns[predictor]] = 1
    return {**_side_by_side(compiled, columns, ranks), graph.GATE: gate}


def _side_by_side(
    compiled: _Compiled, columns: Mapping[Predictor, slice], ranks: int
) -> Mapping[str, np.ndarray]:
    """Matrices of all layers, `ranks` of them, with each adapter's in its columns, else zero."""
    if not columns:
        return compiled.nothing
    shapes = {name: (len(e), ranks, e.shape[2]) for name, e in compiled.nothing.items()}
    first = next(iter(columns))
    if len(columns) == 1 and shapes == {name: m.shape for name, m in first.matrices.items()}:
        return first.matrices  # nothing to copy: the usual adapter, alone
    stacked = {name: np.zeros(shape, dtype=np.float32) for name, shape in shapes.items()}
    for predictor, own in columns.items():
        for name, places in predictor.places.items():
            stacked[name][places, own] = predictor.matrices[name]
    return stacked


def _rounded(value: int, step: int) -> int:
    """The next multiple of `step`."""
    return -(-value // step) * step


def _own(predictor: object) -> Predictor:
    if not isinstance(predictor, Predictor):
        raise TypeError(f"{predictor!r} is of another engine")
    return predictor


def _processors() -> int:
    return len(os.sched_getaffinity(0))
