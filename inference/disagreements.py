"""Lets the newest candidate answer what is held to be compared; see `corrections.audits`.

Runs outside of the servers, a bounded batch every few minutes. "Says otherwise" compares what the
caller was told with the candidate's calibrated label, as it would be told.
"""

from adapters_app import registry
from corrections import audits
from corrections.models import AuditSample
from inference import engine

BATCH = 64  # settled together: what a process that is killed has answered stays settled
# A share of 1 could send any traffic here; more than this in one go waits for the next time, or
# finds the queue full and is not kept.
AT_A_TIME = 512


def compare(at_a_time: int = AT_A_TIME) -> tuple[int, int]:
    """Compare the oldest samples with the newest candidate: how many, and how many disagree.

    Without a candidate audits are released. If the candidate cannot answer they are as well, since
    nobody knows when it will.

    Raises:
        engine.EngineUnavailable: the candidate cannot answer.
    """
    candidate = registry.newest_candidate()
    if candidate is None:
        audits.release()
        return 0, 0
    held = list(AuditSample.objects.to_compare().only("premise", "hypothesis")[:at_a_time])
    disagree = 0
    for start in range(0, len(held), BATCH):
        samples = held[start : start + BATCH]
        pairs = [(sample.premise, sample.hypothesis) for sample in samples]
        try:
            said = engine.predict_with(candidate.name, pairs).results
        except engine.EngineUnavailable:
            audits.release()
            raise
        labels = {sample.pk: result.label for sample, result in zip(samples, said, strict=True)}
        disagree += audits.settle(labels, candidate=candidate.number)
    return len(held), disagree
