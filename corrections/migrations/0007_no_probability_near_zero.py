from django.conf import settings
from django.db import migrations, models

FLOOR = 1e-6


def raise_to_floor(apps, schema_editor):
    """Rows below the floor would break the constraint, and already break every sum of 1/p.

    They are raised, not dropped: at the floor such a row outweighs every other as it did before,
    but sums are finite, and the verdict stays.
    """
    Correction = apps.get_model("corrections", "Correction")
    Correction.objects.filter(sampling_probability__lt=FLOOR).update(sampling_probability=FLOOR)


class Migration(migrations.Migration):
    dependencies = [
        ("corrections", "0006_disagreement_samples"),
        migrations.swappable_dependency(settings.AUTH_USER_MODEL),
    ]

    operations = [
        migrations.RunPython(raise_to_floor, migrations.RunPython.noop),
        migrations.RemoveConstraint(
            model_name="correction",
            name="correction_sampling_probability_recorded",
        ),
        migrations.AddConstraint(
            model_name="correction",
            constraint=models.CheckConstraint(
                condition=models.Q(
                    models.Q(("sampling", "user"), ("sampling_probability__isnull", True)),
                    models.Q(
                        models.Q(("sampling", "user"), _negated=True),
                        ("sampling_probability__gte", 1e-06),
                        ("sampling_probability__lte", 1),
                    ),
                    _connector="OR",
                ),
                name="correction_sampling_probability_recorded",
            ),
        ),
    ]
