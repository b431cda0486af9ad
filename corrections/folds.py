"""Which texts belong together, and the permanent fold of each group: the unit no split may cut.

Near-duplicates are premises whose character 5-grams have a Jaccard similarity of at least 0.8
after normalisation. They are found by MinHash with locality-sensitive hashing (Broder 1997;
Leskovec, Rajaraman, Ullman, Mining of Massive Datasets, ch. 3): 14 bands of 5 rows, so a pair at
0.8 is a candidate with probability 1 − (1 − 0.8⁵)¹⁴ = 0.996; candidates are then compared exactly.

Searching is slow and happens outside any transaction (`Survey`); handing out folds happens inside
one, under the lock on the Fold rows (`Survey.place`), and is refused if the survey is outdated.
"""

import hashlib
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import TypeVar

import numpy as np
from django.db import connection
from django.db.models import F, Max
from numpy.typing import NDArray

from corrections.labels import LABELS, Label
from corrections.models import FOLDS, Fold, JoinedPage, MinHashBand, PremiseText, SourceGroup

SHINGLE = 5  # characters
BANDS, ROWS = 14, 5
NEAR = 0.8  # Jaccard similarity from which two premises are near-duplicates

# A bucket full of boilerplate must not cost more rows or comparisons than this; any member of a
# cluster will do, since all of its members already share a fold.
MAX_CANDIDATES = 64
MAX_SHARED_BUCKET = 16
MAX_ID = 2**63 - 1
IN_CHUNK = 900  # SQLite takes at most 999 parameters in old builds

# A quarantine's reason for those who may not know whose text it is.
NAMELESS = (
    "The premise nearly repeats a text of another source: used, it would be trained on and judged "
    "at once."
)

T = TypeVar("T")


class SurveyOutdatedError(Exception):
    """A premise or group was added after the survey: `update()` it outside the transaction."""


# --- Texts ----------------------------------------------------------------------------------------


def normalise(text: str) -> str:
    """NFKC, case-folded, white space collapsed: what counts as the same text."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    return " ".join(unicodedata.normalize("NFKC", folded).split())


def premise_digest(normalised: str) -> str:
    """SHA-256 of a normalised premise, 64 hex digits."""
    return hashlib.sha256(normalised.encode()).hexdigest()


def pair_digest(premise: str, hypothesis: str) -> str:
    """SHA-256 of the normalised pair, 64 hex digits; separated by NUL, which no text may hold."""
    return hashlib.sha256(f"{normalise(premise)}\0{normalise(hypothesis)}".encode()).hexdigest()


def shingles(normalised: str) -> NDArray[np.uint64]:
    """Sorted distinct 64-bit hashes of the character 5-grams, at least one, shape (n,)."""
    points = np.frombuffer(normalised.encode("utf-32-le"), dtype="<u4").astype(np.uint64)
    if len(points) < SHINGLE:
        points = np.pad(points, (0, SHINGLE - len(points)))
    count = len(points) - SHINGLE + 1
    hashed = np.zeros(count, dtype=np.uint64)
    for offset in range(SHINGLE):
        hashed = _mix(hashed ^ points[offset : offset + count])
    return np.unique(hashed)


def jaccard(a: NDArray[np.uint64], b: NDArray[np.uint64]) -> float:
    """|a ∩ b| / |a ∪ b| of two sets of shingles (sorted, distinct)."""
    shared = len(np.intersect1d(a, b, assume_unique=True))
    return shared / (len(a) + len(b) - shared)


def buckets(grams: NDArray[np.uint64]) -> list[int]:
    """The 14 signed 64-bit LSH buckets of a set of shingles; which band is part of each."""
    signature = np.full(BANDS * ROWS, np.iinfo(np.uint64).max, dtype=np.uint64)
    for start in range(0, len(grams), 4096):  # bounds memory on huge texts
        part = grams[start : start + 4096, None] * _MULTIPLIERS
        part += _OFFSETS
        np.minimum(signature, part.min(axis=0), out=signature)
    signature >>= np.uint64(32)  # the low bits of a multiply-shift hash are weak
    bands = np.arange(1, BANDS + 1, dtype=np.uint64)
    for row in signature.reshape(BANDS, ROWS).T:
        bands = _mix(bands ^ row)
    return bands.view(np.int64).tolist()


def _mix(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The splitmix64 finaliser (Steele et al. 2014): a bijection that spreads every bit."""
    values = values + np.uint64(0x9E3779B97F4A7C15)
    values ^= values >> np.uint64(30)
    values *= np.uint64(0xBF58476D1CE4E5B9)
    values ^= values >> np.uint64(27)
    values *= np.uint64(0x94D049BB133111EB)
    values ^= values >> np.uint64(31)
    return values


# Stored buckets depend on these: derived from a counter, not from a random generator whose stream
# another release of numpy may change.
_COUNTERS = _mix(np.arange(2 * BANDS * ROWS, dtype=np.uint64))
_MULTIPLIERS = _COUNTERS[: BANDS * ROWS] | np.uint64(1)
_OFFSETS = _COUNTERS[BANDS * ROWS :]


# --- Looking up one text --------------------------------------------------------------------------


def near_duplicate(text: str) -> PremiseText | None:
    """The known premise most like `text`, itself included, or None if none reaches 0.8.

    Of a bucket with more than MAX_CANDIDATES premises the first ones stand for the others.
    """
    normalised = normalise(text)
    known = PremiseText.objects.filter(digest=premise_digest(normalised)).first()
    if known:
        return known
    grams = shingles(normalised)
    shared = Counter(premise_id for _, premise_id in first_in(buckets(grams)))
    likely = sorted(shared, key=lambda pk: (-shared[pk], pk))[:MAX_CANDIDATES]
    candidates = PremiseText.objects.filter(pk__in=likely)
    scored = [(jaccard(grams, shingles(row.text)), -row.pk, row) for row in candidates]
    best = max(scored, default=None)
    return best[2] if best and best[0] >= NEAR else None


def first_in(buckets: Sequence[int]) -> list[tuple[int, int]]:
    """(bucket, premise id) of the first MAX_CANDIDATES known premises in each of IN_CHUNK buckets.

    By premise id. However full a bucket is, no more of it is read: the index leads to its last
    candidate, where numbering its rows with a window function would go through all of them.
    """
    table = connection.ops.quote_name(MinHashBand._meta.db_table)
    wanted = ", ".join(["(%s)"] * len(buckets))
    statement = f"""
        WITH wanted (bucket) AS (VALUES {wanted}), upto (bucket, last) AS (
            SELECT bucket, COALESCE((
                SELECT premise_id FROM {table} AS crowd WHERE crowd.bucket = wanted.bucket
                ORDER BY premise_id LIMIT 1 OFFSET %s
            ), %s) FROM wanted
        )
        SELECT band.bucket, band.premise_id FROM upto JOIN {table} AS band
        ON band.bucket = upto.bucket AND band.premise_id <= upto.last ORDER BY 2, 1
    """  # noqa: S608
    with connection.cursor() as cursor:
        cursor.execute(statement, [*buckets, MAX_CANDIDATES - 1, MAX_ID])
        return cursor.fetchall()


# --- Surveying many, outside any transaction ------------------------------------------------------


@dataclass(frozen=True)
class Source:
    """Where one row comes from: all that placing it needs to know of it.

    `group` and `fold` are those of an export; they hold where the group is not known here yet.
    """

    premise: str
    page_id: str
    label: Label
    group: str = ""
    fold: int | None = None


@dataclass(frozen=True)
class Placement:
    """The group of a row and, where it bridges groups of different folds, why it cannot be used."""

    group: SourceGroup
    quarantine: str = ""


@dataclass(eq=False)
class _Premise:
    """A distinct premise of the survey; `group` once it is known or registered."""

    text: str
    digest: str
    buckets: list[int] = field(default_factory=list)
    group: SourceGroup | None = None
    near_known: dict[int, float] = field(default_factory=dict)  # group id → similarity
    near_here: dict[str, float] = field(default_factory=dict)  # digest → similarity


class Survey:
    """Rows to place, with the known groups, premises and near-duplicates that concern them.

    Made outside a transaction; `place()` is called inside one, after `lock_folds()`.
    """

    def __init__(
        self, sources: Iterable[Source], *, progress: Callable[[int, int], None] | None = None
    ) -> None:
        self.sources = list(sources)
        normalised = [normalise(source.premise) for source in self.sources]
        digests = {text: premise_digest(text) for text in dict.fromkeys(normalised)}
        self.digests = [digests[text] for text in normalised]
        self.premises = {digest: _Premise(text, digest) for text, digest in digests.items()}
        self.groups: dict[str, SourceGroup] = {}
        self.near_groups: dict[int, SourceGroup] = {}
        self._seen = _Seen(0, 0, 0)
        self._owners: dict[int, list[_Premise]] = defaultdict(list)
        self._load_known()
        unknown = [premise for premise in self.premises.values() if premise.group is None]
        for done, premise in enumerate(unknown, start=1):
            self._compare_within(premise)
            if progress:
                progress(done, len(unknown))
        self._compare_known()

    def update(self) -> None:
        """Take in what was added to the database since; cheap where that is little."""
        before = self._seen
        self._load_known()
        added = MinHashBand.objects.filter(premise_id__gt=before.premise)
        self._match(added.values_list("bucket", "premise_id").iterator(chunk_size=10_000))

    def place(self, folds: Sequence[Fold], rows: Sequence[int]) -> dict[int, Placement]:
        """Placements of the sources numbered `rows`; new groups, pages and premises are written.

        `folds` are the locked rows of `lock_folds()`; their label counts are brought up to date.
        Raises SurveyOutdatedError if anything was added since the survey.
        """
        if _Seen.now() != self._seen:
            raise SurveyOutdatedError
        placing = _Placing(self, folds, rows)
        placing.write()
        moved = ((p.group.fold, self.sources[n].label, 1) for n, p in placing.placements.items())
        recount(folds, moved)
        return placing.placements

    def preview(self, rows: Sequence[int]) -> dict[int, Placement]:
        """What `place` would answer now; writes nothing and needs no lock."""
        stored = Fold.objects.in_bulk()
        folds = [stored.get(number) or Fold(number=number) for number in range(FOLDS)]
        return _Placing(self, folds, rows).placements

    def _load_known(self) -> None:
        self._seen = _Seen.now()
        for chunk in chunks(self.premises, IN_CHUNK):
            for row in PremiseText.objects.filter(digest__in=chunk).select_related("group"):
                self.premises[row.digest].group = row.group
        keys = {s.group for s in self.sources if s.group}
        keys.update(map(_own_key, self.sources, self.digests))
        for chunk in chunks(keys, IN_CHUNK):
            for group in SourceGroup.objects.filter(key__in=chunk):
                self.groups[group.key] = group
            for page in JoinedPage.objects.filter(key__in=chunk).select_related("group"):
                self.groups[page.key] = page.group

    def _compare_within(self, premise: _Premise) -> None:
        """Find the near-duplicates of `premise` among the sources before it."""
        grams = shingles(premise.text)
        premise.buckets = buckets(grams)
        shared: Counter[str] = Counter()
        for bucket in premise.buckets:
            owners = self._owners[bucket]
            shared.update(owner.digest for owner in owners[:MAX_SHARED_BUCKET])
            owners.append(premise)
        for digest, _ in shared.most_common(MAX_CANDIDATES):
            similarity = jaccard(grams, shingles(self.premises[digest].text))
            if similarity >= NEAR:
                premise.near_here[digest] = similarity

    def _compare_known(self) -> None:
        if not self._seen.premise:
            return
        for chunk in chunks(self._owners, IN_CHUNK):
            self._match(first_in(chunk))

    def _match(self, bands: Iterable[tuple[int, int]]) -> None:
        """Compare exactly the known premises that share a bucket with one of ours."""
        pairs: dict[int, set[str]] = defaultdict(set)
        crowd: Counter[int] = Counter()
        for bucket, premise_id in bands:
            if bucket in self._owners and crowd[bucket] < MAX_CANDIDATES:
                crowd[bucket] += 1
                pairs[premise_id].update(owner.digest for owner in self._owners[bucket])
        for chunk in chunks(sorted(pairs), IN_CHUNK):
            known = PremiseText.objects.filter(pk__in=chunk).select_related("group")
            for row in known.order_by("pk"):
                self._compare_with(row, pairs[row.pk])

    def _compare_with(self, known: PremiseText, digests: Iterable[str]) -> None:
        near = (self.premises[digest] for digest in digests)
        unmatched = [premise for premise in near if known.group_id not in premise.near_known]
        if not unmatched:
            return
        grams = shingles(known.text)
        for premise in unmatched:
            similarity = jaccard(grams, shingles(premise.text))
            if similarity >= NEAR:
                premise.near_known[known.group_id] = similarity
                self.near_groups[known.group_id] = known.group


@dataclass(frozen=True)
class _Seen:
    """Highest ids: premises, groups and pages are only added, and only under the fold lock."""

    premise: int
    group: int
    page: int

    @classmethod
    def now(cls) -> "_Seen":
        tables = (PremiseText, SourceGroup, JoinedPage)
        return cls(*(t.objects.aggregate(last=Max("pk"))["last"] or 0 for t in tables))


# --- Placing, inside a transaction ----------------------------------------------------------------


def lock_folds() -> list[Fold]:
    """The five Fold rows, locked until the transaction ends: one placement at a time."""
    folds = list(Fold.objects.select_for_update().order_by("number"))
    if len(folds) < FOLDS:
        Fold.objects.bulk_create((Fold(number=n) for n in range(FOLDS)), ignore_conflicts=True)
        folds = list(Fold.objects.select_for_update().order_by("number"))
    return folds


def recount(folds: Iterable[Fold], changes: Iterable[tuple[int, str, int]]) -> None:
    """Add `changes` (fold, label, difference) to the running label counts of locked folds."""
    totals: Counter[tuple[int, str]] = Counter()
    for number, label, difference in changes:
        totals[number, label] += difference
    for fold in folds:
        moved = {lb.value: F(lb.value) + totals[fold.number, lb] for lb in LABELS}
        Fold.objects.filter(pk=fold.pk).update(**moved)


class _Placing:
    """One run of `Survey.place`: rows in order, so one at a time and in bulk end up the same."""

    def __init__(self, surveyed: Survey, folds: Iterable[Fold], rows: Sequence[int]) -> None:
        self.counts = np.array([[getattr(fold, label) for label in LABELS] for fold in folds])
        self.weights: dict[str, NDArray[np.int64]] = defaultdict(
            lambda: np.zeros(len(LABELS), dtype=np.int64)
        )
        for row in rows:
            source = surveyed.sources[row]
            self.weights[_own_key(source, surveyed.digests[row])][source.label.column] += 1
        self.weighed: set[str] = set()  # keys whose rows of this run are in `counts` already
        self.new_groups: list[SourceGroup] = []
        self.new_pages: list[JoinedPage] = []
        self.new_premises: list[_Premise] = []
        self.groups = dict(surveyed.groups)
        self.near_groups = surveyed.near_groups
        self.placed = {p.digest: p.group for p in surveyed.premises.values() if p.group}
        self.placements = {
            row: self._place(surveyed.sources[row], surveyed.premises[surveyed.digests[row]])
            for row in rows
        }

    def _place(self, source: Source, premise: _Premise) -> Placement:
        own = _own_key(source, premise.digest)
        neighbours = self._neighbours(premise)
        group = self.groups.get(own) or self.groups.get(source.group)
        if group is None:
            group = neighbours[0] if neighbours else self._new_group(source, own)
        if own not in self.weighed:
            self.counts[group.fold, source.label.column] += 1
        if source.page_id and own not in self.groups:
            self.groups[own] = group
            self.new_pages.append(JoinedPage(key=own, group=group))
        strangers = [other for other in neighbours if other.fold != group.fold]
        if strangers:
            return Placement(group, _bridges(group, strangers[0]))
        if premise.digest not in self.placed:
            # The premise of a quarantined row is not registered: it belongs nowhere.
            self.placed[premise.digest] = group
            self.new_premises.append(premise)
        return Placement(group)

    def _neighbours(self, premise: _Premise) -> list[SourceGroup]:
        """Groups of the premise itself or of its near-duplicates, the most similar first."""
        own = self.placed.get(premise.digest)
        if own is not None:
            return [own]
        known = [(-s, pk, self.near_groups[pk]) for pk, s in premise.near_known.items()]
        here = [(-s, 0, self.placed[d]) for d, s in premise.near_here.items() if d in self.placed]
        return [group for _, _, group in sorted(known + here, key=lambda near: near[:2])]

    def _new_group(self, source: Source, own: str) -> SourceGroup:
        key = source.group or own
        weight = self.weights[own]
        fold = self._emptiest(weight) if source.fold is None else source.fold
        group = SourceGroup(key=key, fold=fold)
        self.counts[fold] += weight
        self.weighed.add(own)
        self.groups[key] = group
        self.new_groups.append(group)
        return group

    def _emptiest(self, weight: NDArray[np.int64]) -> int:
        """The fold where these labels are scarcest; then the smallest; then the first."""
        return int(np.lexsort((self.counts.sum(axis=1), self.counts @ weight))[0])

    def write(self) -> None:
        SourceGroup.objects.bulk_create(self.new_groups)
        JoinedPage.objects.bulk_create(self.new_pages)
        rows = PremiseText.objects.bulk_create(
            PremiseText(digest=p.digest, text=p.text, group=self.placed[p.digest])
            for p in self.new_premises
        )
        _insert_bands(
            (row.pk, bucket)
            for row, premise in zip(rows, self.new_premises, strict=True)
            for bucket in premise.buckets
        )


def _insert_bands(bands: Iterable[tuple[int, int]]) -> None:
    """Insert (premise id, bucket) rows: 14 a premise, too many to make a model instance of each."""
    table = connection.ops.quote_name(MinHashBand._meta.db_table)
    with connection.cursor() as cursor:
        cursor.executemany(
            f"INSERT INTO {table} (premise_id, bucket) VALUES (%s, %s)",  # noqa: S608
            list(bands),
        )


def own_key(premise: str, page_id: str) -> str:
    """Key of the group that such a row makes where it is put with no other source."""
    return _key(page_id, "" if page_id else premise_digest(normalise(premise)))


def _own_key(source: Source, digest: str) -> str:
    return _key(source.page_id, digest)


def _key(page_id: str, digest: str) -> str:
    return f"page:{page_id}" if page_id else f"premise:{digest}"


def _bridges(group: SourceGroup, other: SourceGroup) -> str:
    return (
        f"The premise nearly repeats a text of “{other.key}” (fold {other.fold}), but its source "
        f"is “{group.key}” (fold {group.fold}): used, it would be trained on and judged at once."
    )


def chunks(items: Iterable[T], size: int) -> Iterator[list[T]]:
    iterator = iter(items)
    while chunk := list(islice(iterator, size)):
        yield chunk
