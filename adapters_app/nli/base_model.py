"""The frozen base model: loaded by name, fingerprinted, its labels mapped to ours."""

import copy
import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from huggingface_hub.errors import HFValidationError
from safetensors.torch import load_file
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    BertForSequenceClassification,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)
from transformers.utils import logging as transformers_logging

from adapters_app.nli.artifact import layer_number
from adapters_app.nli.checkpoint import (
    BUNDLED,
    PREFIX,
    BaseModelError,
    bundled_change,
    bundled_fingerprint,
    bundled_scaling,
    encoder_directory,
    encoder_weights,
)
from adapters_app.nli.encoding import PairEncoder
from corrections.labels import LABELS, Label

# Models are loaded in servers, whose error output is a log file. Warnings are shown as ever.
transformers_logging.disable_progress_bar()

WINDOW = 512  # tokens per pair, where the model itself allows as many

# Attention query and value projections, the documents' choice, by architecture.
QUERY_VALUE: dict[str, tuple[str, str]] = {
    "bert": ("query", "value"),
    "roberta": ("query", "value"),
    "xlm-roberta": ("query", "value"),
    "deberta-v2": ("query_proj", "value_proj"),
    "qwen2": ("q_proj", "v_proj"),
}


@dataclass(frozen=True, eq=False)
class Base:
    """A frozen model in evaluation mode. Nothing may write to its tensors."""

    name: str
    fingerprint: str
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerFast
    encoder: PairEncoder
    # Column of the checkpoint's logits that holds each of ours, in the order of LABELS.
    label_columns: tuple[int, ...]
    target_modules: tuple[str, ...]
    head: str

    @property
    def device(self) -> torch.device:
        return self.model.device

    @property
    def max_length(self) -> int:
        return self.encoder.max_length

    @property
    def pad_id(self) -> int:
        return int(self.model.config.pad_token_id or 0)

    @property
    def uses_type_ids(self) -> bool:
        return getattr(self.model.config, "type_vocab_size", 0) > 1

    @property
    def linear_shapes(self) -> dict[str, tuple[int, int]]:
        """Linear module outside the head → (outputs, inputs)."""
        return {
            name: (module.out_features, module.in_features)
            for name, module in self.model.named_modules()
            if isinstance(module, nn.Linear) and not self._in_head(name)
        }

    @property
    def head_shapes(self) -> dict[str, tuple[int, ...]]:
        """Parameter of the head → its shape."""
        return {
            name: tuple(parameter.shape)
            for name, parameter in self.model.named_parameters()
            if self._in_head(name)
        }

    def _in_head(self, name: str) -> bool:
        return name.split(".")[0] == self.head

    def structure_copy(self) -> PreTrainedModel:
        """A model with modules of its own that shares every tensor with this one."""
        shared: Iterable[torch.Tensor] = [*self.model.parameters(), *self.model.buffers()]
        return copy.deepcopy(self.model, {id(tensor): tensor for tensor in shared})

    def own_copy(self) -> PreTrainedModel:
        """A model of its own, tensors and all, that may be trained."""
        return copy.deepcopy(self.model)

    @property
    def layers(self) -> int:
        """How many layers the encoder has."""
        numbers = [layer_number(name) for name in self.linear_shapes]
        return 1 + max((number for number in numbers if number is not None), default=-1)

    def upper_layers(self, share: float) -> tuple[int, ...]:
        """Numbers of the uppermost layers that are this share of all, at least one; () = all."""
        count = max(1, round(share * self.layers))
        return tuple(range(self.layers - count, self.layers)) if count < self.layers else ()

    def resolve_targets(self, wanted: tuple[str, ...] | str) -> tuple[str, ...]:
        """Names of the modules to adapt, each found in the model.

        Raises:
            BaseModelError: naming the first that the model does not have.
        """
        if isinstance(wanted, str):
            return self.target_modules
        present = {name.rpartition(".")[2] for name in self.linear_shapes}
        for name in wanted:
            if name not in present:
                raise BaseModelError(
                    f"target_modules: {self.name} has no linear module {name!r}; "
                    f"it has {', '.join(sorted(present))}"
                )
        return wanted


def load_base(
    name: str, *, revision: str = "", allow_download: bool = False, device: str = "cpu"
) -> Base:
    """Load `minilm-nli` (bundled) or any sequence-classification checkpoint, frozen, in fp32.

    Raises:
        BaseModelError: files missing or altered, labels that are not the three of NLI, an
            architecture whose attention projections are unknown, a device that is not here.
    """
    if name == BUNDLED:
        model, tokenizer, fingerprint = _load_bundled()
    else:
        model, tokenizer = _load_checkpoint(name, revision, allow_download)
        fingerprint = ""
    return as_base(name, model, tokenizer, fingerprint, device)


def load_encoder_with_fresh_head(seed: int, device: str = "cpu") -> Base:
    """all-MiniLM-L6-v2 with an untrained NLI head: what `train_base` starts from."""
    model, tokenizer = _minilm(seed)
    return as_base("all-MiniLM-L6-v2", model, tokenizer, "", device)


def as_base(
    name: str,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    fingerprint: str,
    device: str,
) -> Base:
    """A model at hand as a frozen base; an empty `fingerprint` is computed from its tensors.

    Raises:
        BaseModelError: as `load_base`.
    """
    columns = label_columns(name, model.config.id2label)
    _give_pad_token(name, model, tokenizer)
    targets = _query_value(name, model)
    model.eval().requires_grad_(False)
    # A decoder keeps keys and values for the next token; a classifier has none.
    model.config.use_cache = False
    return Base(
        name=name,
        fingerprint=fingerprint or _fingerprint(model, tokenizer, columns),
        model=_moved(model, device),
        tokenizer=tokenizer,
        encoder=PairEncoder(
            tokenizer.backend_tokenizer,
            _window(model, tokenizer),
            separator=tokenizer.eos_token_id,
        ),
        label_columns=columns,
        target_modules=targets,
        head=_head(name, model),
    )


def _moved(model: PreTrainedModel, device: str) -> PreTrainedModel:
    try:
        nn.Module.to(model, device)
    except torch.OutOfMemoryError:
        raise
    except (AssertionError, RuntimeError) as error:
        # A torch built without CUDA fails an assertion; drivers and numbers are runtime errors.
        raise BaseModelError(f"the device {device!r} cannot be used: {error}") from error
    return model


def label_columns(name: str, id2label: Mapping[Any, str] | None) -> tuple[int, ...]:
    """Where the checkpoint keeps each of LABELS, read from the names it gives its outputs.

    Raises:
        BaseModelError: the names are not three NLI labels.
    """
    columns: dict[Label, int] = {}
    id2label = id2label or {}
    for index, text in id2label.items():
        columns[_label_named(str(text).lower())] = int(index)
    if len(id2label) != len(LABELS) or len(columns) != len(LABELS):
        names = ", ".join(str(text) for text in id2label.values())
        raise BaseModelError(
            f"{name}: its outputs are named {names}; an NLI model names three, such as "
            "entailment, neutral, contradiction"
        )
    return tuple(columns[label] for label in LABELS)


def _label_named(text: str) -> Label:
    if "entail" in text or "support" in text:
        return Label.SUPPORTS
    if "contradict" in text or "refut" in text:
        return Label.REFUTES
    return Label.NEUTRAL


def _minilm(seed: int) -> tuple[BertForSequenceClassification, PreTrainedTokenizerFast]:
    directory = encoder_directory()
    config = BertConfig.from_pretrained(directory)
    config.num_labels = len(LABELS)
    config.id2label = {label.column: label.value for label in LABELS}
    config.label2id = {label.value: label.column for label in LABELS}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = BertForSequenceClassification(config)
    weights = encoder_weights()
    missing, unexpected = model.bert.load_state_dict(load_file(weights), strict=False)
    if missing or set(unexpected) - {"embeddings.position_ids"}:
        raise BaseModelError(f"{weights}: unexpected layout: {[*missing, *unexpected]}")
    return model, PreTrainedTokenizerFast.from_pretrained(directory, local_files_only=True)


def _load_bundled() -> tuple[PreTrainedModel, PreTrainedTokenizerFast, str]:
    model, tokenizer = _minilm(seed=0)
    tensors = {name: tensor.float() for name, tensor in load_file(bundled_change()).items()}
    fold_into(model, tensors, bundled_scaling())
    return model, tokenizer, bundled_fingerprint()


def folded_weights(
    model: nn.Module, tensors: dict[str, torch.Tensor], scaling: float
) -> dict[str, torch.Tensor]:
    """New values of the parameters that an adapter changes: W + scaling · B·A, and the head's own.

    The formula is LoRA's (Hu et al. 2021, eq. 3); `tensors` are named as PEFT saves them.
    """
    parameters = dict(model.named_parameters())
    changed: dict[str, torch.Tensor] = {}
    for key, tensor in tensors.items():
        name = key.removeprefix(PREFIX)
        if name.endswith(".lora_A.weight"):
            module = name.removesuffix(".lora_A.weight")
            b = tensors[key.replace(".lora_A.", ".lora_B.")]
            weight = parameters[f"{module}.weight"]
            delta = (b.to(weight.device) @ tensor.to(weight.device)) * scaling
            changed[f"{module}.weight"] = (weight + delta.to(weight.dtype)).detach()
        elif not name.endswith(".lora_B.weight"):
            weight = parameters[name]
            changed[name] = tensor.to(weight.device, weight.dtype)
    return changed


def put_parameters(model: nn.Module, values: dict[str, torch.Tensor]) -> None:
    """Replace parameters of `model` by name with new ones; other tensors are left as they are."""
    for name, value in values.items():
        module_name, _, leaf = name.rpartition(".")
        module = model.get_submodule(module_name)
        setattr(module, leaf, nn.Parameter(value, requires_grad=False))


def fold_into(model: nn.Module, tensors: dict[str, torch.Tensor], scaling: float) -> None:
    """Fold an adapter into a model that is ours alone (never into a shared base)."""
    put_parameters(model, folded_weights(model, tensors, scaling))


def _load_checkpoint(
    name: str, revision: str, allow_download: bool
) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    where = {"revision": revision or None, "local_files_only": not allow_download}
    try:
        config = AutoConfig.from_pretrained(name, **where)
        label_columns(name, config.id2label)
        tokenizer = AutoTokenizer.from_pretrained(name, use_fast=True, **where)
        model, report = AutoModelForSequenceClassification.from_pretrained(
            name, dtype=torch.float32, use_safetensors=True, output_loading_info=True, **where
        )
    except BaseModelError:
        raise
    except (OSError, ValueError, HFValidationError) as error:
        hint = (
            "" if allow_download else " (the hub is contacted only with LYRA_BASE_ALLOW_DOWNLOAD=1)"
        )
        first = str(error).strip().splitlines()[0]
        raise BaseModelError(f"base model {name!r} cannot be loaded{hint}: {first}") from error
    if report["missing_keys"]:
        raise BaseModelError(
            f"base model {name!r} is not a trained classifier: it lacks "
            + ", ".join(sorted(report["missing_keys"])[:4])
        )
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise BaseModelError(f"base model {name!r} has no fast tokenizer (tokenizer.json)")
    return model, tokenizer


def _give_pad_token(name: str, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> None:
    """Decoder checkpoints often name no padding token; batches need one and the head looks for it.

    transformers may invent one beyond the embedding's rows; that is as good as none.
    """
    rows = model.get_input_embeddings().num_embeddings
    if tokenizer.pad_token_id is None or tokenizer.pad_token_id >= rows:
        if tokenizer.eos_token_id is None:
            raise BaseModelError(f"{name}: its tokenizer names neither a padding nor an end token")
        tokenizer.pad_token = tokenizer.eos_token
    if model.config.pad_token_id is None or model.config.pad_token_id >= rows:
        model.config.pad_token_id = tokenizer.pad_token_id


def _window(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> int:
    """Tokens per pair: what we allow, what the tokenizer says, what the positions can hold."""
    limits = [WINDOW]
    # Without one, transformers reports a huge number.
    limits.append(int(min(tokenizer.model_max_length, WINDOW)))
    positions = getattr(model.config, "max_position_embeddings", 0)
    if positions and getattr(model.config, "position_biased_input", True):
        # RoBERTa numbers positions from pad_token_id + 1.
        offset = model.config.pad_token_id + 1 if "roberta" in model.config.model_type else 0
        limits.append(positions - offset)
    return min(limits)


def _query_value(name: str, model: PreTrainedModel) -> tuple[str, ...]:
    architecture = model.config.model_type
    if architecture not in QUERY_VALUE:
        raise BaseModelError(
            f"{name}: architecture {architecture!r} is not one of {', '.join(QUERY_VALUE)}"
        )
    targets = QUERY_VALUE[architecture]
    present = {module.rpartition(".")[2] for module, _ in model.named_modules()}
    for target in targets:
        if target not in present:
            raise BaseModelError(f"{name}: {architecture} without a module named {target!r}")
    return targets


def _head(name: str, model: PreTrainedModel) -> str:
    for head in ("classifier", "score"):
        if hasattr(model, head):
            return head
    raise BaseModelError(f"{name}: its classification head is called neither classifier nor score")


def _fingerprint(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, columns: tuple[int, ...]
) -> str:
    """SHA-256 over every tensor, the tokenizer and the label order: what an adapter is bound to."""
    digest = hashlib.sha256(json.dumps(columns).encode())
    digest.update(tokenizer.backend_tokenizer.to_str().encode())
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
