"""What PostgreSQL refuses and SQLite does not: the pages answer all the same."""

import pytest
from django.contrib.auth.models import User
from django.test import Client

LIST = "/admin/corrections/correction/"


@pytest.mark.usefixtures("on_postgresql")
def test_no_text_in_a_query_of_the_list_is_a_crash() -> None:
    client = Client()
    client.force_login(User.objects.create_superuser("ada"))

    for query in ("domain=%00", "status__exact=%00", "q=%00", "%00=1", "domain=%ED%A0%80"):
        assert client.get(f"{LIST}?{query}").status_code in {200, 302}
