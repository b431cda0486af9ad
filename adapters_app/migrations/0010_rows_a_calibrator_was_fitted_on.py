"""A calibrator may be fitted on more rows than those its figures are of."""

from typing import Any

from django.db import migrations, models


def were_the_same(apps: Any, _schema_editor: Any) -> None:
    """Until now only rows of known probability were fitted on."""
    calibrations = apps.get_model("adapters_app", "CalibrationEvaluation")
    calibrations.objects.update(fitted_rows=models.F("rows"))


class Migration(migrations.Migration):
    dependencies = [("adapters_app", "0009_lora_studies")]

    operations = [
        migrations.AddField(
            model_name="calibrationevaluation",
            name="fitted_rows",
            field=models.PositiveIntegerField(
                default=0, help_text="Out-of-fold rows it was fitted on."
            ),
            preserve_default=False,
        ),
        migrations.RunPython(were_the_same, migrations.RunPython.noop),
        migrations.AlterField(
            model_name="calibrationevaluation",
            name="rows",
            field=models.PositiveIntegerField(
                help_text="Those of known probability among them, of which the figures are."
            ),
        ),
    ]
