"""MLServer with adaptive batching: a runtime of its own, named in model-settings.json."""

from mlserver import MLModel
from mlserver.codecs import NumpyCodec, StringCodec
from mlserver.types import InferenceRequest, InferenceResponse

from benchmarks.peers import model


class Nli(MLModel):
    """Inputs `premise` and `hypothesis`, output `confidence`: one row per pair."""

    async def load(self) -> bool:
        self._confidences = model.load()
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        texts = {each.name: StringCodec.decode_input(each) for each in payload.inputs}
        pairs = list(zip(texts["premise"], texts["hypothesis"], strict=True))
        found = self._confidences(pairs)[:, None]
        output = NumpyCodec.encode_output("confidence", found)
        return InferenceResponse(model_name=self.name, outputs=[output])
