"""Store what the torch engine answers on the golden pairs: other engines are held to it."""

from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand, CommandError

from adapters_app.nli import base_model, checkpoint, reference
from adapters_app.nli.predict import TorchEngine


class Command(BaseCommand):
    help = (
        "Answer the golden pairs with torch and keep the logits: those of the bundled base with "
        "its files (do this after train_base), those of any other in LYRA_HOME, where the server "
        "makes them by itself when it needs them."
    )

    def handle(self, *args: Any, **options: Any) -> None:
        name, revision = settings.LYRA_BASE_MODEL, settings.LYRA_BASE_REVISION
        try:
            files = checkpoint.find(name, revision=revision)
            engine = TorchEngine(base_model.load_base(name, revision=revision))
        except checkpoint.BaseModelError as error:
            raise CommandError(str(error)) from error
        known, tokenizer = engine.reference(files.digest)
        if files.bundled:
            reference.BUNDLED_PATH.write_text(reference.as_json(known))
        else:
            reference.write(known, tokenizer, settings.LYRA_REFERENCES)
        self.stdout.write(f"{name}: {len(known.bare)} golden pairs, base {known.fingerprint[:12]}")
