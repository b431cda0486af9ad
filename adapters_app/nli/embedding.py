"""Sentence embeddings by all-MiniLM-L6-v2: mean of the token vectors, scaled to length 1."""

from collections.abc import Sequence

import numpy as np
import torch
from torch.nn.functional import normalize
from transformers import AutoModel, AutoTokenizer

from adapters_app.nli.checkpoint import encoder_directory

WINDOW = 256  # tokens; the model's own sentence_bert_config.json


class SentenceEncoder:
    """Safe to use from several threads.

    Raises:
        BaseModelError: the package that carries the encoder is not installed.
    """

    def __init__(self, *, device: str = "cpu") -> None:
        directory = encoder_directory()
        # `_tokenize` pads to the longest of a batch by itself; a tokenizer told to pad and cut
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
        self._model = model.eval().requires_grad_(False).to(device)

    def embed(self, texts: Sequence[str], *, batch_size: int = 8) -> np.ndarray:
        """Embeddings (n, 384) float32 of n texts, in order, each of length 1."""
        out = np.empty((len(texts), self._model.config.hidden_size), dtype=np.float32)
        for start in range(0, len(texts), batch_size):
            batch = self._tokenize(texts[start : start + batch_size])
            out[start : start + batch_size] = self._forward(batch)
        return out

    def _tokenize(self, texts: Sequence[str]) -> dict[str, torch.Tensor]:
        rows = [encoding.ids for encoding in self._backend.encode_batch_fast(list(texts))]
        length = max(len(row) for row in rows)
        ids = torch.full((len(rows), length), int(self._tokenizer.pad_token_id))
        mask = torch.zeros((len(rows), length), dtype=torch.long)
        for i, row in enumerate(rows):
            ids[i, : len(row)] = torch.tensor(row)
            mask[i, : len(row)] = 1
        return {"input_ids": ids, "attention_mask": mask}

    @torch.inference_mode()
    def _forward(self, batch: dict[str, torch.Tensor]) -> np.ndarray:
        on_device = {key: value.to(self._model.device) for key, value in batch.items()}
        tokens = self._model(**on_device).last_hidden_state
        mask = on_device["attention_mask"].unsqueeze(-1).to(tokens.dtype)
        mean = (tokens * mask).sum(dim=1) / mask.sum(dim=1)
        return normalize(mean, dim=1).cpu().numpy()
