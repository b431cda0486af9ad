"""The documents' study: its measures, its loss, what is held out from what, and what it says."""

import gzip
import json
import os
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from django.contrib.auth.models import User
from django.core.management import call_command
from django.core.management.base import CommandError
from django.test import Client
from django.utils import timezone
from peft import TaskType
from scipy.stats import spearmanr
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.losses import CosineSimilarityLoss
from sklearn.metrics import f1_score, roc_auc_score

from adapters_app import findings, snapshots, storage, studies
from adapters_app.findings import Findings, Shares
from adapters_app.models import Snapshot, Study, StudyFit
from adapters_app.nli import similarity, study
from adapters_app.nli.checkpoint import encoder_directory
from adapters_app.nli.embedding import BiEncoder, SentenceEncoder
from adapters_app.nli.finetuning import trainable, with_adapter
from adapters_app.nli.own_process import in_own_process
from adapters_app.nli.study import Models, Outcome, StudyConfig, StudyRow, TooLittleData
from adapters_app.nli.train import TrainingDiverged
from corrections.labels import LABELS, Label
from tests.verdicts import HINTS, accept

pytest_plugins = ("tests.serving",)

TEXTS = [
    ("No increase in falls was seen.", "The drug made falls common."),
    ("Most of the wards that were visited in spring kept the policy.", "Some kept it."),
    ("Rain fell.", "It rained before the water rose over the lower part of the city."),
]


def pairs(groups: int, *, each: int = 3) -> list[StudyRow]:
    """`each` rows of each group, all labels in turn; a word gives the label away."""
    return [
        StudyRow(
            premise=f"study {number} of the drug",
            hypothesis=f"the drug {HINTS[label]} in {number}",
            label=label,
            group=f"page {number // each}",
            category="one" if number % 2 else "other",
        )
        for number, label in ((n, LABELS[n % len(LABELS)]) for n in range(groups * each))
    ]


# --- The eight measures ---------------------------------------------------------------------------


@pytest.fixture
def embedded():
    """Unit embeddings of 80 pairs; the texts of compatible ones are nearer to one another."""
    rng = np.random.default_rng(0)
    compatible = rng.random(80) < 0.6
    first = rng.normal(size=(80, 12))
    second = rng.normal(size=(80, 12)) + 1.5 * compatible[:, None] * first
    unit = [texts / np.linalg.norm(texts, axis=1, keepdims=True) for texts in (first, second)]
    return *unit, compatible


def measured(embedded, weights=None, categories=None):
    first, second, compatible = embedded
    weights = np.ones(len(compatible)) if weights is None else weights
    return similarity.measures(first, second, compatible, weights, categories or {})


def test_the_measures_are_those_of_the_libraries(embedded):
    first, second, compatible = embedded
    cosines = (first * second).sum(axis=1)
    one, other = cosines[compatible], cosines[~compatible]
    found = measured(embedded)
    assert found["spearman"] == pytest.approx(spearmanr(cosines, compatible).statistic)
    assert found["auc"] == pytest.approx(roc_auc_score(compatible, cosines))
    assert found["margin"] == pytest.approx(one.mean() - other.mean())
    squares = one.var() * len(one) + other.var() * len(other)
    assert found["cohens_d"] == pytest.approx(found["margin"] / np.sqrt(squares / 78))
    every = [f1_score(compatible, cosines >= threshold) for threshold in cosines]
    assert found["best_f1"] == pytest.approx(max(every))
    assert f1_score(compatible, cosines >= found["threshold"]) == pytest.approx(max(every))
    assert found["false_positives"] == (other >= found["threshold"]).sum()
    assert found["false_positive_rate"] == found["false_positives"] / len(other)
    assert found["f1_of_all"] == pytest.approx(f1_score(compatible, np.ones(80)))
    assert found["purity_of_one"] == pytest.approx(compatible.mean())


def test_a_row_of_weight_two_counts_as_two(embedded):
    weights = np.random.default_rng(1).integers(1, 4, 80)
    repeated = tuple(np.repeat(part, weights, axis=0) for part in embedded)
    counts = {"n", "compatible", "false_positives", "categories", "purity"}
    weighted, doubled = measured(embedded, weights), measured(repeated)
    for name in weighted.keys() - counts:
        assert weighted[name] == pytest.approx(doubled[name]), name


def test_clusters_are_pure_where_pairs_fall_apart():
    rng = np.random.default_rng(2)
    compatible = np.arange(60) % 3 > 0
    apart = np.where(compatible, 5.0, -5.0)[:, None] + rng.normal(size=(60, 4))
    assert similarity.purity(apart, compatible, np.ones(60)) == 1
    mixed = np.where(np.arange(60) % 2, 5.0, -5.0)[:, None] + rng.normal(size=(60, 4))
    assert similarity.purity(mixed, compatible, np.ones(60)) == pytest.approx(2 / 3)
    # Four compatible pairs count as much as all others together.
    weights = np.where(np.arange(60) % 15 == 1, 14.0, 1.0)
    expected = (weights * compatible).sum() / weights.sum()
    assert similarity.purity(mixed, compatible, weights) == pytest.approx(expected)


def test_an_encoder_that_says_the_same_of_all_shows_nothing():
    same = np.tile(np.eye(4)[0], (10, 1))
    found = measured((same, same, np.arange(10) % 2 > 0))
    assert (found["spearman"], found["cohens_d"], found["auc"]) == (0, 0, 0.5)


def test_categories_with_one_kind_of_pair_are_left_out(embedded):
    compatible = embedded[2]
    half = np.arange(80) < 40
    found = measured(embedded, categories={"half": half, "only compatible": compatible})
    assert list(found["categories"]) == ["half"]
    assert found["categories"]["half"]["n"] == 40
    assert found["categories"]["half"]["auc"] == pytest.approx(
        measured(tuple(part[half] for part in embedded))["auc"]
    )


# --- The bi-encoder -------------------------------------------------------------------------------


def test_loss_and_embeddings_are_those_of_sentence_transformers():
    theirs = SentenceTransformer(str(encoder_directory()), device="cpu").eval()
    ours = SentenceEncoder()
    texts = [text for pair in TEXTS for text in pair]
    np.testing.assert_allclose(ours.embed(texts), theirs.encode(texts), atol=2e-6)

    wanted = torch.tensor([0.0, 1.0, 0.3])
    first, second = ([pair[side] for pair in TEXTS] for side in (0, 1))
    ours.model.requires_grad_(True)
    loss = BiEncoder(ours.model)(ours.tokenize(first), ours.tokenize(second), wanted)["loss"]
    expected = CosineSimilarityLoss(theirs)(
        [theirs.preprocess(first), theirs.preprocess(second)], wanted
    )
    assert loss.item() == pytest.approx(expected.item(), abs=1e-6)
    loss.backward()
    expected.backward()
    name = "encoder.layer.0.attention.self.query.weight"
    gradients = [
        dict(model.named_parameters())[name].grad for model in (ours.model, theirs[0].auto_model)
    ]
    torch.testing.assert_close(*gradients, atol=1e-6, rtol=1e-3)


def test_the_adapter_has_a_quarter_of_the_parameters_that_the_documents_say():
    adapted = with_adapter(SentenceEncoder().model, ("query", "value"), TaskType.FEATURE_EXTRACTION)
    count = sum(parameter.numel() for parameter in trainable(adapted))
    assert count == 73_728
    assert "is its size in bytes (73,728 × 4 = 294,912)" in findings.parameters_in_words(count)
    assert "size in bytes" not in findings.parameters_in_words(2048)


# --- What is held out from what -------------------------------------------------------------------

FLAT = {"f1_of_all": 0.7, "purity_of_one": 0.6, "categories": {}}


def outcome(value: float) -> Outcome:
    measures = dict.fromkeys([*findings.MEASURES["nli"], *findings.MEASURES["embedding"]], value)
    return Outcome(measures | FLAT, 2048, 8192, 1.5, 400.0, 500.0)


@pytest.fixture
def recorded(monkeypatch):
    """Every job instead of its training: fits are worth their rate, baselines 0.1.

    In `rates` is what the searches find.
    """

    record = SimpleNamespace(jobs=[], searches=[], rates=[0.2, 0.4, None])

    def instead(act, job):
        if act is study.search_rates:
            record.searches.append(job)
            return dict(zip(study.RATES[job.method], record.rates, strict=True))
        record.jobs.append(job)
        return outcome(0.1 if job.learning_rate is None else 0.2 + job.learning_rate)

    monkeypatch.setattr(study, "in_own_process", instead)
    return record


def test_groups_are_learnt_from_or_measured_on(recorded):
    rows = pairs(40)
    results = list(study.conduct(rows, Models("tiny"), StudyConfig(splits=5, seeds=2)))
    assert len(results) == StudyConfig(splits=5, seeds=2).fits == 90
    for job in recorded.jobs:
        assert {row.group for row in job.asked}.isdisjoint(row.group for row in job.learn)
        assert job.task == study.NLI or "neutral" not in {row.label for row in job.asked}
    asked = [job.asked for job in recorded.jobs if (job.task, job.method) == ("nli", "baseline")]
    assert sorted(row.hypothesis for rows in asked for row in rows) == sorted(
        row.hypothesis for row in rows
    )


def test_the_best_rate_is_chosen_on_training_groups_alone(recorded):
    results = list(study.conduct(pairs(40), Models("tiny"), StudyConfig(splits=1)))
    assert [search.method for search in recorded.searches] == ["standard", "lora"] * 2
    for search in recorded.searches:
        fit = next(
            job
            for job in recorded.jobs
            if (job.task, job.method, job.setting) == (search.task, search.method, "identical")
        )
        learnt = {row.group for row in fit.learn}
        choosing = {row.group for row in search.asked}
        assert choosing <= learnt
        assert {row.group for row in search.learn} == learnt - choosing
    best = [result.job for result in results if result.job.setting == study.BEST]
    assert {(job.method, job.learning_rate) for job in best} == {("standard", 6e-5), ("lora", 6e-4)}
    # It learns from all training groups again.
    assert all(len(job.learn) in {96, 64} for job in best)


def test_a_fit_is_not_done_twice(recorded):
    recorded.rates = [0.4, 0.2, 0.2]
    results = list(study.conduct(pairs(40), Models("tiny"), StudyConfig(splits=1)))
    assert "best" not in {job.setting for job in recorded.jobs}
    for result in results:
        if result.job.setting == study.BEST:
            assert result.job.learning_rate == study.RATES[result.job.method][0]
            assert result.outcome.measures["spearman"] == 0.2 + result.job.learning_rate


def test_pairs_that_share_a_text_with_training_are_not_measured_on(recorded):
    rows = pairs(40)
    known = [replace(row, premise="known to all") for row in rows[:30]]
    list(study.conduct(known + rows[30:], Models("tiny"), StudyConfig(splits=5)))
    for job in recorded.jobs:
        learnt = {row.premise for row in job.learn}
        assert learnt.isdisjoint(row.premise for row in job.asked)


def test_only_rows_of_known_probability_are_measured_on(recorded, on_tiny, trainer):
    accept(90, pages=30, sampling="user")
    accept(90, pages=30, start=1000, sampling_probability=0.5)
    stored = studies.conduct(by=trainer, config=StudyConfig(splits=5))
    assert (stored.data, stored.rows, stored.groups) == ("accepted verdicts", 180, 60)
    assert stored.snapshot.rows == 180
    for job in recorded.jobs:
        assert {row.weight for row in job.asked} == {2.0}
    learnt = {row.weight for job in recorded.jobs for row in job.learn}
    assert learnt == {None, 2.0}


def test_a_snapshot_pruned_before_the_first_fit_is_stored_again(
    recorded, on_tiny, trainer, monkeypatch
):
    accept(180, pages=60)
    fit = study.in_own_process

    def hours_later(act, job):
        Snapshot.objects.update(frozen_at=timezone.now() - 2 * storage.ORPHAN_AGE)
        snapshots.prune()
        return fit(act, job)

    monkeypatch.setattr(study, "in_own_process", hours_later)
    stored = studies.conduct(by=trainer, config=StudyConfig(splits=1))
    stored.refresh_from_db()
    assert len(snapshots.load(stored.snapshot)) == 180


def test_a_limit_takes_whole_groups(recorded, on_tiny, trainer, tmp_path):
    stored = studies.conduct(
        by=trainer, data=written(tmp_path, pairs(60)), limit=100, config=StudyConfig(splits=1)
    )
    assert (stored.rows, stored.groups) == (99, 33)


class CutShortError(Exception):
    pass


@pytest.mark.parametrize("rates", [[0.2, 0.4, None], [0.4, 0.2, 0.2]], ids=["other", "documents"])
@pytest.mark.parametrize("after", [1, 2, 4, 5, 6, 17])
def test_a_study_that_was_cut_short_goes_on(
    recorded, on_tiny, trainer, releaser, tmp_path, after, rates
):
    """Wherever it was: fits that are stored are not done again, nor is a search whose result is."""
    asked = {"by": trainer, "data": written(tmp_path, pairs(40))}
    config = StudyConfig(splits=1, seeds=2)
    recorded.rates = rates
    whole = findings.export(studies.conduct(**asked, config=config))
    fitted = len(recorded.jobs)
    recorded.jobs.clear()
    recorded.searches.clear()
    Study.objects.all().delete()

    heard = []

    def cut_short(result):
        heard.append(result)
        if len(heard) == after:
            raise CutShortError

    with pytest.raises(CutShortError):
        studies.conduct(**asked, config=config, on_result=cut_short)
    begun = Study.objects.get()
    assert (begun.finished, begun.fits.count()) == (False, after)
    client = page_of(releaser)
    page = client.get(f"/admin/adapters_app/study/{begun.pk}/change/").content.decode()
    assert f"{after} of 18 fits are stored" in page
    assert f"{after} of 18 fits" in client.get("/admin/adapters_app/study/").content.decode()
    told = client.get(f"/admin/adapters_app/study/{begun.pk}/json/").json()
    assert (told["finished"], len(told["fits"]), told["sentences"]) == (False, after, [])

    # Another one is not mistaken for it.
    other = studies.conduct(**asked, config=StudyConfig(splits=1))
    assert other.pk != begun.pk
    recorded.jobs = [job for job in recorded.jobs if job.config == config]
    recorded.searches = [job for job in recorded.searches if job.config == config]

    stored = studies.conduct(**asked, config=config)
    assert (stored.pk, stored.finished, stored.fits.count()) == (begun.pk, True, 18)
    assert len({job.key for job in recorded.jobs}) == len(recorded.jobs) == fitted
    # A search is known by the first fit at the rate it chose.
    assert len(recorded.searches) == 4
    again = findings.export(stored)
    timed = {"study", "seconds", "created_at"}
    assert {k: v for k, v in again.items() if k not in timed} == {
        k: v for k, v in whole.items() if k not in timed
    }


def test_who_interrupts_the_command_is_told_that_it_can_go_on(
    recorded, on_tiny, trainer, tmp_path, monkeypatch
):
    before = study.in_own_process

    def interrupted(act, job):
        if len(recorded.jobs) == 3:
            raise KeyboardInterrupt
        return before(act, job)

    monkeypatch.setattr(study, "in_own_process", interrupted)
    data = written(tmp_path, pairs(40))
    with pytest.raises(CommandError, match="the same command goes on"):
        call_command("lora_study", data=data, splits=1, as_user="tina")
    assert Study.objects.get().fits.count() == 3
    monkeypatch.setattr(study, "in_own_process", before)
    call_command("lora_study", data=data, splits=1, as_user="tina")
    assert Study.objects.get().finished


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        (pairs(4), "as many groups and as many rows of each label"),
        ([replace(row, label=Label.REFUTES) for row in pairs(40)], "rows of each label"),
        ([replace(row, premise="known to all") for row in pairs(40)], "share too many texts"),
        ([replace(row, weight=None) for row in pairs(40)], "to measure on"),
    ],
)
def test_too_little_data_is_said_before_any_fit(recorded, rows, said):
    with pytest.raises(TooLittleData, match=said):
        list(study.conduct(rows, Models("tiny"), StudyConfig()))
    assert recorded.jobs == []


def test_a_rate_that_diverges_is_not_chosen(monkeypatch):
    def carry_out(job):
        if job.learning_rate > 1e-4:
            raise TrainingDiverged
        return outcome(job.learning_rate)

    monkeypatch.setattr(study, "carry_out", carry_out)
    job = study.Job(Models("tiny"), StudyConfig(), "nli", "standard", 0, None, [], [])
    search = study.search_rates(job)
    assert list(search.values()) == [2e-5, 6e-5, None]
    assert study.best_rate(search) == 6e-5
    with pytest.raises(TrainingDiverged):
        study.best_rate({2e-4: None})


# --- A process of its own -------------------------------------------------------------------------


def test_work_is_done_elsewhere_and_its_end_is_told():
    assert in_own_process(os.readlink, "/proc/self") not in {"", str(os.getpid())}
    with pytest.raises(ChildProcessError, match="exit status 3"):
        in_own_process(os._exit, 3)


# --- The command ----------------------------------------------------------------------------------


def written(directory: Path, rows: list[StudyRow]) -> Path:
    path = directory / "pairs.jsonl.gz"
    with gzip.open(path, "wt", encoding="utf-8") as file:
        for row in rows:
            stated = {
                "premise": row.premise,
                "hypothesis": row.hypothesis,
                "label": row.label.value,
                "source": row.category,
                "group": row.group,
            }
            file.write(json.dumps(stated) + "\n")
    return path


def test_the_command_trains_both_ways_and_stores_every_fit(
    on_tiny, tiny, tiny_model, trainer, tmp_path, capsys
):
    data = written(tmp_path, pairs(20))
    call_command(
        "lora_study",
        data=data,
        splits=1,
        encoder=Path(tiny),
        as_user="tina",
        json=True,
    )
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    stored = Study.objects.get()
    assert (stored.data, stored.rows, stored.groups) == ("pairs.jsonl.gz", 60, 20)
    assert stored.base_fingerprint == tiny_model.fingerprint
    assert stored.created_by == trainer
    assert {"ok": True} | json.loads(json.dumps(findings.export(stored))) == told
    assert len(told["fits"]) == StudyConfig(splits=1).fits == 10

    fits = {(fit.task, fit.method, fit.setting): fit for fit in stored.fits.all()}
    # r (inputs + outputs) for query and value of two layers, and the classifier's head.
    assert fits["embedding", "lora", "best"].trainable_parameters == 8 * 64 * 4
    assert fits["nli", "lora", "identical"].trainable_parameters == 8 * 64 * 4 + 3 * 33
    every = sum(parameter.numel() for parameter in tiny_model.model.parameters())
    full = fits["nli", "standard", "identical"]
    assert (full.trainable_parameters, full.artifact_bytes) == (every, 4 * every)
    assert fits["nli", "baseline", ""].trainable_parameters == 0
    assert (full.learning_rate, full.learnt, full.measured) == (2e-5, 48, 12)
    assert full.peak_mb >= full.idle_mb > 0
    for method in ("standard", "lora"):
        best = fits["embedding", method, "best"]
        search = {row["learning_rate"]: row["value"] for row in best.search}
        assert tuple(search) == study.RATES[method]
        assert search[best.learning_rate] == max(search.values())
        assert best.measures != fits["embedding", "baseline", ""].measures
    assert set(best.measures["categories"]) >= {"one", "other"}


def test_both_tasks_train_in_place_of_the_baseline(tiny, tiny_model):
    """Twice the same is the same, and what was trained answers, not the base."""
    rows = pairs(12)
    config, models = StudyConfig(epochs=10, warmup_steps=5), Models(tiny, encoder=Path(tiny))
    job = study.Job(models, config, "nli", "lora", 0, 2e-2, rows, rows)
    for task in study.TASKS:
        asked = [row for row in rows if task == study.NLI or row.label in study.SIMILARITY]
        fit = replace(job, task=task, learn=asked, asked=asked)
        once, again = study.carry_out(fit), study.carry_out(fit)
        untrained = study.carry_out(replace(fit, method="baseline"))
        assert once.measures == again.measures
        measure = study.CHOICE[task]
        assert once.measures[measure] > untrained.measures[measure] + 0.2


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"data": Path("missing.jsonl")}, "there is no file of labelled pairs"),
        ({"data": Path("tests")}, "there is no file of labelled pairs"),
        ({}, "as many groups and as many rows"),
        ({"splits": 0}, "are at least 1"),
        ({"as_user": "curt"}, "lacks the permission"),
    ],
)
def test_what_cannot_be_studied_is_refused(on_tiny, curator, asked, said):
    with pytest.raises(CommandError, match=said):
        call_command("lora_study", **asked)
    assert not Study.objects.exists()


def test_a_row_that_cannot_be_read_is_named(on_tiny, db, tmp_path):
    path = tmp_path / "pairs.jsonl"
    path.write_text('{"premise": "a", "hypothesis": "b", "label": "maybe"}\n')
    with pytest.raises(CommandError, match=r"pairs\.jsonl line 1: .*maybe"):
        call_command("lora_study", data=path)


# --- What is said of it ---------------------------------------------------------------------------


def test_the_documents_share_of_the_gain_follows_from_their_table():
    documents = findings.DOCUMENTS_SHARES
    assert documents.of_standard == pytest.approx(findings.DOCUMENTS_SHARE, abs=1e-3)
    assert documents.of_gain == pytest.approx(0.9757, abs=1e-4)


@pytest.mark.parametrize(
    ("identical", "best", "said"),
    [
        (Shares(0.3, 0.4, 0.35), Shares(0.3, 0.4, 0.4), "alone has 75.0 % of standard's Spearman"),
        (Shares(0.3, 0.4, 0.35), Shares(0.3, 0.4, 0.38), "lacks of the gain (50.0 %) is in part"),
        (Shares(0.3, 0.4, 0.395), Shares(0.3, 0.4, 0.4), "is what LoRA itself was worth."),
        (
            Shares(0.3, 0.25, 0.29),
            Shares(0.3, 0.4, 0.4),
            "gained nothing certain over the baseline",
        ),
        (Shares(0.3, 0.4, 0.39, 0.06), Shares(0.3, 0.4, 0.4), "gained nothing certain"),
        (Shares(-0.2, 0.4, 0.3), Shares(-0.2, 0.4, 0.3), "here too the baseline has none"),
        (Shares(0.3, 0.4, 0.35), Shares(0.3, 0.2, 0.4), "the share of Spearman flatters."),
    ],
)
def test_the_difference_is_explained_in_one_sentence(identical, best, said):
    sentence = findings.explanation(identical, best)
    assert said in sentence
    assert sentence.endswith(".")
    assert sentence.count(". ") == 0


def test_no_share_is_told_of_no_gain():
    said = findings.shares_in_words(Shares(0.3, 0.25, 0.29), Shares(0.3, 0.4, 0.38))
    assert "116.0 % of standard" in said
    assert "no telling how much of its gain" in said
    assert "95.0 % and 80.0 %. The documents: 96.9 % and 97.6 %." in said


# --- Its page -------------------------------------------------------------------------------------


@pytest.fixture
def stored(recorded, on_tiny, trainer, tmp_path) -> Study:
    """A study of two splits: LoRA has half of what standard gained, and all at its best rate."""
    rows = written(tmp_path, pairs(40))
    made = studies.conduct(by=trainer, data=rows, config=StudyConfig(splits=2, seeds=1))
    values = {
        ("baseline", ""): (0.25, 0.35),
        ("standard", "identical"): (0.45, 0.55),
        ("lora", "identical"): (0.35, 0.45),
        ("standard", "best"): (0.6, 0.6),
        ("lora", "best"): (0.55, 0.65),
    }
    for fit in made.fits.filter(task="embedding"):
        fit.measures["spearman"] = values[fit.method, fit.setting][fit.split]
        fit.measures["categories"] = {"one": {"n": 8, "auc": 0.7, "margin": 0.1}}
        fit.save()
    return made


def page_of(user: User) -> Client:
    client = Client()
    client.force_login(user)
    return client


def test_means_spreads_and_shares_come_from_the_rows(stored):
    task = Findings(stored).embedding
    lora = task.spread("lora", "identical", "spearman")
    assert (lora.mean, lora.deviation) == (pytest.approx(0.4), pytest.approx(0.1 / 2**0.5))
    assert task.shares("identical").of_gain == pytest.approx(0.5)
    assert task.shares("best").of_gain == pytest.approx(1.0)
    assert task.best_difference.values == [pytest.approx(-0.05), pytest.approx(0.05)]
    assert [(rate, found.values) for rate, found in task.rates("lora")] == [
        (2e-4, [0.2, 0.2]),
        (6e-4, [0.4, 0.4]),
        (2e-3, []),
    ]
    assert not task.at_the_edge
    StudyFit.objects.filter(method="lora", setting="best").update(learning_rate=2e-3)
    assert Findings(Study.objects.get()).embedding.at_the_edge


def test_the_page_says_it_beside_the_documents(stored, releaser):
    client = page_of(releaser)
    url = f"/admin/adapters_app/study/{stored.pk}/change/"
    response = client.get(url)
    page = " ".join(response.content.decode().split())
    assert "80.0 % of standard fine-tuning&#x27;s Spearman and 50.0 % of its gain" in page
    assert "alone has 60.0 % of standard&#x27;s Spearman" in page
    assert '<th scope="row">Spearman correlation</th><td class="number">0.300 ± 0.071</td>' in page
    assert '<td class="number breaks">−0.219&nbsp;/ 0.853&nbsp;/ 0.827</td>' in page
    assert '<td class="number">0.0006</td>' in page
    for figures in response.context["figures"].values():
        assert figures["arms"]["data"]
        assert figures["rates"]["data"]
    listed = client.get("/admin/adapters_app/study/").content.decode()
    assert "80.0 %" in listed
    assert "50.0 %" in listed


def test_the_download_is_the_whole_study(stored, releaser, curator):
    url = f"/admin/adapters_app/study/{stored.pk}/json/"
    response = page_of(releaser).get(url)
    assert response["Content-Disposition"] == f'attachment; filename="lora-study-{stored.pk}.json"'
    found = response.json()
    assert found == json.loads(json.dumps(findings.export(stored)))
    assert found["embedding"]["shares"]["identical"]["of_gain"] == pytest.approx(0.5)
    assert len(found["fits"]) == stored.fits.count() == 20
    stranger = page_of(curator)
    for page in (
        url,
        f"/admin/adapters_app/study/{stored.pk}/change/",
        "/admin/adapters_app/study/",
    ):
        assert stranger.get(page).status_code == 403
    assert page_of(releaser).get("/admin/adapters_app/study/999/json/").status_code == 404
