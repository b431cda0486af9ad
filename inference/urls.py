"""Routes under /api/v1/."""

from django.urls import path

from inference.import_api import ImportView
from inference.views import NliView

urlpatterns = [
    path("nli", NliView.as_view(), name="nli"),
    path("corrections/import", ImportView.as_view(), name="corrections-import"),
]
