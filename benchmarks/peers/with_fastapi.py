"""The upstream's own style: FastAPI and Hugging Face's pipeline, pairs one by one.

`uvicorn benchmarks.peers.with_fastapi:app`. Not our engine: that is the point.
"""

import os
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel
from transformers import pipeline

from benchmarks.peers.model import HOME
from benchmarks.serving import MERGED

app = FastAPI()
classify = pipeline("text-classification", model=str(Path(os.environ[HOME]) / MERGED), device="cpu")


class Pair(BaseModel):
    pair_id: str = "unknown"
    premise: str
    nli_hypothesis: str


class NliRequest(BaseModel):
    pairs: list[Pair]


@app.post("/nli")
async def nli(request: NliRequest) -> dict[str, Any]:
    results = []
    for pair in request.pairs:
        found: Any = classify({"text": pair.premise, "text_pair": pair.nli_hypothesis})
        results.append(
            {"pair_id": pair.pair_id, "label": found["label"], "confidence": found["score"]}
        )
    return {"ok": True, "results": results, "error": None}
