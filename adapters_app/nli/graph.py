"""BERT and DeBERTa-v2/3 as OpenVINO graphs, built from a checkpoint's weights, adapters as inputs.

The LoRA matrices are not in the graph: every pass brings those of the adapters its rows want, side
by side along the rank, and a gate that opens each row's own. So one compiled graph answers for the
base and any mix of adapters, and a swap compiles nothing. Only what the first token's vector needs
is computed in the last layer; the head, which adapters replace, is left to the engine.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from adapters_app.nli.artifact import layer_number
from adapters_app.nli.engines import Unsupported
from adapters_app.nli.openvino_runtime import Model, Node, ops

SUPPORTED = ("bert", "deberta-v2")
MASKED = -1e9  # added to scores of padding: their exponential is 0 in every precision
RANK_STEP = 8  # ranks are rounded up to this: whole vectors, and few different shapes

# Inputs besides the stacks of LoRA matrices.
IDS, TYPES, ROWS, PLACES = "input_ids", "token_type_ids", "rows", "places"  # of every token
GRID, MASK, GATE = "grid", "attention_mask", "gate"

_ACTIVATIONS = {
    "gelu": lambda x: ops.gelu(x, "erf"),
    "gelu_new": lambda x: ops.gelu(x, "tanh"),
    "relu": ops.relu,
    "tanh": ops.tanh,
}


@dataclass(frozen=True)
class Stack:
    """The modules that have the same role in every layer; their LoRA matrices travel as one array:
    A (layers, rank, inputs), B (layers, rank, outputs)."""

    role: str
    modules: tuple[str, ...]
    outputs: int
    inputs: int


def stacks(
    linear_shapes: Mapping[str, tuple[int, int]], targets: Sequence[str]
) -> tuple[Stack, ...]:
    """The adapted modules, grouped by role, in a fixed order."""
    roles: dict[str, list[str]] = {}
    for module in linear_shapes:
        if module.rpartition(".")[2] in targets:
            roles.setdefault(re.sub(r"\.\d+\.", ".", module), []).append(module)
    return tuple(
        Stack(
            role,
            tuple(sorted(modules, key=lambda name: layer_number(name) or 0)),
            *linear_shapes[modules[0]],
        )
        for role, modules in sorted(roles.items())
    )


def build(
    config: Mapping[str, Any],
    weights: Mapping[str, np.ndarray],
    adapted: Sequence[Stack],
    window: int,
) -> Model:
    """The encoder of a checkpoint with inputs for the LoRA matrices of `adapted`.

    Inputs: ids, types, row and place therein (tokens,) int32; grid (rows, length) int32, where in
    these a row's tokens are, and mask, the same shape, float32 of 0 and 1, at most `window` long;
    gate (rows, ranks); `ROLE.A`, `ROLE.B` as in `Stack`, `ranks` of them. Tokens that no row has
    cost time and nothing else. Output: the pooled vectors, (rows, hidden), which the head reads.

    Raises:
        Unsupported: another architecture, or a variant of one that this module does not know.
    """
    refuse_variants(config)
    graph = _Graph(config, weights, adapted, window)
    encode = _bert if config["model_type"] == "bert" else _deberta
    try:
        pooled = encode(graph)
    except KeyError as error:
        raise Unsupported(f"the checkpoint lacks {error}") from error
    return Model([ops.result(pooled)], graph.parameters, config["model_type"])


def refuse_variants(config: Mapping[str, Any]) -> None:
    """
    Raises:
        Unsupported: a model of this configuration cannot be built here.
    """
    kind = config.get("model_type")
    if kind not in SUPPORTED:
        raise Unsupported(f"architecture {kind!r} is not one of {', '.join(SUPPORTED)}")
    if kind == "bert":
        known = config.get("position_embedding_type", "absolute") == "absolute"
        known = known and not config.get("is_decoder", False)
    else:
        known = (
            config.get("relative_attention", False)
            and config.get("share_att_key", False)
            and not config.get("conv_kernel_size", 0)
            and config.get("embedding_size", config["hidden_size"]) == config["hidden_size"]
            and set(_position_terms(config)) == {"c2p", "p2c"}
        )
    if not known:
        raise Unsupported(f"a variant of {kind} that is not built here")


def _bert(graph: "_Graph") -> Node:
    x = graph.embed("bert.embeddings")
    for layer, last in graph.layers:
        name = f"bert.encoder.layer.{layer}"
        attention = f"{name}.attention.self"
        own = graph.first_tokens(x) if last else x  # the pooler reads no other
        q = graph.heads(graph.linear(own, f"{attention}.query", first=last), first=last)
        k = graph.heads(graph.linear(x, f"{attention}.key"))
        v = graph.heads(graph.linear(x, f"{attention}.value"))
        scores = ops.multiply(ops.matmul(q, k, False, True), graph.constant(graph.head_size**-0.5))
        x = graph.finish_layer(name, own, scores, v, first=last)
    return ops.tanh(graph.linear(x, "bert.pooler.dense", first=True))


def _deberta(graph: "_Graph") -> Node:
    """DeBERTa (He et al. 2021): content-content, content-position and position-content scores."""
    positions = _Positions(graph)
    x = graph.embed("deberta.embeddings")
    for layer, last in graph.layers:
        name = f"deberta.encoder.layer.{layer}"
        attention = f"{name}.attention.self"
        own = graph.first_tokens(x) if last else x
        q = graph.heads(graph.linear(own, f"{attention}.query_proj", first=last), first=last)
        k = graph.heads(graph.linear(x, f"{attention}.key_proj"))
        v = graph.heads(graph.linear(x, f"{attention}.value_proj"))
        content = ops.matmul(q, k, False, True)
        position = positions.of_first(attention, q, k) if last else positions.of(attention, q, k)
        scale = graph.constant((3 * graph.head_size) ** -0.5)
        scores = ops.multiply(ops.add(content, position), scale)
        x = graph.finish_layer(name, own, scores, v, first=last)
    pooled = graph.linear(x, "pooler.dense", first=True)
    return graph.activation("pooler_hidden_act")(pooled)


class _Graph:
    """What both encoders are made of.

    Between layers there are (tokens, hidden), row after row, so that linear layers, which are
    nearly all of the work, compute no padding; heads are (rows, heads, length, size), padded. Of
    the last layer's queries on, only the `first` token of each row: (rows, hidden).
    """

    def __init__(
        self,
        config: Mapping[str, Any],
        weights: Mapping[str, np.ndarray],
        adapted: Sequence[Stack],
        window: int,
    ) -> None:
        self.config = config
        self.weights = weights
        self.window = window
        self.head_count: int = config["num_attention_heads"]
        self.head_size: int = config["hidden_size"] // self.head_count
        self._eps = float(config.get("layer_norm_eps", 1e-12))
        count = config["num_hidden_layers"]
        self.layers = [(layer, layer == count - 1) for layer in range(count)]
        self._ids, self._types, rows, self._places = (
            _parameter([-1], name, np.int32) for name in (IDS, TYPES, ROWS, PLACES)
        )
        self._grid = _parameter([-1, -1], GRID, np.int32)
        mask = _parameter([-1, -1], MASK)
        self._gate = _parameter([-1, -1], GATE)
        self.parameters = [self._ids, rows, self._places, self._grid, mask, self._gate]
        if config.get("type_vocab_size", 0) > 0:
            self.parameters.append(self._types)
        self.length = ops.gather(ops.shape_of(self._grid), _ints(1), _ints(0))  # shape (1,)
        masked = ops.multiply(ops.subtract(mask, self.constant(1.0)), self.constant(-MASKED))
        self._masked = ops.unsqueeze(masked, _ints(1, 2))
        length = ops.convert(self.length, "i32")
        self._in_grid = ops.add(ops.multiply(rows, length), self._places)
        self._gate_of_tokens = ops.gather(self._gate, rows, _scalar(0))  # (tokens, ranks)
        self.adapters: dict[str, tuple[Node, Node]] = {}
        for stack in adapted:
            a = _parameter([len(stack.modules), -1, stack.inputs], f"{stack.role}.A")
            b = _parameter([len(stack.modules), -1, stack.outputs], f"{stack.role}.B")
            self.parameters += [a, b]
            for number, module in enumerate(stack.modules):
                at = ops.constant(number, np.int32), ops.constant(0, np.int32)
                self.adapters[module] = ops.gather(a, *at), ops.gather(b, *at)

    def constant(self, values: float | np.ndarray) -> Node:
        return ops.constant(np.asarray(values, dtype=np.float32))

    def activation(self, key: str = "hidden_act") -> Any:
        name = self.config.get(key, "gelu")
        if name not in _ACTIVATIONS:
            raise Unsupported(f"activation {name!r} is not one of {', '.join(_ACTIVATIONS)}")
        return _ACTIVATIONS[name]

    def embed(self, name: str) -> Node:
        table = self.constant(self.weights[f"{name}.word_embeddings.weight"])
        x = ops.gather(table, self._ids, _scalar(0))
        if self.config.get("position_biased_input", True):
            places = self.constant(self.weights[f"{name}.position_embeddings.weight"])
            x = ops.add(x, ops.gather(places, self._places, _scalar(0)))
        if self._types in self.parameters:
            types = self.constant(self.weights[f"{name}.token_type_embeddings.weight"])
            x = ops.add(x, ops.gather(types, self._types, _scalar(0)))
        return self.norm(x, f"{name}.LayerNorm")

    def linear(self, x: Node, module: str, *, first: bool = False) -> Node:
        """x·Wᵀ + b, and for an adapted module (gate · x·Aᵀ)·B: each row's own columns only."""
        y = ops.matmul(x, self.constant(self.weights[f"{module}.weight"]), False, True)
        y = ops.add(y, self.constant(self.weights[f"{module}.bias"]))
        if module in self.adapters:
            a, b = self.adapters[module]
            gate = self._gate if first else self._gate_of_tokens
            low = ops.multiply(ops.matmul(x, a, False, True), gate)
            y = ops.add(y, ops.matmul(low, b, False, False))
        return y

    def gated(self, low: Node) -> Node:
        """(rows, heads, length, ranks) with the columns of other rows' adapters at zero."""
        return ops.multiply(low, ops.unsqueeze(self._gate, _ints(1, 2)))

    def norm(self, x: Node, name: str) -> Node:
        y = ops.mvn(x, _ints(-1), True, self._eps, "inside_sqrt")
        y = ops.multiply(y, self.constant(self.weights[f"{name}.weight"]))
        return ops.add(y, self.constant(self.weights[f"{name}.bias"]))

    def heads(self, x: Node, *, first: bool = False) -> Node:
        """(tokens, hidden) → (rows, heads, length, size), or of first tokens alone: length 1"""
        size = self.head_count, self.head_size
        if first:
            split = ops.reshape(x, _ints(0, 1, *size), True)
        else:
            rows = ops.gather(x, self._grid, _scalar(0))
            split = ops.reshape(rows, _ints(0, 0, *size), True)
        return ops.transpose(split, _ints(0, 2, 1, 3))

    def first_tokens(self, x: Node) -> Node:
        """(tokens, hidden) → (rows, hidden)"""
        return ops.gather(x, ops.gather(self._grid, _scalar(0), _scalar(1)), _scalar(0))

    def finish_layer(self, name: str, x: Node, scores: Node, v: Node, *, first: bool) -> Node:
        """Attend by `scores` (rows, heads, queries, length), then the feed-forward half."""
        shares = ops.softmax(ops.add(scores, self._masked), -1)
        attended = ops.transpose(ops.matmul(shares, v, False, False), _ints(0, 2, 1, 3))
        attended = ops.reshape(attended, _ints(-1, self.head_count * self.head_size), False)
        if not first:
            attended = ops.gather(attended, self._in_grid, _scalar(0))
        attended = self.linear(attended, f"{name}.attention.output.dense", first=first)
        x = self.norm(ops.add(attended, x), f"{name}.attention.output.LayerNorm")
        wide = self.activation()(self.linear(x, f"{name}.intermediate.dense", first=first))
        narrow = self.linear(wide, f"{name}.output.dense", first=first)
        return self.norm(ops.add(narrow, x), f"{name}.output.LayerNorm")


@dataclass(frozen=True, eq=False)
class _Distances:
    """Consecutive distances of a pass: rows `start` to `stop` of `table` (distances, hidden)."""

    table: np.ndarray
    start: Node
    stop: Node

    def of(self, constant: Node, axis: int) -> Node:
        return ops.slice(constant, self.start, self.stop, _ints(1), _ints(axis))


class _Positions:
    """DeBERTa's relative position scores, with the projections of all positions in the graph.

    Query i and key j at distance i-j meet in q_i·K(i-j) + k_j·Q(i-j), where K and Q are the key and
    query projections of the distance's embedding. transformers projects all embeddings in every
    pass and gathers; here they are projected once, the 2·length-1 distances that occur are a slice,
    and the sum's terms are skewed into place. An adapter of the query or key projection changes
    Q or K too, by a low-rank term that is added without making Q or K of its own for each row.
    """

    def __init__(self, graph: _Graph) -> None:
        self._graph = graph
        window = graph.window
        embeddings = graph.weights["deberta.encoder.rel_embeddings.weight"]
        if "layer_norm" in graph.config.get("norm_rel_ebd", "none"):
            embeddings = _layer_norm(graph, embeddings)
        # K(i-j), column by column as j grows; Q(i-j), as i does.
        falling = embeddings[_embedding_rows(np.arange(window - 1, -window, -1), graph.config)]
        rising = np.ascontiguousarray(falling[::-1])
        middle, one = _ints(window), _ints(1)
        start = ops.subtract(middle, graph.length)
        stop = ops.subtract(ops.add(middle, graph.length), one)
        self._falling = _Distances(falling, start, stop)  # length-1 … 1-length
        self._rising = _Distances(rising, start, stop)
        # 0 … 1-length: the first token alone asks.
        self._first = _Distances(falling, ops.subtract(middle, one), stop)
        self._embeddings = {
            distances: distances.of(graph.constant(distances.table), 0)
            for distances in (self._falling, self._rising, self._first)
        }

    def of(self, attention: str, q: Node, k: Node) -> Node:
        """(rows, heads, length, length)"""
        to_key = self._scores(q, f"{attention}.key_proj", self._falling)
        to_query = self._scores(k, f"{attention}.query_proj", self._rising)
        return ops.add(self._skew(to_key), ops.transpose(self._skew(to_query), _ints(0, 1, 3, 2)))

    def of_first(self, attention: str, q: Node, k: Node) -> Node:
        """(rows, heads, 1, length): only the first token asks."""
        to_key = self._scores(q, f"{attention}.key_proj", self._first)
        module = f"{attention}.query_proj"
        projected = self._projected(module, self._first)
        to_query = ops.reduce_sum(ops.multiply(k, projected), _ints(-1), False)
        if module in self._graph.adapters:
            low, ranks = self._low_rank(k, module, self._first)
            change = ops.reduce_sum(ops.multiply(low, ranks), _ints(-1), False)
            to_query = ops.add(to_query, change)
        return ops.add(to_key, ops.unsqueeze(to_query, _ints(2)))

    def _scores(self, x: Node, module: str, distances: _Distances) -> Node:
        """x (rows, heads, n, size) by `module`'s projection of the distances: (…, n, distances)"""
        scores = ops.matmul(x, self._projected(module, distances), False, True)
        if module in self._graph.adapters:
            low, ranks = self._low_rank(x, module, distances)
            scores = ops.add(scores, ops.matmul(low, ranks, False, True))
        return scores

    def _projected(self, module: str, distances: _Distances) -> Node:
        """The base's projection of the distances, (heads, distances, size)."""
        graph = self._graph
        weight, bias = graph.weights[f"{module}.weight"], graph.weights[f"{module}.bias"]
        projected = distances.table @ weight.T + bias
        by_head = projected.reshape(-1, graph.head_count, graph.head_size).swapaxes(0, 1)
        return distances.of(graph.constant(by_head), 1)

    def _low_rank(self, x: Node, module: str, distances: _Distances) -> tuple[Node, Node]:
        """Factors of what an adapter adds to x·projection: (x·B) gated, and embeddings·A."""
        graph = self._graph
        a, b = graph.adapters[module]
        by_head = ops.reshape(b, _ints(0, graph.head_count, graph.head_size), True)
        by_head = ops.transpose(by_head, _ints(1, 2, 0))  # (heads, size, ranks)
        return (
            graph.gated(ops.matmul(x, by_head, False, False)),
            ops.matmul(self._embeddings[distances], a, False, True),
        )

    def _skew(self, x: Node) -> Node:
        """(…, length, 2·length-1) → (…, length, length): row i moved left by length-1-i.

        Read as one long row from element length-1 on, in rows of 2·length-2, it stands aligned.
        """
        length, one, two = self._graph.length, _ints(1), _ints(2)
        width = ops.multiply(ops.subtract(length, one), two)
        start = ops.subtract(length, one)
        flat = ops.reshape(x, _ints(0, 0, -1), True)
        stop = ops.add(start, ops.multiply(length, width))
        flat = ops.slice(flat, start, stop, one, two)
        aligned = ops.reshape(flat, ops.concat([_ints(0, 0), length, width], 0), True)
        return ops.slice(aligned, _ints(0), length, one, _ints(3))


def _embedding_rows(distances: np.ndarray, config: Mapping[str, Any]) -> np.ndarray:
    """Row of the relative position embeddings for each distance; transformers' log buckets, in
    float32 as there, so that the same distances round to the same bucket."""
    buckets = config.get("position_buckets", -1)
    furthest = config.get("max_relative_positions", -1)
    if furthest < 1:
        furthest = config["max_position_embeddings"]
    span = buckets if buckets > 0 else furthest
    if buckets > 0:
        middle = buckets // 2
        near = np.abs(distances) < middle
        size = np.where(near, middle - 1, np.abs(distances)).astype(np.float32)
        scale = np.log(np.float32((furthest - 1) / middle))
        logs = np.log(size / np.float32(middle)) / scale * np.float32(middle - 1)
        far = np.ceil(logs) + middle
        distances = np.where(size <= middle, distances, far * np.sign(distances)).astype(np.int64)
    return np.clip(distances + span, 0, 2 * span - 1)


def _layer_norm(graph: _Graph, x: np.ndarray) -> np.ndarray:
    name = "deberta.encoder.LayerNorm"
    eps = graph.config.get("layer_norm_eps", 1e-7)
    centred = x - x.mean(axis=-1, keepdims=True)
    scaled = centred / np.sqrt((centred**2).mean(axis=-1, keepdims=True) + np.float32(eps))
    return scaled * graph.weights[f"{name}.weight"] + graph.weights[f"{name}.bias"]


def _position_terms(config: Mapping[str, Any]) -> list[str]:
    terms = config.get("pos_att_type") or []
    return terms.split("|") if isinstance(terms, str) else list(terms)


def _parameter(shape: Sequence[int], name: str, dtype: type = np.float32) -> Node:
    parameter = ops.parameter(list(shape), dtype, name=name)
    parameter.output(0).set_names({name})
    return parameter


def _ints(*values: int) -> Node:
    return ops.constant(np.array(values, dtype=np.int64))


def _scalar(value: int) -> Node:
    return ops.constant(np.int64(value))
