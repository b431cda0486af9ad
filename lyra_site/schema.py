"""What drf-spectacular cannot find out by itself. Importing this module registers it."""

from drf_spectacular.extensions import OpenApiAuthenticationExtension


class TokenScheme(OpenApiAuthenticationExtension):
    """How the schema describes Token."""

    target_class = "lyra_site.authentication.Token"
    name = "token"

    def get_security_definition(self, auto_schema: object) -> dict[str, str]:
        return {
            "type": "apiKey",
            "in": "header",
            "name": "Authorization",
            "description": "“Token ” and a token made on /tokens or by `manage.py tokens issue`.",
        }
