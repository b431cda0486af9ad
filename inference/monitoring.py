"""What /metrics counts in this process; `lyra_site.health` adds what the database knows."""

from prometheus_client import Counter, Histogram

PREDICTIONS = Counter(
    "lyra_predictions",
    "Pairs answered, by the adapter that answered and label",
    ["adapter", "label"],
)
REFUSED = Counter("lyra_predictions_refused", "Requests that could not be answered", ["reason"])
SECONDS = Histogram("lyra_prediction_seconds", "Seconds from request to logits, waiting included")
PASS_PAIRS = Histogram(
    "lyra_forward_pass_pairs",
    "Pairs per forward pass",
    buckets=(1, 2, 4, 8, 16, 32, 64, 128, 256),
)
