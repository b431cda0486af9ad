"""Every URL of the system. All need sign-in or a token unless the view says otherwise."""

from django.contrib import admin
from django.contrib.auth.decorators import login_required
from django.urls import URLPattern, URLResolver, include, path
from drf_spectacular.views import SpectacularAPIView, SpectacularSwaggerView

from adapters_app import api as adapters
from corrections import api as corrections
from inference import compat, import_page
from lyra_site import health, schema, views  # noqa: F401  schema registers itself

# The upstream's client is pointed at http://host/ or http://host/ml; it follows no redirects.
UPSTREAM: list[URLPattern | URLResolver] = [
    path("health", compat.HealthView.as_view()),
    path("warmup", compat.WarmupView.as_view()),
    path("nli", compat.CompatNliView.as_view()),
    path("embed", compat.EmbedView.as_view()),
    path("nli/adapter/load", compat.AdapterLoadView.as_view()),
    path("nli/adapter/unload", compat.AdapterUnloadView.as_view()),
    path("nli/adapter/status", compat.AdapterStatusView.as_view()),
]
API: list[URLPattern | URLResolver] = [
    path("", include("inference.urls")),
    path("", include(corrections.router.urls)),
    path("", include(adapters.router.urls)),
    path("stats", adapters.StatsView.as_view(), name="stats"),
    path("schema", SpectacularAPIView.as_view(), name="schema"),
    path(
        "docs",
        login_required(SpectacularSwaggerView.as_view(url_name="schema")),
        name="docs",
    ),
]
urlpatterns = [
    path("", views.home, name="home"),
    # Among the corrections' own pages, and not one of theirs: it asks what serves.
    path(
        "admin/corrections/correction/import/",
        admin.site.admin_view(import_page.import_view),
        name="import-corrections",
    ),
    path("admin/", admin.site.urls),
    path("tokens", views.token_page, name="tokens"),
    path("tokens/<slug:token_id>/revoke", views.revoke_token, name="token-revoke"),
    path("livez", health.livez, name="livez"),
    path("readyz", health.ReadyView.as_view(), name="readyz"),
    path("metrics", health.MetricsView.as_view(), name="metrics"),
    path("api/v1/", include(API)),
    path("", include(UPSTREAM)),
    path("ml/", include(UPSTREAM)),
]
handler400 = "lyra_site.errors.bad_request"
handler403 = "lyra_site.errors.permission_denied"
handler404 = "lyra_site.errors.not_found"
handler500 = "lyra_site.errors.server_error"
