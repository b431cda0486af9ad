"""Routes under /api/v1/."""

from django.urls import path

from inference.views import NliView

urlpatterns = [path("nli", NliView.as_view(), name="nli")]
