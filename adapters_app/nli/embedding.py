"""Sentence embeddings by all-MiniLM-L6-v2: mean of the token vectors, scaled to length 1."""

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional
from transformers import AutoModel, AutoTokenizer, PreTrainedModel

from adapters_app.nli.checkpoint import encoder_directory

WINDOW = 256  # tokens; the model's own sentence_bert_config.json


class SentenceEncoder:
    """Safe to use from several threads.

    Raises:
        BaseModelError: the package that carries the encoder is not installed.
    """

    def __init__(self, *, device: str = "cpu", directory: Path | None = None) -> None:
        """`directory` holds another encoder than the installed package's."""
        directory = directory or encoder_directory()
        # `tokenize` pads to the longest of a batch by itself; a tokenizer told to pad and cut
        # writes that into shared state, which two threads would race on.
        self._tokenizer = AutoTokenizer.from_pretrained(directory, local_files_only=True)
        backend = self._tokenizer.backend_tokenizer
        backend.no_padding()
        backend.enable_truncation(WINDOW)
        backend.encode_special_tokens = True  # “[SEP]” in a text is text
        self._backend = backend
        model = AutoModel.from_pretrained(
            directory, local_files_only=True, dtype=torch.float32, use_safetensors=True
        )
        self.model: PreTrainedModel = model.eval().requires_grad_(False).to(device)

    @property
    def device(self) -> torch.device:
        return self.model.device

    def with_model(self, model: PreTrainedModel) -> "SentenceEncoder":
        """The same tokenizer before another model of this shape."""
        twin = copy.copy(self)
        twin.model = model
        return twin

    def embed(self, texts: Sequence[str], *, batch_size: int = 8) -> np.ndarray:
        """Embeddings (n, 384) float32 of n texts, in order, each of length 1."""
        out = np.empty((len(texts), self.model.config.hidden_size), dtype=np.float32)
        for start in range(0, len(texts), batch_size):
            batch = self.tokenize(texts[start : start + batch_size])
            out[start : start + batch_size] = self._forward(batch)
        return out

    def tokenize(self, texts: Sequence[str]) -> dict[str, torch.Tensor]:
        """Ids and attention mask, (n, longest) int64."""
        rows = [encoding.ids for encoding in self._backend.encode_batch_fast(list(texts))]
        length = max(len(row) for row in rows)
        ids = torch.full((len(rows), length), int(self._tokenizer.pad_token_id))
        mask = torch.zeros((len(rows), length), dtype=torch.long)
        for i, row in enumerate(rows):
            ids[i, : len(row)] = torch.tensor(row)
            mask[i, : len(row)] = 1
        return {"input_ids": ids, "attention_mask": mask}

    @torch.inference_mode()
    def _forward(self, batch: Mapping[str, torch.Tensor]) -> np.ndarray:
        on_device = {key: value.to(self.device) for key, value in batch.items()}
        return functional.normalize(token_mean(self.model, on_device), dim=1).cpu().numpy()


class BiEncoder(nn.Module):
    """Both texts through one encoder, in training: their cosine is to be what was asked for.

    The loss is the mean squared difference (CosineSimilarityLoss; Reimers & Gurevych 2019, §3).
    """

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(
        self,
        first: Mapping[str, torch.Tensor],
        second: Mapping[str, torch.Tensor],
        labels: torch.Tensor,
    ) -> dict[str, torch.Tensor]:
        """Loss, and cosines (n,), of n tokenised pairs; `labels` (n,) are the cosines wanted."""
        cosines = functional.cosine_similarity(
            token_mean(self.encoder, first), token_mean(self.encoder, second)
        )
        return {"loss": functional.mse_loss(cosines, labels), "cosines": cosines}


def token_mean(model: nn.Module, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """(n, hidden): mean of each text's token vectors in the last layer."""
    tokens = model(**batch).last_hidden_state.float()  # cosines need more digits than bf16 has
    mask = batch["attention_mask"].unsqueeze(-1).to(tokens.dtype)
    mean: torch.Tensor = (tokens * mask).sum(dim=1) / mask.sum(dim=1)
    return mean
