"""The admin's pages about runs, versions and the ledger. They read; what changes anything calls
`training` or `registry`, and no page can write around those."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import urlencode

from django.contrib import admin, messages
from django.contrib.auth.models import User
from django.core.exceptions import PermissionDenied
from django.db.models import Exists, OuterRef, Prefetch, QuerySet
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseRedirect, JsonResponse
from django.shortcuts import get_object_or_404
from django.template.response import TemplateResponse
from django.urls import URLPattern, path, reverse
from django.utils import timezone
from django.utils.decorators import method_decorator
from django.utils.html import format_html
from django.utils.safestring import SafeString
from django.views.decorators.http import require_POST, require_safe
from django_q.models import OrmQ, Schedule, Task
from django_q.status import Stat

from adapters_app import (
    charts,
    evidence,
    label_review,
    liveness,
    registry,
    secret_key,
    side_by_side,
    training,
    triggers,
)
from adapters_app.findings import ARMS, Findings, TaskFindings, export
from adapters_app.forms import PromoteForm, ReleaseForm, RequestTrainingForm
from adapters_app.models import (
    AdapterVersion,
    CalibrationEvaluation,
    LearningCurve,
    Promotion,
    Serving,
    ShadowEvaluation,
    Study,
    StudyFit,
    TrainingRun,
    name_of,
)
from adapters_app.nli.config import PRESETS
from adapters_app.progress import called, fraction, progress, seconds_taken, stage
from adapters_app.templatetags.figures import duration, moment, percent, pill, points
from corrections.models import Correction

Verdict = ShadowEvaluation.Verdict

# How many of its last tasks the queue page lists.
LAST_TASKS = 25
# How many doubtful verdicts a page lists; so many are reviewed at a sitting.
SHOWN_DOUBTS = 20


def allow(request: HttpRequest, permission: str) -> User:
    """The signed-in user; PermissionDenied without `permission` ("app.codename")."""
    user = request.user
    if not isinstance(user, User) or not user.has_perm(permission):
        raise PermissionDenied
    return user


def number(text: str) -> int:
    """A primary key out of a URL; 0, which no row has, where it is none."""
    return int(text) if text.isascii() and text.isdecimal() and len(text) < 19 else 0


class ReadOnlyAdmin(admin.ModelAdmin):
    """A model whose rows only the domain's functions write; its pages have their own templates."""

    actions: Sequence[str] | None = None
    list_per_page = 50
    show_full_result_count = False
    list_title = ""

    def has_add_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def changelist_view(
        self, request: HttpRequest, extra_context: dict[str, Any] | None = None
    ) -> HttpResponse:
        return super().changelist_view(request, {"title": self.list_title, **(extra_context or {})})

    def page(
        self,
        request: HttpRequest,
        template: str,
        title: str,
        *,
        status: int = 200,
        **context: Any,
    ) -> TemplateResponse:
        """Render one of this model's own pages inside the admin's frame."""
        plural = str(self.opts.verbose_name_plural)
        changelist = reverse(f"admin:{self.opts.app_label}_{self.opts.model_name}_changelist")
        frame = {
            **self.admin_site.each_context(request),
            "opts": self.opts,
            "title": title,
            "trail": [(plural.capitalize(), changelist)],
        }
        name = f"admin/{self.opts.app_label}/{self.opts.model_name}/{template}.html"
        return TemplateResponse(request, name, {**frame, **context}, status=status)

    def routes(self) -> list[tuple[str, Any, str]]:
        """(path, view, name) of this model's own pages; they are named app_model_name."""
        return []

    def get_urls(self) -> list[URLPattern]:
        model = f"{self.opts.app_label}_{self.opts.model_name}"
        own = [
            path(route, self.admin_site.admin_view(view), name=f"{model}_{name}")
            for route, view, name in self.routes()
        ]
        return [*own, *super().get_urls()]

    def change_view(
        self,
        request: HttpRequest,
        object_id: str,
        form_url: str = "",
        extra_context: dict[str, Any] | None = None,
    ) -> HttpResponse:
        return self.detail_view(request, object_id)

    def detail_view(self, request: HttpRequest, object_id: str) -> HttpResponse:
        """The page of one row."""
        raise NotImplementedError


@admin.display(description="for")
def purpose(row: TrainingRun | AdapterVersion) -> str:
    """What a run or version is meant for: a column of both lists."""
    return " · ".join(filter(None, [row.get_scope_display(), row.domain]))


@admin.register(TrainingRun)
class TrainingRunAdmin(ReadOnlyAdmin):
    list_title = "Training runs"
    list_display = (
        "title",
        "state",
        "outcome",
        "when",
        "took",
        purpose,
        "requester",
    )
    list_filter = ("status", "kind")
    search_fields = ("reason", "domain")
    list_select_related = ("requested_by", "version", "produced")

    def get_queryset(self, request: HttpRequest) -> QuerySet[TrainingRun]:
        details = [*AdapterVersion.details("version__"), *AdapterVersion.details("produced__")]
        runs = super().get_queryset(request)
        return runs.defer("loss_curve", "log_tail", *details)

    def routes(self) -> list[tuple[str, Any, str]]:
        return [
            ("request/", self.request_view, "request"),
            ("queue/", self.queue_view, "queue"),
            ("<int:pk>/progress/", self.progress_view, "progress"),
            ("<int:pk>/cancel/", self.cancel_view, "cancel"),
        ]

    @admin.display(description="run", ordering="id")
    def title(self, run: TrainingRun) -> str:
        what = f"shadow {run.version}" if run.version else "training"
        against = f" against {called(run.against)}" if run.against else ""
        return f"{run.pk} · {what}{against}"

    @admin.display(description="status", ordering="status")
    def state(self, run: TrainingRun) -> SafeString:
        return pill(run.get_status_display(), run.status)

    @admin.display(description="by", ordering="requested_by__username")
    def requester(self, run: TrainingRun) -> str:
        return str(run.requested_by)

    @admin.display(description="requested", ordering="requested_at")
    def when(self, run: TrainingRun) -> str:
        return moment(run.requested_at)

    @admin.display(description="took")
    def took(self, run: TrainingRun) -> str:
        return duration(seconds_taken(run))

    @admin.display(description="outcome")
    def outcome(self, run: TrainingRun) -> str:
        """The version that was made or what went wrong; of a running one how far it is."""
        if run.status == TrainingRun.Status.RUNNING:
            share = fraction(run)
            return stage(run) if share is None else f"{stage(run)}, {percent(share, 0)}"
        version = getattr(run, "produced", None)
        if version is None:
            return run.error[:90] or "–"
        url = reverse("admin:adapters_app_adapterversion_change", args=[version.pk])
        return format_html('<a href="{}">{}</a>', url, version.name)

    @method_decorator(require_safe)
    def detail_view(self, request: HttpRequest, object_id: str) -> HttpResponse:
        allow(request, "adapters_app.view_trainingrun")
        runs = TrainingRun.objects.select_related(
            "version", "snapshot", "requested_by", "cancel_requested_by", "produced"
        )
        run = get_object_or_404(runs, pk=number(object_id))
        return self.page(
            request,
            "detail",
            f"Run {run.pk}",
            run=run,
            against=called(run.against),
            produced=getattr(run, "produced", None),
            outcome=run.evaluations.select_related("candidate", "incumbent").first(),
            progress=progress(run),
            figure=charts.loss_curve(run.loss_curve),
            took=seconds_taken(run),
            may_cancel=not run.is_over
            and run.cancel_requested_at is None
            and request.user.has_perm("adapters_app.cancel_training"),
            may_request=request.user.has_perm("adapters_app.request_training"),
            with_charts=True,
        )

    @method_decorator(require_safe)
    def progress_view(self, request: HttpRequest, pk: int) -> JsonResponse:
        """What run.js asks for every two seconds."""
        allow(request, "adapters_app.view_trainingrun")
        run = get_object_or_404(TrainingRun, pk=pk)
        return JsonResponse({**progress(run), "figure": charts.loss_curve(run.loss_curve)})

    def request_view(self, request: HttpRequest) -> HttpResponse:
        """The form that asks for training; a refusal is shown above it."""
        by = allow(request, "adapters_app.request_training")
        if request.method == "POST":
            return self._request(request, by)
        like = TrainingRun.objects.filter(pk=number(request.GET.get("like", ""))).first()
        if like is not None:
            preset = like.config.get("preset", "default")
            initial = {**like.config, "preset": preset, "scope": like.scope, "domain": like.domain}
            form = RequestTrainingForm(preset=preset, initial=initial)
        else:
            preset = request.GET.get("preset", "default")
            preset = preset if preset in PRESETS else "default"
            form = RequestTrainingForm(preset=preset)
        return self._request_page(request, form, unfolded="preset" in request.GET or bool(like))

    def _request(self, request: HttpRequest, by: User) -> HttpResponse:
        form = RequestTrainingForm(request.POST)
        if not form.is_valid():
            return self._request_page(request, form, status=400)
        try:
            run = training.request(
                by=by,
                scope=form.cleaned_data["scope"],
                domain=form.cleaned_data["domain"],
                reason=form.cleaned_data["reason"],
                config=form.cleaned_data["config"],
            )
        except training.TrainingRefused as refusal:
            messages.error(request, str(refusal))
            return self._request_page(request, form, status=409)
        messages.success(request, f"Run {run.pk} is queued.")
        return HttpResponseRedirect(change_url(run))

    def _request_page(
        self,
        request: HttpRequest,
        form: RequestTrainingForm,
        *,
        unfolded: bool = False,
        status: int = 200,
    ) -> HttpResponse:
        return self.page(
            request,
            "request",
            "Request training",
            status=status,
            form=form,
            conditions=triggers.conditions(),
            presets=list(PRESETS),
            preset=form["preset"].value(),
            unfolded=unfolded,
        )

    @method_decorator(require_POST)
    def cancel_view(self, request: HttpRequest, pk: int) -> HttpResponse:
        by = allow(request, "adapters_app.cancel_training")
        run = get_object_or_404(TrainingRun, pk=pk)
        try:
            training.cancel(run, by=by)
        except training.TrainingRefused as refusal:
            messages.error(request, str(refusal))
        else:
            messages.success(request, f"Run {run.pk} is being cancelled.")
        return HttpResponseRedirect(change_url(run))

    @method_decorator(require_safe)
    def queue_view(self, request: HttpRequest) -> HttpResponse:
        """What django-q2 and the web processes are doing, for reading only."""
        allow(request, "adapters_app.view_trainingrun")
        return self.page(
            request,
            "queue",
            "Queue",
            servers=liveness.servers(),
            clusters=[
                {**vars(cluster), "uptime": cluster.uptime()}
                for cluster in sorted(Stat.get_all(), key=lambda stat: (stat.host, stat.pid))
            ],
            waiting=[
                {
                    "key": row.key,
                    "func": row.func(),
                    "args": row.args() or (),
                    "taken": row.lock > timezone.now(),
                }
                for row in OrmQ.objects.exclude(key=secret_key.LETTER).order_by("pk")
            ],
            schedules=Schedule.objects.order_by("next_run"),
            done=list(last_tasks()),
        )


@admin.register(AdapterVersion)
class AdapterVersionAdmin(ReadOnlyAdmin):
    list_title = "Adapter versions"
    actions = ("compare",)
    list_display = (
        "name_",
        "verdict",
        "buttons",
        "standing",
        "accuracy",
        "difference",
        "learnt_from",
        purpose,
        "when",
    )
    search_fields = ("domain",)

    def routes(self) -> list[tuple[str, Any, str]]:
        return [
            ("<int:pk>/promote/", self.promote_view, "promote"),
            ("<int:pk>/evaluate/", self.evaluate_view, "evaluate"),
            ("compare/", self.compare_view, "compare"),
            ("labels/", self.labels_view, "labels"),
        ]

    def get_queryset(self, request: HttpRequest) -> QuerySet[AdapterVersion]:
        return (
            super()
            .get_queryset(request)
            .select_related("snapshot")
            .prefetch_related(Prefetch("evaluations", _newest_evaluations(), "newest"))
            .defer(*AdapterVersion.details())
            .annotate(
                promoted=Exists(Promotion.objects.filter(version=OuterRef("pk"))),
                serves=Exists(Serving.objects.filter(version=OuterRef("pk"))),
            )
        )

    @admin.display(description="version", ordering="number")
    def name_(self, version: AdapterVersion) -> str:
        return version.name

    @admin.display(description="status")
    def standing(self, version: AdapterVersion) -> SafeString:
        return pill(standing(version))

    @admin.display(description="learnt from", ordering="snapshot__rows")
    def learnt_from(self, version: AdapterVersion) -> str:
        return f"{version.snapshot.rows} verdicts"

    @admin.display(description="accuracy, out of fold")
    def accuracy(self, version: AdapterVersion) -> str:
        found = _newest(version)
        compared = _against_incumbent(found)
        if not compared:
            return "–"
        return f"{percent(compared['b']['accuracy'])} (n = {compared['rows']})"

    @admin.display(description="difference")
    def difference(self, version: AdapterVersion) -> str:
        found = _newest(version)
        compared = _against_incumbent(found)
        if not (found and compared):
            return "–"
        against = name_of(found.incumbent)
        return f"{points(compared['accuracy']['estimate'])} on {against}"

    @admin.display(description="verdict")
    def verdict(self, version: AdapterVersion) -> str:
        found = _newest(version)
        return pill(found.get_verdict_display(), found.verdict) if found else "–"

    @admin.display(description="made", ordering="created_at")
    def when(self, version: AdapterVersion) -> str:
        return moment(version.created_at)

    @admin.display(description="")
    def buttons(self, version: AdapterVersion) -> str:
        if standing(version) == "serving":
            url, text = reverse("admin:adapters_app_promotion_rollback"), "Roll back …"
        else:
            url = reverse("admin:adapters_app_adapterversion_promote", args=[version.pk])
            text = "Promote …"
        return format_html('<a href="{}">{}</a>', url, text)

    def get_list_display(self, request: HttpRequest) -> tuple[Any, ...]:
        """Without the buttons for people who may not use them."""
        if request.user.has_perm("adapters_app.promote_adapter"):
            return self.list_display
        return tuple(name for name in self.list_display if name != "buttons")

    @admin.action(description="Compare", permissions=["view"])
    def compare(
        self, request: HttpRequest, queryset: QuerySet[AdapterVersion]
    ) -> HttpResponse | None:
        """The page of the two that are selected, the older one on the left."""
        numbers = sorted(queryset.values_list("number", flat=True))
        if len(numbers) == 2:
            return HttpResponseRedirect(compare_url(*map(str, numbers)))
        messages.error(request, "Select two versions to compare.")
        return None

    @method_decorator(require_safe)
    def detail_view(self, request: HttpRequest, object_id: str) -> HttpResponse:
        allow(request, "adapters_app.view_adapterversion")
        version = self._version(request, number(object_id))
        evaluations = list(version.evaluations.all())
        chosen = request.GET.get("evaluation", "")
        evaluation = _first(
            found
            for found in evaluations
            if (str(found.pk) == chosen if chosen else found.incumbent_served)
        )
        serving = registry.serving()
        calibration = version.calibrations.first()
        doubts = label_review.doubts(version, SHOWN_DOUBTS)
        doubts_left = label_review.to_review(doubts)
        return self.page(
            request,
            "detail",
            version.name,
            version=version,
            standing=standing(version),
            may_promote=request.user.has_perm("adapters_app.promote_adapter"),
            may_request=request.user.has_perm("adapters_app.request_training"),
            evaluations=evaluations,
            others=_choices(without=version),
            outdated=evaluation is not None
            and evaluation.incumbent_served
            and not evaluation.is_against(serving),
            recalibrated=evaluation and evaluation.incumbent_id == serving.version_id,
            serving_name=name_of(serving.version),
            calibration=calibration,
            newer=_newer(serving, version),
            reliability_figure=calibration
            and charts.reliability(calibration.bins_before, calibration.bins_after),
            label_reliability_figure=calibration
            and charts.label_reliability(calibration.reliability_after.get("labels", {})),
            epochs_figure=charts.epochs(version.metrics),
            doubts=doubts,
            doubts_left=doubts_left,
            review_url=label_review.review_url(doubts_left),
            curve=version.snapshot.curves.first(),
            promotions=version.promotions.select_related("by"),
            with_charts=True,
            **evidence.context(evaluation),
        )

    @method_decorator(require_safe)
    def labels_view(self, request: HttpRequest) -> HttpResponse:
        """For curators, who need not see releases: whose verdicts, and which, are in doubt."""
        allow(request, "corrections.review_correction")
        version = label_review.newest_version()
        doubts = label_review.doubts(version, SHOWN_DOUBTS) if version else []
        doubts_left = label_review.to_review(doubts)
        return self.page(
            request,
            "labels",
            "Labels in doubt",
            trail=[("Corrections", reverse("admin:corrections_correction_changelist"))],
            version=version,
            annotators=version.metrics.get("annotators", []) if version else [],
            doubts=doubts,
            doubts_left=doubts_left,
            review_url=label_review.review_url(doubts_left),
        )

    def promote_view(self, request: HttpRequest, pk: int) -> HttpResponse:
        """The confirmation page (GET) and the promotion itself (POST)."""
        by = allow(request, "adapters_app.promote_adapter")
        version = self._version(request, pk)
        if request.method != "POST":
            return self._promote_page(request, version)
        form = PromoteForm(request.POST)
        if not form.is_valid():
            return self._promote_page(request, version, form, status=400)
        try:
            registry.promote(version, by=by, **form.cleaned_data)
        except registry.PromotionRefused as refusal:
            messages.error(request, str(refusal))
            # Shown anew, with the state as it is now: what was confirmed is no longer true.
            return self._promote_page(
                request, version, status=409, reason=form.cleaned_data["reason"]
            )
        messages.success(request, f"From now on {version} answers.")
        return HttpResponseRedirect(change_url(version))

    def _promote_page(
        self,
        request: HttpRequest,
        version: AdapterVersion,
        form: PromoteForm | None = None,
        *,
        reason: str = "",
        status: int = 200,
    ) -> HttpResponse:
        serving = registry.serving()
        newer = _newer(serving, version)
        evaluation = _first(
            found for found in version.evaluations.all() if found.is_against(serving)
        )
        serves = serving.version_id == version.pk
        worse = registry.calibrates_worse(newer, serving.calibration) if newer else []
        if form is None:
            form = PromoteForm(
                initial={
                    "expected_revision": serving.revision,
                    "reason": reason,
                    "evidence_id": evaluation.pk if evaluation else None,
                    "calibration_id": newer.pk if newer else None,
                }
            )
        form.offer(Verdict.WORSE if worse else evaluation.verdict if evaluation else "")
        return self.page(
            request,
            "promote",
            f"Use the newer calibrator of {version}?" if newer else f"Promote {version}?",
            status=status,
            version=version,
            serves=serves,
            changes=bool(newer or (evaluation and not serves)),
            standing=standing(version),
            form=form,
            revision=serving.revision,
            accepted_since=_accepted_since(evaluation),
            newer=newer,
            worse=worse,
            calibrators=_calibrators(newer, serving.calibration) if newer else [],
            now=evidence.answerer(serving.version, serving.calibration),
            then=evidence.answerer(
                version, newer or (evaluation.candidate_calibration if evaluation else None)
            ),
            may_request=request.user.has_perm("adapters_app.request_training"),
            **evidence.context(evaluation),
        )

    @method_decorator(require_POST)
    def evaluate_view(self, request: HttpRequest, pk: int) -> HttpResponse:
        """Compare a version with what serves now, or with what is named, on the verdicts of now."""
        by = allow(request, "adapters_app.request_training")
        version = self._version(request, pk)
        name = request.POST.get("against", "")
        against = _named(name) if name else None
        compared = name_of(against) if name else "what serves now"
        try:
            run = training.request(
                by=by,
                kind=TrainingRun.Kind.SHADOW,
                version=version,
                against=(against or registry.BASE) if name else None,
                scope=version.scope,
                domain=version.domain,
                reason=f"Compare {version} with {compared}.",
            )
        except training.TrainingRefused as refusal:
            messages.error(request, str(refusal))
            back = compare_url(name, version.name) if name else change_url(version)
            return HttpResponseRedirect(back)
        messages.success(request, f"Run {run.pk} will compare {version} with {compared}.")
        return HttpResponseRedirect(change_url(run))

    @method_decorator(require_safe)
    def compare_view(self, request: HttpRequest) -> HttpResponse:
        """Two versions side by side, ?a= and ?b=: numbers, or “base”; without, a choice of them."""
        allow(request, "adapters_app.view_adapterversion")
        named = [request.GET.get(key, "") for key in ("a", "b")]
        chosen = [_named(name) if name else None for name in named]
        choice: dict[str, Any] = {"choices": _choices(), "chosen": [_key(name) for name in named]}
        if not all(named) or chosen[0] == chosen[1]:
            return self.page(
                request,
                "compare",
                "Compare two versions",
                status=400 if all(named) else 200,
                same=all(named),
                **choice,
            )
        serving = registry.serving()
        a, b = (side_by_side.side(version, serving) for version in chosen)
        candidate, incumbent = side_by_side.roles(a, b)
        evaluations = list(side_by_side.evaluations(a, b))
        evaluation = _first(evaluations)
        return self.page(
            request,
            "compare",
            f"{a.name} and {b.name}",
            a=a,
            b=b,
            sides=[a, b],
            tables=side_by_side.tables(a, b),
            candidate=candidate,
            incumbent=incumbent,
            serving_name=name_of(serving.version),
            evaluations=evaluations,
            accepted_since=_accepted_since(evaluation),
            may_request=request.user.has_perm("adapters_app.request_training"),
            **choice,
            **evidence.context(evaluation),
        )

    def _version(self, request: HttpRequest, pk: int) -> AdapterVersion:
        """One version with all that its pages show; the pairs flipped are read where shown."""
        evaluations = ShadowEvaluation.objects.select_related("incumbent", "candidate_calibration")
        without = evaluations.defer("flips", *AdapterVersion.details("incumbent__"))
        versions = (
            self.get_queryset(request)
            .defer(None)
            .select_related("snapshot", "run", "created_by")
            .prefetch_related(None)
            .prefetch_related(Prefetch("evaluations", without.order_by("-pk")))
        )
        return get_object_or_404(versions, pk=pk)


@admin.register(LearningCurve)
class LearningCurveAdmin(ReadOnlyAdmin):
    """What more verdicts would bring; `manage.py learning_curve` measures it."""

    list_title = "Learning curves"
    list_display = ("title", "measured_on", "expected", "requested_by", "when", "took")
    list_select_related = ("snapshot", "created_by")

    @admin.display(description="curve", ordering="id")
    def title(self, curve: LearningCurve) -> str:
        return f"Curve {curve.pk}"

    @admin.display(description="measured on", ordering="snapshot__rows")
    def measured_on(self, curve: LearningCurve) -> str:
        return f"{curve.snapshot.rows} verdicts"

    @admin.display(description="what more would bring")
    def expected(self, curve: LearningCurve) -> str:
        return str(curve.projections["accuracy"]["sentence"])

    @admin.display(description="by", ordering="created_by__username")
    def requested_by(self, curve: LearningCurve) -> str:
        return str(curve.created_by)

    @admin.display(description="made", ordering="created_at")
    def when(self, curve: LearningCurve) -> str:
        return moment(curve.created_at)

    @admin.display(description="took", ordering="seconds")
    def took(self, curve: LearningCurve) -> str:
        return duration(curve.seconds)

    @method_decorator(require_safe)
    def detail_view(self, request: HttpRequest, object_id: str) -> HttpResponse:
        allow(request, "adapters_app.view_learningcurve")
        curves = LearningCurve.objects.select_related("snapshot", "created_by")
        curve = get_object_or_404(curves, pk=number(object_id))
        drawn = {
            measure: charts.learning_curve(
                curve.points, projection, measure=measure, now=curve.snapshot.rows
            )
            for measure, projection in curve.projections.items()
        }
        return self.page(
            request,
            "detail",
            f"Learning curve {curve.pk}",
            curve=curve,
            accuracy_figure=drawn["accuracy"],
            macro_f1_figure=drawn["macro_f1"],
            with_charts=True,
        )


@admin.register(Study)
class StudyAdmin(ReadOnlyAdmin):
    """LoRA against standard fine-tuning; `manage.py lora_study` carries one out."""

    list_title = "LoRA against standard fine-tuning"
    list_display = ("title", "data", "rows", "of_standard", "of_gain", "requested_by", "when")
    list_select_related = ("created_by",)

    def routes(self) -> list[tuple[str, Any, str]]:
        return [("<int:pk>/json/", self.json_view, "json")]

    def get_queryset(self, request: HttpRequest) -> QuerySet[Study]:
        return super().get_queryset(request).prefetch_related("fits")

    @admin.display(description="study", ordering="id")
    def title(self, study: Study) -> str:
        return f"Study {study.pk}"

    @admin.display(description="LoRA's share of Spearman")
    def of_standard(self, study: Study) -> str:
        if not study.finished:
            return f"{len(study.fits.all())} of {study.config['fits']} fits"
        shares = Findings(study).embedding.shares(StudyFit.Setting.IDENTICAL)
        return percent(shares.of_standard)

    @admin.display(description="of the gain")
    def of_gain(self, study: Study) -> str:
        if not study.finished:
            return "–"
        shares = Findings(study).embedding.shares(StudyFit.Setting.IDENTICAL)
        return percent(shares.of_gain)

    @admin.display(description="by", ordering="created_by__username")
    def requested_by(self, study: Study) -> str:
        return str(study.created_by)

    @admin.display(description="made", ordering="created_at")
    def when(self, study: Study) -> str:
        return moment(study.created_at)

    @method_decorator(require_safe)
    def detail_view(self, request: HttpRequest, object_id: str) -> HttpResponse:
        study = self._study(request, number(object_id))
        title = f"LoRA against standard fine-tuning, study {study.pk}"
        if not study.finished:
            return self.page(request, "unfinished", title, study=study)
        found = Findings(study)
        return self.page(
            request,
            "detail",
            title,
            study=study,
            found=found,
            arms=[name for _, _, name in ARMS],
            figures={
                task.task: {"arms": _arms_figure(task), "rates": _rates_figure(task)}
                for task in (found.embedding, found.nli)
            },
            with_charts=True,
        )

    @method_decorator(require_safe)
    def json_view(self, request: HttpRequest, pk: int) -> JsonResponse:
        """Every figure of the study, for reading by programs."""
        study = self._study(request, pk)
        name = f'attachment; filename="lora-study-{study.pk}.json"'
        return JsonResponse(export(study), headers={"Content-Disposition": name})

    def _study(self, request: HttpRequest, pk: int) -> Study:
        allow(request, "adapters_app.view_study")
        studies = self.get_queryset(request).select_related("snapshot", "created_by")
        return get_object_or_404(studies, pk=pk)


@dataclass(frozen=True)
class Place:
    """Where one can roll back to: what it is called, its ?to=, the promotion it restores."""

    name: str
    to: str
    restores: Promotion | None  # None = the base
    chosen: bool = False


@admin.register(Promotion)
class PromotionAdmin(ReadOnlyAdmin):
    """The ledger: who put what in front of users, when, why and on what evidence."""

    list_title = "Ledger"
    list_display = ("revision_", "when", "action_", "change", "actor", "reason", "on_evidence")
    list_display_links = None
    search_fields = ("reason", "by__username")

    def get_queryset(self, request: HttpRequest) -> QuerySet[Promotion]:
        """With no more of what a line names than its name; evaluations and versions are long."""
        named = [
            "version__number",
            "previous_version__number",
            "calibration__number",
            "previous_calibration__number",
            "by__username",
            "evidence__verdict",
            "evidence__candidate__number",
        ]
        own = [field.name for field in self.opts.concrete_fields]
        related = {path.rpartition("__")[0] for path in named}
        return super().get_queryset(request).select_related(*related).only(*own, *named)

    def routes(self) -> list[tuple[str, Any, str]]:
        return [("rollback/", self.rollback_view, "rollback")]

    def detail_view(self, request: HttpRequest, object_id: str) -> HttpResponse:
        """An entry says all it has to say in the list."""
        return HttpResponseRedirect(reverse("admin:adapters_app_promotion_changelist"))

    @admin.display(description="revision", ordering="revision")
    def revision_(self, promotion: Promotion) -> str:
        return f"r{promotion.revision}"

    @admin.display(description="when", ordering="at")
    def when(self, promotion: Promotion) -> str:
        return moment(promotion.at)

    @admin.display(description="what", ordering="action")
    def action_(self, promotion: Promotion) -> SafeString:
        return pill(promotion.get_action_display(), promotion.action)

    @admin.display(description="from → to")
    def change(self, promotion: Promotion) -> str:
        before = name_of(promotion.previous_version)
        if promotion.version == promotion.previous_version:
            was, now = promotion.previous_calibration, promotion.calibration
            return f"{before}: calibrator {_number(was)} → {_number(now)}"
        return f"{before} → {name_of(promotion.version)}"

    @admin.display(description="by", ordering="by__username")
    def actor(self, promotion: Promotion) -> str:
        if promotion.os_user:
            return f"{promotion.by} (command, as {promotion.os_user})"
        return str(promotion.by)

    @admin.display(description="evidence")
    def on_evidence(self, promotion: Promotion) -> SafeString | str:
        found = promotion.evidence
        if found is None:
            return "none" if promotion.action == Promotion.Action.PROMOTE else "–"
        url = f"{change_url(found.candidate)}?evaluation={found.pk}"
        said = [found.get_verdict_display()]
        said += ["acknowledged"] if promotion.acknowledged else []
        said += ["overridden"] if promotion.overridden else []
        return format_html('<a href="{}">{}</a>', url, ", ".join(said))

    def rollback_view(self, request: HttpRequest) -> HttpResponse:
        """The confirmation page (GET) and the rollback itself (POST); ?to= names where to."""
        by = allow(request, "adapters_app.promote_adapter")
        if request.method != "POST":
            return self._rollback_page(request)
        form = ReleaseForm(request.POST)
        if not form.is_valid():
            return self._rollback_page(request, form, status=400)
        try:
            promotion = registry.rollback(by=by, to=self._target(request), **form.cleaned_data)
        except registry.PromotionRefused as refusal:
            messages.error(request, str(refusal))
            return self._rollback_page(request, status=409, reason=form.cleaned_data["reason"])
        messages.success(request, f"From now on {name_of(promotion.version)} answers.")
        return HttpResponseRedirect(reverse("admin:adapters_app_promotion_changelist"))

    def _rollback_page(
        self,
        request: HttpRequest,
        form: ReleaseForm | None = None,
        *,
        reason: str = "",
        status: int = 200,
    ) -> HttpResponse:
        serving = registry.serving()
        restored = self._restored(request)
        if form is None:
            form = ReleaseForm(initial={"expected_revision": serving.revision, "reason": reason})
        version = restored.version if restored else None
        calibration = restored.calibration if restored else None
        undone = serving.version and serving.version.evaluations.filter(incumbent=version).first()
        return self.page(
            request,
            "rollback",
            "Roll back?",
            status=status,
            form=form,
            revision=serving.revision,
            nothing=(version, calibration) == (serving.version, serving.calibration),
            now=evidence.answerer(serving.version, serving.calibration),
            then=evidence.answerer(version, calibration),
            places=_places(serving, restored),
            **evidence.context(undone or None),
        )

    def _restored(self, request: HttpRequest) -> Promotion | None:
        """The promotion that ?to= would restore; None = the base."""
        target = self._target(request)
        if target is None:
            return registry.rollback_default()
        if isinstance(target, AdapterVersion):
            promotions = target.promotions.select_related("version__snapshot", "calibration")
            return _first_or_404(promotions.filter(action=Promotion.Action.PROMOTE))
        return None

    def _target(self, request: HttpRequest) -> AdapterVersion | str | None:
        """?to= as rollback() takes it: a version, “base”, or None for the one before."""
        to = request.GET.get("to", "")
        return _named(to) or registry.BASE if to else None


def _arms_figure(task: TaskFindings) -> charts.Figure:
    rows = [
        (name, task.spread(method, setting, task.chosen_by).values)
        for method, setting, name in ARMS
    ]
    return charts.arms(rows, measure=task.measures[task.chosen_by])


def _rates_figure(task: TaskFindings) -> charts.Figure:
    rows = [
        (name, [(rate, found.mean) for rate, found in task.rates(method)])
        for method, name in (
            (StudyFit.Method.STANDARD, "Standard"),
            (StudyFit.Method.LORA, "LoRA"),
        )
    ]
    return charts.learning_rates(rows, measure=task.measures[task.chosen_by])


def standing(version: AdapterVersion) -> str:
    """“serving”, “was serving” or “never served”; of versions annotated by AdapterVersionAdmin."""
    if version.serves:  # type: ignore[attr-defined]
        return "serving"
    return "was serving" if version.promoted else "never served"  # type: ignore[attr-defined]


def change_url(row: TrainingRun | AdapterVersion) -> str:
    """The page of a run or version."""
    return reverse(f"admin:adapters_app_{row._meta.model_name}_change", args=[row.pk])


def compare_url(a: str, b: str) -> str:
    """The page of two versions side by side, each named by its number, or “base”."""
    query = urlencode({"a": _key(a), "b": _key(b)})
    return f"{reverse('admin:adapters_app_adapterversion_compare')}?{query}"


def last_tasks() -> Iterator[dict[str, Any]]:
    """The queue's last tasks, without their results, which are unsigned pickles."""
    columns = ("func", "cluster", "started", "stopped", "success")
    for row in Task.objects.order_by("-stopped").values(*columns)[:LAST_TASKS]:
        yield {**row, "took": (row["stopped"] - row["started"]).total_seconds()}


def _named(text: str) -> AdapterVersion | None:
    """The version of this name or number; None = the base. 404 where there is none."""
    if text == registry.BASE:
        return None
    try:
        return registry.find_version(text)
    except registry.VersionUnknown as unknown:
        raise Http404(str(unknown)) from unknown


def _key(name: str) -> str:
    """A version's name as its number, which addresses and choices hold."""
    return name.removeprefix("v")


def _choices(without: AdapterVersion | None = None) -> list[tuple[str, str]]:
    """(what requests call it, name) of the base and of all versions but one, newest first."""
    numbers = AdapterVersion.objects.values_list("number", flat=True)
    others = [number for number in numbers if without is None or number != without.number]
    return [(str(number), f"v{number}") for number in others] + [(registry.BASE, "the base")]


def _newer(serving: Serving, version: AdapterVersion) -> CalibrationEvaluation | None:
    return registry.newer_calibration(serving) if serving.version == version else None


def _number(calibration: CalibrationEvaluation | None) -> str:
    return f"c{calibration.number}" if calibration else "none"


def _calibrators(
    newer: CalibrationEvaluation, present: CalibrationEvaluation | None
) -> list[dict[str, Any]]:
    """The calibrator that serves and the newer one on the same pairs; dashes where not measured."""
    names = ("brier", "ece", "log_loss")
    return [
        {
            "name": str(present or "no calibrator"),
            **(registry.replaced_figures(newer, present) or {}),
        },
        {"name": str(newer), **{name: getattr(newer, f"{name}_after") for name in names}},
    ]


def _accepted_since(evaluation: ShadowEvaluation | None) -> int:
    """How many verdicts an evaluation is too old to hold."""
    if evaluation is None:
        return 0
    usable = Correction.objects.accepted().filter(quarantine="")
    return usable.filter(reviewed_at__gt=evaluation.snapshot.created_at).count()


def _against_incumbent(evaluation: ShadowEvaluation | None) -> dict[str, Any] | None:
    return evaluation.figures.get("against_incumbent") if evaluation else None


def _newest_evaluations() -> QuerySet[ShadowEvaluation]:
    """Of each version the newest that a promotion may stand on, with what the list says of it."""
    compared = ShadowEvaluation.objects.evidence()
    newer = compared.filter(candidate=OuterRef("candidate"), pk__gt=OuterRef("pk"))
    newest = compared.filter(~Exists(newer)).select_related("incumbent")
    return newest.only("candidate", "verdict", "figures", "incumbent__number")


def _newest(version: AdapterVersion) -> ShadowEvaluation | None:
    """Its newest comparison with what served; of versions of the list."""
    return _first(version.newest)  # type: ignore[attr-defined]


def _first(found: Iterable[ShadowEvaluation]) -> ShadowEvaluation | None:
    return next(iter(found), None)


def _places(serving: Serving, chosen: Promotion | None) -> list[Place]:
    """Everything that a rollback can restore, each once, the default first."""
    promotions = Promotion.objects.filter(action=Promotion.Action.PROMOTE).order_by("pk")
    served = promotions.select_related("version").defer(*AdapterVersion.details("version__"))
    last = {entry.version: entry for entry in served}
    now = serving.version, serving.calibration
    others = [entry for entry in last.values() if (entry.version, entry.calibration) != now]
    if serving.version is None:
        places = [Place(_place_name(entry, others), str(entry.version), entry) for entry in others]
    else:
        before = registry.rollback_default()
        others = [entry for entry in others if entry != before]
        known: list[Promotion | Serving] = [*others, *([before] if before else []), serving]
        places = [
            Place(f"{_place_name(before, known)}, which answered before", "", before),
            *(Place(_place_name(entry, known), str(entry.version), entry) for entry in others),
            *([Place("the base", registry.BASE, None)] if before else []),
        ]
    return [replace(place, chosen=place.restores == chosen) for place in places]


def _place_name(entry: Promotion | None, among: Sequence[Promotion | Serving]) -> str:
    """What a promotion put in front of users; with the calibrator where the version is not enough
    to tell it."""
    version = entry.version if entry else None
    name = name_of(version)
    if entry is None or sum(other.version == version for other in among) < 2:
        return name
    return str(entry.calibration) if entry.calibration else f"{name} without a calibrator"


def _first_or_404(promotions: QuerySet[Promotion]) -> Promotion:
    found = promotions.first()
    if found is None:
        raise Http404("That version has never served; promote it instead.")
    return found
