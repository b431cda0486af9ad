"""Fine-tuning as the documents do it, by Hugging Face's Trainer: every weight, or a LoRA adapter.

Rivals to be measured against; what the server trains is `train`'s.
"""

import tempfile
from collections.abc import Callable, Sequence
from typing import Any

import torch
from peft import (
    LoraConfig,
    PeftModel,
    TaskType,
    get_peft_model,
    get_peft_model_state_dict,
)
from torch import nn
from torch.nn import functional
from transformers import PreTrainedModel, Trainer, TrainingArguments
from transformers.modeling_outputs import SequenceClassifierOutput
from transformers.trainer_callback import PrinterCallback

from adapters_app.nli.artifact import Artifact
from adapters_app.nli.base_model import Base
from adapters_app.nli.data import collate
from adapters_app.nli.embedding import BiEncoder, SentenceEncoder
from adapters_app.nli.encoding import Encoded, Pair
from corrections.labels import LABELS, Label

# The documents' adapter, where they agree in their newest state.
RANK, ALPHA, DROPOUT = 8, 16, 0.1


def with_adapter(
    model: PreTrainedModel, targets: Sequence[str], task: TaskType = TaskType.SEQ_CLS
) -> PeftModel:
    """`model` with the documents' adapter, its own weights frozen; a classifier's head is trained.

    The first A matrices come from torch's global generator.
    """
    adapter = LoraConfig(
        task_type=task,
        r=RANK,
        lora_alpha=ALPHA,
        lora_dropout=DROPOUT,
        target_modules=list(targets),
    )
    return get_peft_model(model, adapter)


def adapter_of(base: Base, model: PeftModel) -> Artifact:
    """What a model made by `with_adapter` of `base`'s target modules has learnt."""
    # Left to itself PEFT asks the hub whether the vocabulary has grown.
    state = get_peft_model_state_dict(model, save_embedding_layers=False)
    return Artifact(
        tensors={
            name: tensor.detach().cpu().contiguous().numpy() for name, tensor in state.items()
        },
        rank=RANK,
        alpha=ALPHA,
        target_modules=base.target_modules,
        head=base.head,
        base_fingerprint=base.fingerprint,
    )


def train_cross_encoder(
    base: Base,
    model: nn.Module,
    pairs: Sequence[Pair],
    labels: Sequence[Label],
    *,
    weights: Sequence[float] | None = None,
    multiple: int = 1,
    **arguments: Any,
) -> None:
    """Train `model`, a classifier of `base`'s shape, in place on n labelled pairs.

    `weights` (n,) multiply their losses; a batch's loss is the weighted mean. A batch is as long as
    its longest pair, rounded up to `multiple` tokens.
    """
    columns = torch.tensor([base.label_columns[label.column] for label in labels])
    targets = functional.one_hot(columns, len(LABELS)).float()
    if weights is not None:
        targets *= torch.tensor(weights)[:, None]

    def batch(items: Sequence[tuple[Encoded, torch.Tensor]]) -> dict[str, torch.Tensor]:
        encoded = [pair for pair, _ in items]
        tensors = collate(
            encoded, pad_id=base.pad_id, type_ids=base.uses_type_ids, multiple=multiple
        )
        return tensors | {"labels": torch.stack([target for _, target in items])}

    items = list(zip(base.encoder.encode(pairs), targets, strict=True))
    _train(model, items, batch, base.device, loss=_weighted_mean, **arguments)


def _weighted_mean(
    outputs: SequenceClassifierOutput, targets: torch.Tensor, num_items_in_batch: int | None = None
) -> torch.Tensor:
    """Cross-entropy over a batch's targets (n, 3), each a one-hot label times its weight."""
    return -(targets * outputs["logits"].log_softmax(-1)).sum() / targets.sum()


def train_bi_encoder(
    encoder: SentenceEncoder,
    model: nn.Module,
    pairs: Sequence[Pair],
    similarities: Sequence[float],
    **arguments: Any,
) -> None:
    """Train `model`, of `encoder`'s shape, in place on n pairs and the cosines they should have."""

    def batch(items: Sequence[tuple[Pair, float]]) -> dict[str, Any]:
        return {
            "first": encoder.tokenize([pair[0] for pair, _ in items]),
            "second": encoder.tokenize([pair[1] for pair, _ in items]),
            "labels": torch.tensor([similarity for _, similarity in items]),
        }

    items = list(zip(pairs, similarities, strict=True))
    _train(BiEncoder(model), items, batch, encoder.device, **arguments)


def trainable(model: nn.Module) -> list[nn.Parameter]:
    """The parameters that training changes."""
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def _train(
    model: nn.Module,
    items: list[Any],
    batch: Callable[[Sequence[Any]], dict[str, Any]],
    device: torch.device,
    *,
    loss: Callable[..., torch.Tensor] | None = None,
    **arguments: Any,
) -> None:
    """Train in place, with the Trainer's own defaults where `arguments` say nothing."""
    with tempfile.TemporaryDirectory() as output:
        trainer = Trainer(
            model=model,
            args=TrainingArguments(
                output_dir=output,
                save_strategy="no",
                logging_strategy="no",
                report_to="none",
                disable_tqdm=True,
                remove_unused_columns=False,
                use_cpu=device.type == "cpu",
                **arguments,
            ),
            train_dataset=items,
            data_collator=batch,
            compute_loss_func=loss,
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
