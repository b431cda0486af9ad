"""The pages of accounts: who has which role."""

from typing import Any

from django import forms
from django.contrib import admin
from django.contrib.auth.admin import UserAdmin
from django.contrib.auth.models import Group, User
from django.db.models import Field, QuerySet
from django.http import HttpRequest

from lyra_site.roles import WHAT_THEY_DO


class RolesField(forms.ModelMultipleChoiceField):
    """A box for each role that says what it lets people do."""

    # The class by which the admin's style sheet gives labels of such lists the width they need.
    widget = forms.CheckboxSelectMultiple(attrs={"class": "radiolist"})

    def label_from_instance(self, group: Group) -> str:
        does = WHAT_THEY_DO.get(group.name)
        return f"{group.name}: {does}" if does else group.name


WHAT_ONE_MAY_DO = ("is_superuser", "groups", "user_permissions")


def _is_administrator(request: HttpRequest) -> bool:
    return isinstance(request.user, User) and request.user.is_superuser


def _in_reach(request: HttpRequest, account: User | None) -> bool:
    """Whether it is no administrator's account: a new password would be their powers."""
    return account is None or not account.is_superuser or _is_administrator(request)


admin.site.unregister(User)


@admin.register(User)
class AccountAdmin(UserAdmin):
    """Django's, without the staff status: a role is all that it takes to sign in."""

    fieldsets = (
        (None, {"fields": ("username", "password")}),
        ("Personal info", {"fields": ("first_name", "last_name", "email")}),
        (
            "What they may do",
            {"fields": ("is_active", *WHAT_ONE_MAY_DO)},
        ),
        ("Important dates", {"fields": ("last_login", "date_joined")}),
    )
    add_fieldsets = (
        (
            None,
            {
                "classes": ("wide",),
                "fields": ("username", "usable_password", "password1", "password2", "groups"),
            },
        ),
    )
    filter_horizontal = ("user_permissions",)
    list_display = ("username", "roles", "is_active", "last_login")
    list_filter = ("groups", "is_active")

    def has_change_permission(self, request: HttpRequest, obj: User | None = None) -> bool:
        return super().has_change_permission(request, obj) and _in_reach(request, obj)

    def has_delete_permission(self, request: HttpRequest, obj: User | None = None) -> bool:
        return super().has_delete_permission(request, obj) and _in_reach(request, obj)

    def get_readonly_fields(self, request: HttpRequest, obj: User | None = None) -> list[str]:
        """Whoever may change accounts, and no more, gives nobody what they lack themselves."""
        fixed = [] if _is_administrator(request) else [*WHAT_ONE_MAY_DO]
        return [*super().get_readonly_fields(request, obj), *fixed]

    def get_queryset(self, request: HttpRequest) -> QuerySet[User]:
        return super().get_queryset(request).prefetch_related("groups")

    @admin.display(description="Roles")
    def roles(self, user: User) -> str:
        names = ["administrator"] if user.is_superuser else []
        return ", ".join([*names, *sorted(group.name for group in user.groups.all())]) or "–"

    def formfield_for_dbfield(
        self, db_field: "Field[Any, Any]", request: HttpRequest, **kwargs: Any
    ) -> Any:
        if db_field.name == "groups":
            return db_field.formfield(
                form_class=RolesField,
                label="Roles",
                help_text="Whoever has a role can sign in and do what it allows. "
                "Several roles add up.",
            )
        if db_field.name == "is_superuser":
            kwargs |= {"label": "Administrator", "help_text": "May do everything, without a role."}
        return super().formfield_for_dbfield(db_field, request, **kwargs)
