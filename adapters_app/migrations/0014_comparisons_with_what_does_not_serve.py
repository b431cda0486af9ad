"""Shadow evaluations say whether the incumbent served; until now it always did."""

from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("adapters_app", "0013_calibrators_name_their_snapshot")]

    operations = [
        migrations.AddField(
            model_name="shadowevaluation",
            name="incumbent_served",
            field=models.BooleanField(
                default=True,
                help_text="Whether the incumbent served when it was measured. If not, this is no "
                "evidence for a promotion, whatever serves later.",
            ),
        ),
        migrations.AlterField(
            model_name="calibrationevaluation",
            name="not_tried",
            field=models.JSONField(
                default=dict, help_text="{method: why} of those that were left out."
            ),
        ),
    ]
